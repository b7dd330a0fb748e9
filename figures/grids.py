"""Grids side by side."""

import numpy as np
from matplotlib.figure import Figure

from .canvas import DPI


def side_by_side(grids: list[np.ndarray], titles: list[str], zoom: int) -> Figure:
    """A figure in which each pixel of the grids, uint8 [H, W, 3], is zoom x zoom pixels, with titles above."""
    gap, head = 10, 26  # pixels
    height = zoom * max(grid.shape[0] for grid in grids) + head + gap
    width = zoom * sum(grid.shape[1] for grid in grids) + gap * (len(grids) + 1)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    left = gap
    for grid, title in zip(grids, titles, strict=True):
        h, w = zoom * grid.shape[0], zoom * grid.shape[1]
        axes = figure.add_axes([left / width, 1 - (head + h) / height, w / width, h / height])
        axes.imshow(grid, interpolation='nearest')
        axes.set_axis_off()
        axes.set_title(title, fontsize=11, pad=4)
        left += w + gap
    return figure
