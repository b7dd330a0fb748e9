"""Image data sets, in memory or read during training, and the order in which training reads them."""

import concurrent.futures
import contextlib
import functools
import hashlib
import os

import numpy as np
import torch

from torch_utils import distributed as dist
from torch_utils.image_source import open_images
from torch_utils.image_store import ImageStore
from torch_utils.images import from_uint8
from torch_utils.progress import progress
from torch_utils.transfer import upload

HELD_BYTES = 1 << 30  # data sets up to this size are held in memory; larger ones are read during training
ON_DEVICE_BYTES = 2 << 30  # data sets below this size are kept on the GPU as a whole
AHEAD = 8  # most batches, or parts of batches, that are read ahead

#----------------------------------------------------------------------------
# The data set.

class ImageData:
    """The images of a source with their labels; `torch_utils.image_source.open_images` says what can be read.

    Attributes: `images` uint8 [N, C, H, W], a tensor, or for more than HELD_BYTES a store with the same indexing that
    reads them on request; `labels` int64 [N], or None if the source has none; `classes` [[number, name, images]],
    JSON-able, [] without labels; `why_no_labels`, '' if there is nothing to say; `name`, `resolution`, `channels`;
    `num_classes`, one more than the largest class number of the whole source (even if `max_images` takes only a part),
    0 without labels.

    Args:
        path: the source of the images.
        max_images: use at most this many images, a subset that depends only on this number.
        resolution, channels: those that the images must have; None accepts any square images.
        quiet: show no bar, and do not print what was found (classes, skipped files).

    Raises FileNotFoundError, and ValueError with one line for an empty source, a damaged file, more than 8 bits per
    channel, mixed sizes, missing arrays or incomplete labels.
    """

    def __init__(self, path, max_images=None, resolution=None, channels=None, quiet=False):
        source = open_images(path).subset(max_images)
        self.name = os.path.splitext(os.path.basename(os.path.normpath(source.path)))[0]
        images, labels = source.images, source.labels
        _check_shape(source.path, images.shape, resolution, channels)
        self.labels = None if labels.indices is None else torch.from_numpy(labels.indices)
        self.classes, self._all_classes = labels.classes(), labels.num_classes
        self.why_no_labels, self._quiet, self._count = labels.note, quiet, len(images)
        for line in () if quiet else source.describe():
            dist.print0(line)
        if images.numel() <= HELD_BYTES or not images.random_access:
            with self._bar('reading images') as advance:
                images = images.load(advance)
        self.images: torch.Tensor | ImageStore = images

    def __len__(self):
        return len(self.images)

    def digest(self) -> str:
        """The first digits of the SHA-256 of images and labels, to check that a run resumes with the same data."""
        found = hashlib.sha256(str(list(self.images.shape)).encode())
        if torch.is_tensor(self.images):
            found.update(self.images.flatten().numpy())
        else:
            with self._bar('checking images') as advance:
                for block in self.images.blocks():
                    found.update(np.ascontiguousarray(block))
                    advance(len(block))
        if self.labels is not None:
            found.update(self.labels.numpy())
        return found.hexdigest()[:16]

    @contextlib.contextmanager
    def _bar(self, desc):
        """Yields a function that counts images; shows them unless quiet."""
        if self._quiet:
            yield lambda count: None
        else:
            with progress(total=self._count, desc=desc, unit='img') as bar:
                yield bar.update

    @property
    def num_classes(self):
        return 0 if self.labels is None else self._all_classes

    @property
    def channels(self):
        return self.images.shape[1]

    @property
    def resolution(self):
        return self.images.shape[2]


def _check_shape(path, shape, resolution, channels):
    _, c, h, w = shape
    if h != w:
        raise ValueError(f'{path} has images of {h}x{w} pixels; training needs square ones (see dataset_tool.py)')
    if resolution is not None and h != resolution:
        raise ValueError(f'{path} has images of {h}x{w} pixels, expected {resolution}x{resolution}')
    if channels is not None and c != channels:
        raise ValueError(f'{path} has images of {c} channels, expected {channels}')

#----------------------------------------------------------------------------
# The order of reading.

@functools.lru_cache(maxsize=2)
def _permutation(count, seed, epoch):
    return np.random.default_rng([seed, epoch, 0x0DA7A]).permutation(count)


def batch_indices(count, batch_size, seed, step):
    """Indices int64 [batch_size] of the global batch of one step.

    The data is read in epochs, each in its own random order; a batch may straddle two epochs. The result depends only
    on these four numbers, so any step of a run can be repeated by itself, on any number of processes.
    """
    begin = step * batch_size
    end = begin + batch_size
    parts = []
    while begin < end:
        epoch, offset = divmod(begin, count)
        part = _permutation(count, seed, epoch)[offset:offset + end - begin]
        parts.append(part)
        begin += len(part)
    return np.concatenate(parts)


class BatchLoader:
    """Rows of the global batch of any step, on the device.

    `loader(step, rows)` returns images float32 [n, C, H, W] in [-1, 1] and labels (None without them), for `rows`,
    a slice of the global batch. Images stay uint8 until they are on the device. A small data set is moved there once;
    batches of a large one are copied through pinned memory without waiting. Images on disk are read one step ahead.

    Args:
        images: uint8 [N, C, H, W] on the host, a tensor or an `ImageStore`.
        labels: any tensor with N rows, or None.
    """

    def __init__(self, images, labels, batch_size, seed, device):
        self.batch_size, self.seed, self.device = batch_size, seed, torch.device(device)
        self.resident = self.device.type != 'cpu' and images.numel() < ON_DEVICE_BYTES
        self.images = images[:].to(self.device) if self.resident else images
        self.labels = labels.to(self.device) if self.resident and labels is not None else labels
        self._streamed = not self.resident and not torch.is_tensor(images)
        self._ahead: dict[tuple, concurrent.futures.Future] = {}  # (step, first row, last row + 1) -> images
        self._reader = concurrent.futures.ThreadPoolExecutor(1) if self._streamed else None

    def __call__(self, step, rows):
        index = torch.from_numpy(batch_indices(len(self.images), self.batch_size, self.seed, step)[rows])
        if self.resident:
            index = upload(index, self.device)
        images = self._read(step, rows, index) if self._streamed else self.images[index]
        labels = None if self.labels is None else upload(self.labels[index], self.device)
        return from_uint8(upload(images, self.device)), labels

    def _read(self, step, rows, index):
        """Images of a store, which may have been read already; reading the same rows of the next step starts."""
        found = self._ahead.pop((step, rows.start, rows.stop), None)
        images = self.images[index] if found is None else found.result()
        for key in [key for key in self._ahead if key[0] not in (step, step + 1)]:  # after a jump
            self._ahead.pop(key).cancel()
        if len(self._ahead) < AHEAD:
            following = batch_indices(len(self.images), self.batch_size, self.seed, step + 1)[rows]
            self._ahead[step + 1, rows.start, rows.stop] = self._reader.submit(self.images.__getitem__, following)
        return images
