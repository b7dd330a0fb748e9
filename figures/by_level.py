"""How well a discriminator tells real from generated images, by noise level."""

import math

from matplotlib.figure import Figure

from .curves import plot_finite

PANELS = dict(accuracy='accuracy', auc='AUC', ece='calibration error (ECE)')


def level_curves(runs: dict[str, list[dict]]) -> Figure | None:
    """Panels of held-out accuracy, AUC and calibration error against the noise level, a line per training run.

    runs: by name, the lines of the stats.jsonl of train.py, of which the last one with `held_out_levels` is shown.
    None if no run has one.
    """
    measured = {name: [line for line in lines if line.get('held_out_levels')] for name, lines in runs.items()}
    measured = {name: lines[-1] for name, lines in measured.items() if lines}
    if not measured:
        return None
    figure = Figure(figsize=(13, 3.6), layout='constrained')
    for axes, (key, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for name, line in measured.items():
            plot_finite(axes, [(math.sqrt(level['sigma_from'] * level['sigma_to']), level.get(key))
                               for level in line['held_out_levels']],
                        label=name if line.get('epoch') is None else f'{name}, epoch {line["epoch"]}')
        axes.set(xscale='log', xlabel='noise level sigma', title=title)
        axes.axhline(0.0 if key == 'ece' else 0.5, color='grey', linewidth=0.8)
        axes.grid(alpha=0.3)
    return figure
