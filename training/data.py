"""Image data sets held in memory as uint8, and the order in which training reads them."""

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import os

import numpy as np
import torch

from dnnlib.files import DAMAGED, resolve_path
from torch_utils import image_files
from torch_utils.images import from_uint8
from torch_utils.progress import progress
from torch_utils.transfer import upload

LABEL_FILE = 'dataset.json'
ON_DEVICE_BYTES = 2 << 30  # data sets below this size are kept on the GPU as a whole
_DECODE_CHUNK = 256

#----------------------------------------------------------------------------
# The data set.

class ImageData:
    """All images of a zip, a folder, an npz, or a folder of npz shards.

    Attributes: `images` uint8 [N, C, H, W]; `labels` int64 [N], or None where the source has none;
    `name`, `resolution`, `channels`, `num_classes` (largest label of the whole source, also where `max_images` takes a
    part of it, + 1; 0 without labels).

    What is read: an EDM-style zip or a folder of images, with labels from dataset.json or, for a folder, from one
    level of class subfolders in alphabetical order; an npz with `samples`, `arr_0` or `images` ([N, H, W, C] uint8)
    and, optionally, `label` (class indices or one-hot rows); a folder of `samples*.npz` shards of that kind. Shards
    and files come in the order of their names, with numbers in them compared as numbers.

    Args:
        path: where the data is.
        max_images: use at most so many images, a subset fixed by this number alone.
        resolution, channels: what the images must have; None accepts anything square.

    Raises FileNotFoundError, and ValueError with one line for an empty source, a damaged file, more than 8 bits per
    channel, mixed sizes, missing arrays or incomplete labels.
    """

    def __init__(self, path, max_images=None, resolution=None, channels=None, quiet=False):
        path = resolve_path(path)
        self.name = os.path.splitext(os.path.basename(os.path.normpath(path)))[0]
        shards = image_files.find_npz(path)
        read = _read_npz if shards else _read_files
        images, labels, self._classes = read(shards or path, max_images, quiet)
        self.images = torch.from_numpy(images)  # [N, C, H, W] uint8
        self.labels = None if labels is None else torch.from_numpy(labels)
        _check_shape(path, images.shape, resolution, channels)

    def __len__(self):
        return len(self.images)

    def digest(self) -> str:
        """The beginning of the SHA-256 of images and labels: tells whether a run goes on with the same data."""
        found = hashlib.sha256(str(list(self.images.shape)).encode())
        for tensor in (self.images, self.labels):
            if tensor is not None:
                found.update(tensor.flatten().numpy())
        return found.hexdigest()[:16]

    @property
    def channels(self):
        return self.images.shape[1]

    @property
    def resolution(self):
        return self.images.shape[2]

    @property
    def num_classes(self):
        return 0 if self.labels is None else self._classes


def _check_shape(path, shape, resolution, channels):
    _, c, h, w = shape
    if h != w:
        raise ValueError(f'{path} has images of {h}x{w} pixels; training needs square ones (see dataset_tool.py)')
    if resolution is not None and h != resolution:
        raise ValueError(f'{path} has images of {h}x{w} pixels, expected {resolution}x{resolution}')
    if channels is not None and c != channels:
        raise ValueError(f'{path} has images of {c} channels, expected {channels}')


def _chosen(labels, index):
    """(labels at `index`, number of classes of all labels); (None, 0) of None."""
    return (None, 0) if labels is None else (labels[index], int(labels.max()) + 1)


def _subset(count, max_images):
    """Ascending indices of the images to use."""
    if max_images is None or max_images >= count:
        return np.arange(count)
    return np.sort(np.random.RandomState(0).permutation(count)[:max_images])

#----------------------------------------------------------------------------
# Image files, in a folder or a zip.

def _read_files(path, max_images, quiet):
    every = image_files.list_files(path)
    names = [name for name in every if name.lower().endswith(image_files.IMAGE_SUFFIXES)]
    if not names:
        raise ValueError(f'{path} contains no images ({", ".join(image_files.IMAGE_SUFFIXES)}) and no samples*.npz')
    with image_files.open_files(path) as read:
        if LABEL_FILE in every:
            labels = _json_labels(read, path, names)
        else:
            labels = _folder_labels(names) if path.is_dir() else None
        index = _subset(len(names), max_images)
        images = _decode_all(read, [names[i] for i in index], quiet)
    return images, *_chosen(labels, index)


def _folder_labels(names):
    """Labels from class subfolders. EDM-style number folders (00000, 00001, ...) only split a long list."""
    folders = [name.split('/')[0] if name.count('/') == 1 else None for name in names]
    if None in folders or all(f.isdigit() and len(f) >= 5 for f in folders):
        return None
    index = {f: i for i, f in enumerate(sorted(set(folders)))}  # as torchvision's ImageFolder: 10 before 9
    return np.array([index[f] for f in folders], dtype=np.int64)


def _json_labels(read, path, names):
    try:
        pairs = json.loads(read(LABEL_FILE)).get('labels')
        table = None if pairs is None else dict(pairs)
    except (*DAMAGED, ValueError, TypeError, AttributeError) as error:  # the last three: JSON of another kind
        raise ValueError(f'{path}: {LABEL_FILE} does not hold labels: {error}') from None
    if table is None:
        return None
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f'{path}: {LABEL_FILE} has no label for {len(missing)} images, first {missing[0]}')
    return _class_indices(np.array([table[name] for name in names]), f'{path}: {LABEL_FILE}')


def _decode(read, name):
    pixels = image_files.decode_image(read, name, modes=('L', 'RGB', 'RGBA'))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)  # [C, H, W]


def _decode_all(read, names, quiet):
    """Decode into one preallocated array: [N, C, H, W] uint8."""
    shape = _decode(read, names[0]).shape
    images = np.empty([len(names), *shape], dtype=np.uint8)

    def work(begin):
        chunk = names[begin:begin + _DECODE_CHUNK]
        for i, name in enumerate(chunk, begin):
            pixels = _decode(read, name)
            if pixels.shape != shape:
                raise ValueError(f'mixed image shapes: {names[0]} is {list(shape)}, {name} is {list(pixels.shape)}')
            images[i] = pixels
        return len(chunk)

    workers = min(8, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool, _bar(len(names), quiet) as advance:
        futures = [pool.submit(work, begin) for begin in range(0, len(names), _DECODE_CHUNK)]
        try:
            for future in concurrent.futures.as_completed(futures):
                advance(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return images


@contextlib.contextmanager
def _bar(total, quiet):
    """Yields a function that counts images; shows them unless `quiet`."""
    if quiet:
        yield lambda count: None
    else:
        with progress(total=total, desc='reading images', unit='img') as bar:
            yield bar.update

#----------------------------------------------------------------------------
# npz files: one array is allocated, no shard is ever held as a whole.

def _read_npz(paths, max_images, quiet):
    arrays = [image_files.find_array(path, channels=(1, 3, 4)) for path in paths]
    shape = arrays[0].shape[1:]
    for array in arrays:
        if array.shape[1:] != shape:
            raise ValueError(f'mixed image shapes: {paths[0]} has {list(shape)}, {array.path} {list(array.shape[1:])}')
        if (array.label is None) != (arrays[0].label is None):
            raise ValueError(f'labels are in some shards only: {paths[0]} and {array.path} differ')
    total = sum(array.shape[0] for array in arrays)
    if total == 0:
        raise ValueError(f'{paths[0]} contains no images')
    index = _subset(total, max_images)
    h, w, c = shape
    images = np.empty([len(index), c, h, w], dtype=np.uint8)
    labels, position, filled = [], 0, 0
    with _bar(len(index), quiet) as advance:
        for array in arrays:
            for rows in image_files.read_rows(array, 0, array.shape[0]):
                keep = index[filled:np.searchsorted(index, position + len(rows))] - position
                images[filled:filled + len(keep)] = rows[keep].transpose(0, 3, 1, 2)
                filled, position = filled + len(keep), position + len(rows)
                advance(len(keep))
            if array.label is not None:
                labels.append(_npz_labels(array))
    return images, *_chosen(np.concatenate(labels) if labels else None, index)


def _npz_labels(array):
    try:
        with np.load(array.path, allow_pickle=False) as archive:
            labels = archive[array.label]
    except (*DAMAGED, ValueError) as error:
        raise ValueError(f'{array.path} is damaged: {error}') from None
    labels = _class_indices(labels, f'{array.path}: `{array.label}`')
    if len(labels) != array.shape[0]:
        raise ValueError(f'{array.path}: {array.shape[0]} images but {len(labels)} labels')
    return labels


def _class_indices(labels, name):
    """Class indices int64 [N] from class indices [N] or [N, 1] of any integer type, or one-hot rows."""
    if labels.ndim == 2 and labels.shape[1] == 1 and labels.dtype.kind in 'iu':  # a column of indices, not one class
        labels = labels[:, 0]
    if labels.ndim == 2 and len(labels) and np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all():
        return labels.argmax(axis=1).astype(np.int64)
    if labels.ndim != 1 or labels.dtype.kind not in 'iu' or (len(labels) and labels.min() < 0):
        raise ValueError(f'{name} is {labels.dtype} {list(labels.shape)}, expected class indices [N] or one-hot [N, K]')
    return labels.astype(np.int64)

#----------------------------------------------------------------------------
# The order of reading.

@functools.lru_cache(maxsize=2)
def _permutation(count, seed, epoch):
    return np.random.default_rng([seed, epoch, 0x0DA7A]).permutation(count)


def batch_indices(count, batch_size, seed, step):
    """Indices int64 [batch_size] of the global batch of one step.

    The data is read in epochs, each in its own random order; a batch may straddle two epochs. The result depends on
    these four numbers alone, so any step of a run can be repeated by itself, on any number of processes.
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
    a slice of the global batch. Images stay uint8 until they are on the device; a small data set is moved there once,
    of a large one each batch goes through pinned memory without waiting.

    Args:
        images: uint8 [N, C, H, W], on the host.
        labels: any tensor with N rows, or None.
    """

    def __init__(self, images, labels, batch_size, seed, device):
        self.batch_size, self.seed, self.device = batch_size, seed, torch.device(device)
        self.resident = self.device.type != 'cpu' and images.numel() < ON_DEVICE_BYTES
        self.images = images.to(self.device) if self.resident else images
        self.labels = labels.to(self.device) if self.resident and labels is not None else labels

    def __call__(self, step, rows):
        index = torch.from_numpy(batch_indices(len(self.images), self.batch_size, self.seed, step)[rows])
        if self.resident:
            index = upload(index, self.device)
        images = upload(self.images[index], self.device)
        labels = None if self.labels is None else upload(self.labels[index], self.device)
        return from_uint8(images), labels
