"""Images to be measured: shards of samples, image files or a zip, in a fixed order, streamed with flat memory."""

import concurrent.futures
import contextlib
import io
import math
import queue
import re
import threading
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from dnnlib.files import DAMAGED, resolve_path

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp')
GRID_NAME = re.compile(r'sample_\d+\.png')  # the pictures that generate.py puts beside its shards
SEED_NAME = re.compile(r'\d+\.\w+')  # its PNG files
ARRAYS = ('samples', 'arr_0', 'images')
BLOCK = 256  # images decoded or inflated at a time


def open_source(path) -> 'ImageSource':
    """The images at `path`: a folder of samples*.npz, one .npz, a folder of image files, or a zip of them.

    Shards and files are ordered by name with numbers in them compared as numbers, so shards named by
    seed come in the order of seeds; a folder with shards is read from those alone.
    Raises FileNotFoundError, and ValueError for a place without images.
    """
    path = resolve_path(path)
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist')
    if path.is_dir():
        shards = sorted(path.glob('samples*.npz'), key=lambda shard: natural_key(shard.name))
        return ShardSource(path, shards) if shards else FileSource(path)
    if path.suffix == '.npz':
        return ShardSource(path, [path])
    if zipfile.is_zipfile(path):
        return FileSource(path)
    raise ValueError(f'{path} is neither a folder nor a complete .npz or .zip file')


def natural_key(name: str) -> list:
    """A sorting key that puts samples_731 before samples_20044."""
    return [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', name)]


class ImageSource:
    """Images in a fixed order; `len()` of them. Subclasses yield them in blocks."""

    def __init__(self, path: Path, count: int):
        self.path, self._count = path, count
        if not count:
            raise ValueError(f'{path} holds no images (samples*.npz, {", ".join(IMAGE_SUFFIXES)})')

    def __len__(self) -> int:
        return self._count

    @property
    def name(self) -> str:
        """The last part of the path, as the published script prints it."""
        return self.path.resolve().name

    def choose(self, count: int, blocks: int = 1) -> None:
        """Settle which images come first, before `blocks` times `count` of them are measured.

        Raises ValueError where there are fewer: a distance over fewer is another one.
        """
        if len(self) < count * blocks:
            raise ValueError(f'{self.path} holds {len(self)} images, fewer than the {count * blocks} asked for; '
                             'make more or lower --num_samples')

    def blocks(self, start: int, stop: int):
        """Yields uint8 [n, H, W, C] arrays of any n, together images start to stop - 1."""
        raise NotImplementedError

    def batches(self, start: int, stop: int, batch: int):
        """Yields uint8 tensors [batch, C, H, W] (the last may be smaller) of images start to stop - 1.

        A thread reads ahead. Raises ValueError for a damaged file and for images of different shapes.
        """
        for images in read_ahead(_regroup(self.blocks(start, stop), batch, self.path)):
            yield torch.from_numpy(images.transpose(0, 3, 1, 2).copy())  # [N, C, H, W]


class ShardSource(ImageSource):
    """npz files with `samples` (or `arr_0`, `images`) uint8 [N, H, W, C]; counted by their headers alone."""

    def __init__(self, path: Path, shards: list[Path]):
        self.shards = [(shard, *_shard_header(shard)) for shard in shards]  # path, array name, shape
        super().__init__(path, sum(shape[0] for _, _, shape in self.shards))

    def blocks(self, start, stop):
        first = 0  # position of the shard's first image
        for shard, array, shape in self.shards:
            low, high = max(start - first, 0), min(stop - first, shape[0])
            if low < high:
                yield from _read_rows(shard, array, shape, low, high)
            first += shape[0]


class FileSource(ImageSource):
    """Image files in a folder and its subfolders, or in a zip, decoded by a few threads."""

    def __init__(self, path: Path):
        self.zipped = path.is_file()
        if self.zipped:
            try:
                with zipfile.ZipFile(path) as archive:
                    names = archive.namelist()
            except DAMAGED as error:
                raise ValueError(f'{path} is not a complete zip file: {error}') from None
        else:
            names = [file.relative_to(path).as_posix() for file in path.rglob('*') if file.is_file()]
        self.names = sorted((name for name in names if name.lower().endswith(IMAGE_SUFFIXES)
                             and not GRID_NAME.fullmatch(name)), key=natural_key)
        super().__init__(path, len(self.names))

    def choose(self, count, blocks=1):
        """As for any source. Where not all are measured at once, their order becomes a random one, always the same.

        Files often lie in order of their classes, so the first ones would be some classes. Files that are named by
        seeds, as generate.py's, stay in the order of seeds.
        """
        super().choose(count, blocks)
        if count < len(self) and not all(SEED_NAME.fullmatch(name) for name in self.names):
            self.names = [self.names[i] for i in np.random.RandomState(0).permutation(len(self))]

    def blocks(self, start, stop):
        with contextlib.ExitStack() as stack:
            pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(4))
            archive = stack.enter_context(zipfile.ZipFile(self.path)) if self.zipped else None

            def decode(name):
                try:
                    blob = archive.read(name) if archive else (self.path / name).read_bytes()
                    with PIL.Image.open(io.BytesIO(blob)) as image:
                        if image.mode.startswith(('I', 'F')):  # a conversion would cut off what is above 255
                            raise ValueError(f'{name} in {self.path} has 16 or 32 bits per pixel (mode {image.mode}); '
                                             'make it one of 8 bits')
                        return np.asarray(image.convert('RGB'))
                except DAMAGED as error:
                    raise ValueError(f'{name} in {self.path} is not a readable image: {error}') from None

            for low in range(start, stop, BLOCK):
                images = list(pool.map(decode, self.names[low:min(low + BLOCK, stop)]))
                for name, image in zip(self.names[low:], images):
                    if image.shape != images[0].shape:
                        raise ValueError(f'images of different sizes in {self.path}: {self.names[low]} and {name}')
                yield np.stack(images)


def _shard_header(shard):
    """Name and shape of the image array. Raises ValueError where there is none."""
    try:
        with zipfile.ZipFile(shard) as archive:
            members = {name.removesuffix('.npy') for name in archive.namelist()}
            array = next((name for name in ARRAYS if name in members), None)
            if array is not None:
                with archive.open(f'{array}.npy') as file:
                    shape, fortran, dtype = _npy_header(file)
    except (*DAMAGED, ValueError) as error:
        raise ValueError(f'{shard} is not a complete npz file: {error}') from None
    if array is None:
        raise ValueError(f'{shard} has no array {", ".join(ARRAYS)}; it holds {", ".join(sorted(members))}')
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or fortran:
        raise ValueError(f'{shard}: {array} is {dtype} {list(shape)}, expected uint8 [N, H, W, 3]')
    return array, shape


def _npy_header(file):
    """Shape, Fortran order and dtype of a .npy stream, which is left at the first element."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _read_rows(shard, array, shape, low, high):
    """Yields rows low to high - 1 of one array in blocks, without holding the whole array."""
    row_bytes = math.prod(shape[1:])
    try:
        with zipfile.ZipFile(shard) as archive, archive.open(f'{array}.npy') as file:
            _npy_header(file)
            for skipped in range(0, low, BLOCK):  # a deflated stream cannot jump
                file.read(min(BLOCK, low - skipped) * row_bytes)
            for first in range(low, high, BLOCK):
                count = min(BLOCK, high - first)
                rows = np.frombuffer(file.read(count * row_bytes), dtype=np.uint8).reshape(count, *shape[1:])
                yield np.repeat(rows, 3, axis=3) if shape[3] == 1 else rows
    except (*DAMAGED, ValueError) as error:  # a short read fails to reshape
        raise ValueError(f'{shard} is damaged: {error}') from None


def _regroup(blocks, batch, path):
    """Blocks of any length -> arrays of `batch` images, the last one of what remains."""
    held, count = [], 0
    for block in blocks:
        if held and block.shape[1:] != held[0].shape[1:]:
            raise ValueError(f'images of different sizes in {path}: {list(held[0].shape[1:])} '
                             f'and {list(block.shape[1:])}')
        held.append(block)
        count += len(block)
        while count >= batch:
            joined = np.concatenate(held)
            yield joined[:batch]
            held, count = [joined[batch:]], count - batch
    if count:
        yield np.concatenate(held)


def read_ahead(items, depth: int = 4):
    """Yields what `items` yields, while a thread already fetches the next `depth`; its errors are raised here."""
    box: queue.Queue = queue.Queue(maxsize=depth)
    stopped = threading.Event()
    end = object()

    def put(item):
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                box.put(item, timeout=0.1)
                return

    def fetch():
        try:
            for item in items:
                put((item, None))
                if stopped.is_set():
                    break
            put((end, None))
        except BaseException as error:  # handed over, raised by the consumer
            put((end, error))

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    try:
        while True:
            item, error = box.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
