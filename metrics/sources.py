"""Images to be measured: shards of samples, image files or a zip, in a fixed order, streamed with flat memory."""

import concurrent.futures
import contextlib
import queue
import re
import threading
from pathlib import Path

import numpy as np
import torch

from dnnlib.files import resolve_path
from torch_utils import archives, image_files, image_labels
from torch_utils import distributed as dist
from torch_utils.image_store import ImageStore

SEED_NAME = re.compile(r'\d+\.\w+')  # generate.py's PNG files
BLOCK = 64  # image files decoded at a time


def open_source(path) -> 'ImageSource':
    """The images at `path`: a folder of samples*.npz, one .npz, a folder of image files, or a zip of them.

    Shards and files are ordered by name with numbers in them compared as numbers, so shards named by
    seed come in the order of seeds; of a folder with shards only these are read. Images are decoded as data sets are
    (turned as their EXIF orientation says; grey as RGB; opaque RGBA as RGB, transparency refused).
    Raises FileNotFoundError, and ValueError for a place without images.
    """
    path = resolve_path(path)
    shards = image_files.find_npz(path)
    return ShardSource(path, shards) if shards else FileSource(path)


class ImageSource:
    """Images in a fixed order; `len()` of them. Subclasses yield them in blocks."""

    def __init__(self, path: Path, count: int):
        self.path, self._count = path, count
        if not count:
            raise ValueError(f'{path} holds no images (samples*.npz, {image_files.KINDS})')

    def __len__(self) -> int:
        return self._count

    @property
    def name(self) -> str:
        """The last part of the path, as the published script prints it."""
        return self.path.resolve().name

    @property
    def identity(self) -> str:
        """Text that is another one for other images: where they are, and when they changed last."""
        return f'{self.path.resolve()}|{self.path.stat().st_mtime_ns}'

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
        for images in read_ahead(regroup(self.blocks(start, stop), batch, self.path)):
            yield torch.from_numpy(images.transpose(0, 3, 1, 2).copy())  # [N, C, H, W]


class ShardSource(ImageSource):
    """npz files with `samples` (or `arr_0`, `images`) uint8 [N, H, W, C]; counted by their headers only."""

    def __init__(self, path: Path, shards: list[Path]):
        self.shards = [image_labels.find_images(shard, channels=(1, 3, 4))[0] for shard in shards]
        super().__init__(path, sum(shard.shape[0] for shard in self.shards))

    def blocks(self, start, stop):
        first = 0  # position of the shard's first image
        for shard in self.shards:
            low, high = max(start - first, 0), min(stop - first, shard.shape[0])
            if low < high:
                for rows in archives.read_rows(shard, low, high):
                    yield image_files.to_rgb(rows, f'an image in {shard.path}')
            first += shard.shape[0]


class FileSource(ImageSource):
    """Image files in a folder and its subfolders, or in a zip, decoded by a few threads."""

    def __init__(self, path: Path):
        listing = image_files.list_images(path)
        self.names = listing.names
        super().__init__(path, len(self.names))
        if listing.skipped:
            dist.print0(f'{path}: {listing.note()}')

    def choose(self, count, blocks=1):
        """As for any source. Where not all are measured at once, their order becomes a random one, always the same.

        Files often lie in order of their classes, so the first ones would be some classes. Files that are named by
        seeds, as generate.py's, stay in the order of seeds.
        """
        super().choose(count, blocks)
        if count < len(self) and not all(SEED_NAME.fullmatch(name) for name in self.names):
            self.names = [self.names[i] for i in np.random.RandomState(0).permutation(len(self))]

    def blocks(self, start, stop):
        with image_files.open_files(self.path) as read, concurrent.futures.ThreadPoolExecutor(4) as pool:
            def decode(name):
                shown = f'{name} in {self.path}'
                return image_files.to_rgb(image_files.decode_image(read, name, shown), shown)

            for low in range(start, stop, BLOCK):
                images = list(pool.map(decode, self.names[low:min(low + BLOCK, stop)]))
                for name, image in zip(self.names[low:], images):
                    if image.shape != images[0].shape:
                        raise ValueError(f'images of different sizes in {self.path}: {self.names[low]} and {name}')
                yield np.stack(images)


class StoreSource(ImageSource):
    """A data set (`torch_utils.image_store`), measured like a folder of samples."""

    def __init__(self, path: Path, images: ImageStore):
        super().__init__(path, len(images))
        self.images = images

    def blocks(self, start, stop):
        for block in self.images.select(slice(start, stop)).blocks():  # [n, C, H, W]
            yield image_files.to_rgb(block.transpose(0, 2, 3, 1), f'an image in {self.path}')


def regroup(blocks, batch: int, path):
    """Blocks of any length -> new arrays of `batch` images, the last one of what remains."""
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
