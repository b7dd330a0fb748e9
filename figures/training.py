"""The picture of a training run, from the lines of its stats.jsonl."""

import math

from dnnlib.files import atomic_write


def draw_training(lines: list[dict], path) -> None:
    """Write a PNG of loss and accuracy over epochs, of the held-out AUC over the noise level, and of the correction.

    `lines` are those of train.py's stats.jsonl: `epoch`, `loss`, `accuracy` and, if images were held out,
    `held_out_loss`, `held_out_accuracy`, `held_out_levels` and perhaps `held_out_correction`. With `unguided_error`
    their `loss` is that of the correction, otherwise it is the BCE. What a line lacks or is not a finite number is left
    out, and the last panel if no line has a correction. AUC: of the first and the last line.
    """
    from matplotlib.figure import Figure  # here: it is slow to import, and a broken one costs no more than the picture

    corrected = any(not line.keys().isdisjoint(('unguided_error', 'held_out_correction')) for line in lines)
    figure = Figure(figsize=(17 if corrected else 13, 3.6), layout='constrained')
    axes = figure.subplots(1, 4 if corrected else 3)
    cross_entropy = [line for line in lines if 'unguided_error' not in line]
    _draw_epochs(axes[0], 'BCE', cross_entropy, 'loss', lines, 'held_out_loss')
    _draw_epochs(axes[1], 'accuracy', lines, 'accuracy', lines, 'held_out_accuracy')
    _draw_auc(axes[2], [line for line in lines if line.get('held_out_levels')])
    if corrected:
        scores = [line for line in lines if 'unguided_error' in line]
        _draw_epochs(axes[3], 'change of the squared error by guidance', scores, 'loss', lines, 'held_out_correction')
        axes[3].axhline(0, color='grey', linewidth=0.8)
    for axis in axes:
        axis.grid(alpha=0.3)
    with atomic_write(path) as file:
        figure.savefig(file, format='png', dpi=100)


def _draw_epochs(axis, title, trained, name, held_out, held_out_name):
    from .curves import plot_finite

    for lines, key, label in ((trained, name, 'training'), (held_out, held_out_name, 'held out')):
        plot_finite(axis, [(line.get('epoch'), line.get(key)) for line in lines], label=label)
    axis.set(xlabel='epoch', title=title)


def _draw_auc(axis, lines):
    from .curves import plot_finite

    for line, style in zip((lines[0], lines[-1]), ('--', '-')) if lines else ():
        plot_finite(axis, [(math.sqrt(level['sigma_from'] * level['sigma_to']), level['auc'])
                           for level in line['held_out_levels']], linestyle=style, label=f'epoch {line["epoch"]}')
    axis.axhline(0.5, color='grey', linewidth=0.8)
    axis.set(xlabel='noise level sigma', title='held-out AUC (0.5 at large noise is expected)')
    if axis.get_legend():  # a log axis needs a point
        axis.set_xscale('log')
