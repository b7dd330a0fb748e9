"""Images that come from Python instead of files: a tensor, samples, or anything that yields them."""

import numpy as np
import torch

from torch_utils.images import as_uint8

from .sources import ImageSource, open_source, regroup


def as_source(images):
    """What `measure` reads: a path is opened by `open_source`, an ImageSource stays one, all else is an ImageStream."""
    if isinstance(images, ImageSource | ImageStream):
        return images
    if isinstance(images, str) or hasattr(images, '__fspath__'):
        return open_source(images)
    return ImageStream(images)


class ImageStream:
    """Images in memory or on their way, read once and in order; their number need not be known.

    images: anything that `torch_utils.images.as_uint8` takes (floats [n, C, H, W] in [-1, 1], uint8, an object with
    `.images`), or an iterable of such things, each with any number n of images. One process reads them.
    """

    path = None

    def __init__(self, images, name: str = 'images'):
        in_memory = isinstance(images, torch.Tensor | np.ndarray) or hasattr(images, 'images')
        self.items = iter([images] if in_memory else images)
        self.rest = None  # what was read and not yet asked for, uint8 [n, H, W, C]
        self.position = 0  # of the next image
        self.name = name

    def choose(self, count: int, blocks: int = 1) -> None:
        """Nothing is known ahead; `measure` raises ValueError for too few images."""

    def batches(self, start: int, stop: int | None, batch: int):
        """Yields uint8 tensors [batch, 3, H, W], the last of what remains, of images start to stop - 1, or of all left.

        So rounding does not depend on the parts in which the images come. `start` is where the last call ended. Raises
        ValueError for images that nothing can be made of.
        """
        if start != self.position:
            raise ValueError(f'images from Python are read once and in order: the next is {self.position}, not {start}')
        for images in regroup(self._parts(stop, batch), batch, self.name):
            yield torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)  # [n, 3, H, W]

    def _parts(self, stop: int | None, most: int):
        """Arrays [n, H, W, C], n <= `most`, of the next images, up to `stop`, as they come."""
        while stop is None or self.position < stop:
            if self.rest is None or not len(self.rest):
                item = next(self.items, None)
                if item is None:
                    return
                self.rest = as_uint8(item)
            size = most if stop is None else min(most, stop - self.position)
            images, self.rest = self.rest[:size], self.rest[size:]
            self.position += len(images)
            yield images
