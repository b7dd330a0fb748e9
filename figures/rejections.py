"""Diffusion rejection sampling: where it rejects, and what an image costs."""

import numpy as np
from matplotlib.figure import Figure


def profile_curves(reports: dict[str, dict]) -> Figure:
    """Three panels: acceptance rate and rejections per image against the step, evaluations per image.

    reports: by name, the `report` of each run's options.json, as generate_diffrs.py writes it.
    """
    figure = Figure(figsize=(13, 3.6), layout='constrained')
    rate, count, cost = figure.subplots(1, 3)
    names = list(reports)
    for name in names:
        levels = [level for level in reports[name]['levels'] if level['tests']]
        steps = [level['level'] for level in levels]
        rate.plot(steps, [level['acceptance'] for level in levels], 'o-', ms=3, label=name)
        count.plot(steps, [level['rejections'] / reports[name]['images'] for level in levels], 'o-', ms=3, label=name)
    for offset, kind in ((-0.2, 'nfe'), (0.2, 'discriminator_calls')):
        rows = [reports[name][kind] for name in names]
        error = [[row['median'] - row['q05'] for row in rows], [row['q95'] - row['median'] for row in rows]]
        cost.bar(np.arange(len(names)) + offset, [row['median'] for row in rows], 0.4, yerr=error,
                 label=kind.replace('_', ' '))
    cost.set_xticks(range(len(names)), [_cost_label(name, reports[name]) for name in names])
    for axes, title, xlabel in ((rate, 'acceptance rate', 'step'), (count, 'rejections per image', 'step'),
                                (cost, 'per image: median, 5 to 95 %', '')):
        axes.set(title=title, xlabel=xlabel)
        axes.legend()
        axes.grid(alpha=0.3)
    return figure


def _cost_label(name: str, report: dict) -> str:
    """Name, seconds and restarts of a run."""
    timed = f'\n{report["wall_sec"] / report["timed_images"]:.3g} s each' if report['timed_images'] else ''
    return f'{name}{timed}\n{report["samples_at_cap"]} hit the cap'
