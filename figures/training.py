"""The picture of a training run, from the lines of its stats.jsonl."""

import math

from dnnlib.files import atomic_write


def draw_training(lines: list[dict], path) -> None:
    """Write a PNG of loss and accuracy over epochs, and of the first and last held-out AUC over the noise level.

    `lines` are those of train.py's stats.jsonl: `epoch`, `loss`, `accuracy` and, if images were held out,
    `held_out_loss`, `held_out_accuracy` and `held_out_levels`. What a line lacks or is not a finite number is left out.
    """
    from matplotlib.figure import Figure  # here: it is slow to import, and a broken one costs no more than the picture

    from .curves import plot_finite

    figure = Figure(figsize=(13, 3.6), layout='constrained')
    axes = figure.subplots(1, 3)
    for axis, name, title in zip(axes, ('loss', 'accuracy'), ('BCE', 'accuracy'), strict=False):
        for key, label in ((name, 'training'), (f'held_out_{name}', 'held out')):
            plot_finite(axis, [(line.get('epoch'), line.get(key)) for line in lines], label=label)
        axis.set(xlabel='epoch', title=title)
    measured = [line for line in lines if line.get('held_out_levels')]
    for line, style in zip((measured[0], measured[-1]), ('--', '-')) if measured else ():
        plot_finite(axes[2], [(math.sqrt(level['sigma_from'] * level['sigma_to']), level['auc'])
                              for level in line['held_out_levels']], linestyle=style, label=f'epoch {line["epoch"]}')
    axes[2].axhline(0.5, color='grey', linewidth=0.8)
    axes[2].set(xlabel='noise level sigma', title='held-out AUC (0.5 at large noise is expected)')
    if axes[2].get_legend():  # a log axis needs a point
        axes[2].set_xscale('log')
    for axis in axes:
        axis.grid(alpha=0.3)
    with atomic_write(path) as file:
        figure.savefig(file, format='png', dpi=100)
