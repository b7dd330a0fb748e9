"""Where images lie, in which order, and how they are read: npz files, and image files in a folder or a zip."""

import contextlib
import io
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from dnnlib.files import DAMAGED

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp')
ARRAYS = ('samples', 'arr_0', 'images')  # the first of them that an npz has holds its images
LABELS = ('label', 'labels')  # likewise
BLOCK = 256  # rows of an array read at a time


def natural_key(name: str) -> tuple:
    """A sorting key that puts samples_731 before samples_20044, and 01 always on the same side of 1."""
    parts = re.split(r'(\d+)', name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def find_npz(path: Path) -> list[Path]:
    """The npz files at `path` in natural order: the samples*.npz of a folder, or one npz; [] where image files are.

    Raises FileNotFoundError, PermissionError, and ValueError for a file that is neither npz nor zip.
    """
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist')
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):  # else it would look empty or damaged
        raise PermissionError(f'{path} may not be read by this user')
    if path.is_dir():
        return sorted(path.glob('samples*.npz'), key=lambda shard: natural_key(shard.name))
    if path.suffix == '.npz':
        return [path]
    if not zipfile.is_zipfile(path):
        raise ValueError(f'{path} is neither a folder nor a complete .npz or .zip file')
    return []

#----------------------------------------------------------------------------
# Image files.

def list_files(path: Path) -> list[str]:
    """Names of all files below a folder or in a zip, in natural order. Raises ValueError for a damaged zip."""
    if path.is_dir():
        names = [(Path(root).relative_to(path) / name).as_posix() for root, _, files in os.walk(path) for name in files]
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except DAMAGED as error:
            raise ValueError(f'{path} is not a complete zip file: {error}') from None
    return sorted(names, key=natural_key)


@contextlib.contextmanager
def open_files(path: Path) -> Iterator[Callable[[str], bytes]]:
    """Yields `read(name)`, which gives the bytes of a file that `list_files` names; threads may share it."""
    if path.is_dir():
        yield lambda name: (path / name).read_bytes()
    else:
        with zipfile.ZipFile(path) as archive:
            yield archive.read


def decode_image(read: Callable[[str], bytes], name: str, modes=('RGB',), shown: str | None = None) -> np.ndarray:
    """An image file as uint8 [H, W] or [H, W, C]; of a mode of PIL that is not among `modes`, it becomes RGB.

    Raises ValueError for a damaged file and for more than 8 bits per channel; it calls the file `shown` (the name).
    """
    shown = shown or name
    try:
        with PIL.Image.open(io.BytesIO(read(name))) as image:
            if image.mode.startswith(('I', 'F')):  # a conversion would cut off what is above 255
                raise ValueError(f'{shown} has 16 or 32 bits per pixel (mode {image.mode}); make it one of 8 bits')
            return np.asarray(image if image.mode in modes else image.convert('RGB'))
    except DAMAGED as error:
        raise ValueError(f'{shown} is not a readable image: {error}') from None

#----------------------------------------------------------------------------
# Arrays of images in npz files, streamed: no file is ever held as a whole.

class ImageArray(NamedTuple):
    """Where an npz has its images: the array `name`, uint8 of `shape` [N, H, W, C]; `label`: that of their labels."""

    path: Path
    name: str
    shape: tuple
    label: str | None


def find_array(path: Path, channels: tuple) -> ImageArray:
    """The images of an npz, from headers alone.

    Raises ValueError for a damaged file, for none of `ARRAYS`, and for one that is not uint8 with C in `channels`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name[:-4] for name in archive.namelist() if name.endswith('.npy')}
            array = next((name for name in ARRAYS if name in members), None)
            if array is not None:
                with archive.open(f'{array}.npy') as file:
                    shape, fortran, dtype = _npy_header(file)
    except (*DAMAGED, ValueError) as error:
        raise ValueError(f'{path} is not a complete npz file: {error}') from None
    if array is None:
        raise ValueError(f'{path} has no array {", ".join(ARRAYS)}; it holds {", ".join(sorted(members)) or "none"}')
    if dtype != np.uint8 or len(shape) != 4 or fortran or shape[3] not in channels:
        raise ValueError(f'{path}: `{array}` is {dtype} {list(shape)}, expected uint8 [N, H, W, C], '
                         f'C one of {", ".join(map(str, channels))}')
    return ImageArray(path, array, shape, next((name for name in LABELS if name in members), None))


def _npy_header(file):
    """Shape, Fortran order and dtype of a .npy stream, which is left at the first element."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def read_rows(array: ImageArray, low: int, high: int) -> Iterator[np.ndarray]:
    """Yields images low to high - 1 in blocks, uint8 [<= BLOCK, H, W, C]. Raises ValueError for a damaged file."""
    row_bytes = math.prod(array.shape[1:])
    try:
        with zipfile.ZipFile(array.path) as archive, archive.open(f'{array.name}.npy') as file:
            _npy_header(file)
            for skipped in range(0, low, BLOCK):  # a deflated stream cannot jump
                file.read(min(BLOCK, low - skipped) * row_bytes)
            for first in range(low, high, BLOCK):
                count = min(BLOCK, high - first)
                yield np.frombuffer(file.read(count * row_bytes), dtype=np.uint8).reshape(count, *array.shape[1:])
    except (*DAMAGED, ValueError) as error:  # a short read fails to reshape
        raise ValueError(f'{array.path} is damaged: {error}') from None
