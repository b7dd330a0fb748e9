"""Curves: distances against an option of the samples, losses and accuracies of training runs."""

import math

import numpy as np
from matplotlib.figure import Figure

from .canvas import DPI


def distance_curve(x: list[float], results: list[dict], names: list[str]) -> Figure:
    """One line per name through (x, value), with error bars if there are errors.

    results: those of `results.read_results`, of which `names` says the line of each.
    """
    figure = Figure(figsize=(6, 4), dpi=2 * DPI, layout='constrained')
    axes = figure.subplots()
    for name in dict.fromkeys(names):
        points = [(value, result['value'], result['error'] or 0.0)
                  for value, result, other in zip(x, results, names, strict=True) if other == name]
        px, py, error = np.array(sorted(points)).T
        axes.errorbar(px, py, error if error.any() else None, marker='o', markersize=4, capsize=3, label=name or None)
    if any(names):
        axes.legend()
    axes.grid(alpha=0.3)
    return figure


def plot_finite(axes, points: list[tuple], **style) -> None:
    """Plot the points (x, y) of which both are finite numbers, if there are any."""
    points = [point for point in points if all(isinstance(value, int | float) and math.isfinite(value)
                                               for value in point)]
    if points:
        axes.plot(*zip(*points, strict=True), marker='.', **style)
        axes.legend()


def training_curves(runs: dict[str, list[dict]], log_scale: bool) -> Figure:
    """Panels of every loss and accuracy that runs recorded (their stats.jsonl), against thousands of images."""
    keys = list(dict.fromkeys(key for lines in runs.values() for line in lines for key, value in line.items()
                              if isinstance(value, int | float) and _panel(key)))
    panels = list(dict.fromkeys(_panel(key) for key in keys))
    figure = Figure(figsize=(5 * max(len(panels), 1), 3.6), dpi=1.5 * DPI, layout='constrained')
    axes = figure.subplots(1, max(len(panels), 1), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=False):
        for run, lines in runs.items():
            for key in (key for key in keys if _panel(key) == panel):
                points = [(line['nimg'] / 1000, line[key]) for line in lines
                          if 'nimg' in line and isinstance(line.get(key), int | float) and math.isfinite(line[key])]
                if points:
                    axis.plot(*zip(*points, strict=True), label=key if len(runs) == 1 else f'{run} {key}')
        axis.set(xlabel='thousands of images', title=panel)
        if panel == 'loss' and log_scale:
            axis.set_yscale('log')
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure


def _panel(key: str) -> str:
    """The panel that a statistic belongs to, '' for none."""
    return next((panel for panel in ('loss', 'accuracy', 'auc') if panel in key.lower()), '')
