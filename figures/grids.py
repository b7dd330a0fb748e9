"""Grids: pictures of many samples."""

import numpy as np
import PIL.Image
from matplotlib.figure import Figure

from torch_utils.images import as_uint8, image_grid

from .canvas import DPI


def show(samples, columns: int | None = None) -> PIL.Image.Image:
    """A grid of samples, row by row, as a PIL image; a notebook shows it.

    samples: sampling.Samples, or images as `torch_utils.images.as_uint8` takes them (floats [N, C, H, W] in [-1, 1], or
    uint8). columns: samples in a row; None: a square. Raises ValueError for other shapes and for no samples.
    """
    images = as_uint8(samples)  # [N, H, W, C]
    if not len(images):
        raise ValueError('there are no samples to show')
    grid = image_grid(images, columns)  # [H', W', C]
    return PIL.Image.fromarray(grid[:, :, 0] if grid.shape[2] == 1 else grid)


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
