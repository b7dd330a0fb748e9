"""Samples as a notebook shows them, without matplotlib."""

import PIL.Image

from torch_utils.images import as_uint8, image_grid


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
