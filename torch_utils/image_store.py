"""Images that stay on disk: read in order with constant memory, or any rows on request."""

import collections
import concurrent.futures
import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from . import archives, image_files

CHUNK = 256  # image files that a thread decodes at a time


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


class ImageStore:
    """Images uint8 [N, C, H, W] that need not be in memory; `store[rows]` reads some of them into a tensor.

    `select(rows)` is the same store restricted to these rows, in ascending order. Subclasses hold `rows`, int64
    positions in the source.
    """

    random_access = True  # whether a row can be read without all rows before it
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """[N, C, H, W]."""
        return torch.Size([len(self), *self.image_shape])

    @property
    def image_shape(self) -> tuple:
        """(C, H, W) of every image."""
        raise NotImplementedError

    def numel(self) -> int:
        return self.shape.numel()

    def select(self, rows: np.ndarray | slice) -> 'ImageStore':
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, rows=self.rows[rows])
        return other

    def __getitem__(self, index) -> torch.Tensor:
        """Rows by slice or integers (tensor, array, list): uint8 [n, C, H, W]; by a single integer: [C, H, W].

        Raises ValueError.
        """
        if isinstance(index, int):
            return self[[index]][0]
        positions = self.rows[index.cpu().numpy() if torch.is_tensor(index) else index]
        images = archives.empty([len(positions), *self.image_shape], np.uint8, f'{len(positions)} images')
        self.read(positions, images)
        return torch.from_numpy(images)

    def read(self, positions: np.ndarray, out: np.ndarray) -> None:
        """Read the images at `positions` of the source into `out` [n, C, H, W]. Raises ValueError."""
        raise NotImplementedError

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields all images in order, uint8 [n, C, H, W] with any n. Raises ValueError for damage."""
        raise NotImplementedError

    def map(self, function: Callable) -> Iterator:
        """Yields function(image) for each image [H, W, C] in order, computed by threads on all cores."""
        raise NotImplementedError

    def load(self, advance: Callable[[int], None] = lambda count: None) -> torch.Tensor:
        """All images as one tensor; `advance(n)` is called for every n images that are read. Raises ValueError."""
        images = archives.empty(tuple(self.shape), np.uint8, f'{len(self)} images of {self.shape[3]}x{self.shape[2]}')
        filled = 0
        for block in self.blocks():
            images[filled:filled + len(block)] = block
            filled += len(block)
            advance(len(block))
        return torch.from_numpy(images)


def _mapped(function: Callable, items: Iterator) -> Iterator:
    """Yields function(item) in order, computed a few items ahead by one thread per core."""
    ahead = 8 * cores()
    waiting: collections.deque = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(cores())
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class FileStore(ImageStore):
    """Image files in a folder or a zip, decoded on request."""

    def __init__(self, path: Path, names: list[str]):
        self.path, self.names, self.rows = path, names, np.arange(len(names))
        self._open = contextlib.ExitStack()
        self.read_file = self._open.enter_context(image_files.open_files(path))  # the bytes of a file by its name

    def decode(self, position: int) -> np.ndarray:
        """One image, uint8 [H, W, C]; they may differ in size. Raises ValueError."""
        return image_files.decode_image(self.read_file, self.names[position])

    @functools.cached_property
    def image_shape(self):
        height, width, channels = self.decode(0).shape
        return channels, height, width

    def read(self, positions, out):
        expected = self.image_shape

        def work(part):
            for i in part:
                pixels = self.decode(positions[i]).transpose(2, 0, 1)  # [C, H, W]
                if pixels.shape != expected:
                    raise ValueError(
                        f'mixed image shapes: {self.names[0]} is {list(expected)}, '
                        f'{self.names[positions[i]]} is {list(pixels.shape)} (dataset_tool.py zip makes them alike)')
                out[i] = pixels

        parts = [range(low, min(low + 16, len(positions))) for low in range(0, len(positions), 16)]
        collections.deque(_mapped(work, parts) if len(parts) > 1 else map(work, parts), maxlen=0)

    def blocks(self):
        for low in range(0, len(self), CHUNK):
            positions = self.rows[low:low + CHUNK]
            block = np.empty([len(positions), *self.image_shape], np.uint8)
            self.read(positions, block)
            yield block

    def map(self, function):
        return _mapped(lambda position: function(self.decode(position)), iter(self.rows))


class ArrayStore(ImageStore):
    """Arrays of npz files, one after the other."""

    def __init__(self, arrays: list[archives.Array]):
        self.arrays = arrays
        self.random_access = all(array.offset is not None and not array.fortran for array in arrays)
        self.first = np.cumsum([0] + [array.shape[0] for array in arrays])  # position of each array's first image
        self.rows = np.arange(self.first[-1])

    @property
    def image_shape(self):
        height, width, channels = self.arrays[0].shape[1:]
        return channels, height, width

    def read(self, positions, out):
        owner = np.searchsorted(self.first, positions, side='right') - 1
        for index, array in enumerate(self.arrays):
            mine = np.flatnonzero(owner == index)
            pixels = np.empty([len(mine), *array.shape[1:]], np.uint8)
            archives.read_rows_at(array, positions[mine] - self.first[index], pixels)
            out[mine] = pixels.transpose(0, 3, 1, 2)

    def blocks(self):
        for rows in self._rows():
            yield rows.transpose(0, 3, 1, 2)

    def _rows(self):
        """All images in order, [n, H, W, C]."""
        for array, first in zip(self.arrays, self.first):
            low, high = np.searchsorted(self.rows, [first, first + array.shape[0]])
            mine = self.rows[low:high] - first
            if not len(mine):
                continue
            position, done = int(mine[0]), 0
            for rows in archives.read_rows(array, position, int(mine[-1]) + 1):
                keep = mine[done:np.searchsorted(mine, position + len(rows))] - position
                if len(keep):
                    yield rows[keep]
                done, position = done + len(keep), position + len(rows)

    def map(self, function):
        return _mapped(function, (image for rows in self._rows() for image in rows))


class HeldStore(ImageStore):
    """Images in memory, uint8 [N, H, W, C]."""

    def __init__(self, images: np.ndarray):
        self.images, self.rows = images, np.arange(len(images))

    @property
    def image_shape(self):
        height, width, channels = self.images.shape[1:]
        return channels, height, width

    def read(self, positions, out):
        out[:] = self.images[positions].transpose(0, 3, 1, 2)

    def blocks(self):
        for low in range(0, len(self), CHUNK):
            yield self.images[self.rows[low:low + CHUNK]].transpose(0, 3, 1, 2)

    def map(self, function):
        return _mapped(function, (self.images[row] for row in self.rows))


class JoinedStore(ImageStore):
    """Stores or tensors of equal shapes, one after the other."""

    def __init__(self, parts: list):
        self.parts = parts
        self.starts = np.cumsum([0, *map(len, parts)])
        self.rows = np.arange(self.starts[-1])

    @property
    def image_shape(self):
        return tuple(self.parts[0].shape[1:])

    def read(self, positions, out):
        for part, start, stop in zip(self.parts, self.starts[:-1], self.starts[1:], strict=True):
            inside = np.flatnonzero((positions >= start) & (positions < stop))
            if len(inside):
                out[inside] = part[torch.from_numpy(positions[inside] - start)].numpy()


def take(images, rows: torch.Tensor):
    """Rows of a tensor as a tensor, or of a store as a store, without reading anything into memory."""
    return images.select(rows.numpy()) if isinstance(images, ImageStore) else images[rows]


def join(parts: list):
    """Tensors joined to a tensor; if one of the parts is a store, to a store."""
    return torch.cat(parts) if all(map(torch.is_tensor, parts)) else JoinedStore(parts)
