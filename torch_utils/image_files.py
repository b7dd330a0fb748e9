"""Image files in a folder or a zip: listing, order and decoding."""

import collections
import contextlib
import functools
import io
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

from .archives import MAX_MEMBER, open_zip, read_member, reason

# What pillow decodes by itself; some of its other formats start programs (EPS) or have no limit (FITS).
FORMATS = ('PNG', 'JPEG', 'BMP', 'WEBP', 'TIFF', 'PPM', 'GIF', 'AVIF')
SUFFIXES = ('.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.bmp', '.dib', '.webp', '.tif', '.tiff', '.ppm', '.pgm', '.pbm',
            '.pnm', '.gif', '.avif')
KINDS = '.png, .jpg, .bmp, .webp, .tif, .ppm, .gif, .avif'  # the same for messages
LABEL_FILE = 'dataset.json'
SYSTEM = {'__macosx', '@eadir', '#recycle', '$recycle.bin', 'system volume information', 'lost+found', 'thumbs.db',
          'ehthumbs.db', 'desktop.ini'}
GRID = re.compile(r'(.*/)?sample_(\d+)\.png')  # the picture that generate.py puts beside samples_<number>.npz
MAX_PIXELS = PIL.Image.MAX_IMAGE_PIXELS  # of one image; pillow warns above it
# Warnings about large images, which are refused, and damaged EXIF; set once, since filters are not per thread.
warnings.filterwarnings('ignore', module=r'PIL\.')


def natural_key(name: str) -> tuple:
    """A sorting key that puts samples_731 before samples_20044, and orders 01 and 1 the same way every time."""
    parts = re.split(r'(\d+)', name)
    numbers = [part.lstrip('0') for part in parts]  # not int(), which refuses names of thousands of digits
    return [(len(numbers[i]), numbers[i]) if i % 2 else part for i, part in enumerate(parts)], name


def find_npz(path: Path) -> list[Path]:
    """The npz files at `path` in natural order: the samples*.npz of a folder, or one npz; [] if it has image files.

    Raises FileNotFoundError, PermissionError, and ValueError for a file that is neither npz nor zip.
    """
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist')
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):  # otherwise it would look empty or damaged
        raise PermissionError(f'{path} may not be read by this user')
    if path.is_dir():
        return sorted(path.glob('samples*.npz'), key=lambda shard: natural_key(shard.name))
    if not path.is_file():
        raise ValueError(f'{path} is neither a folder nor a file')
    if path.suffix == '.npz':
        return [path]
    if not zipfile.is_zipfile(path):
        raise ValueError(f'{path} is neither a folder nor a complete .npz or .zip file')
    return []

#----------------------------------------------------------------------------
# Listing.

class Listing(NamedTuple):
    """The images below a folder or in a zip, as names in natural order.

    `label_file`: the dataset.json that labels them, or None; `skipped`: files that are neither images nor JSON.
    `root`: the folders that all images have in common, ending in a slash ('' for none).
    """

    names: list[str]
    label_file: str | None
    skipped: list[str]
    root: str

    def note(self) -> str:
        """What was skipped, in a few words; '' if nothing was."""
        if not self.skipped:
            return ''
        kinds = collections.Counter(Path(name).suffix.lower() or 'no suffix' for name in self.skipped)
        shown = ', '.join(f'{count} {kind}' for kind, count in kinds.most_common(5))
        return f'{len(self.skipped)} files are not images and are skipped ({shown}; first {self.skipped[0]})'


def list_images(path: Path) -> Listing:
    """The images at `path`, without hidden files, system files, and the grids that generate.py draws of its shards.

    Links to folders are followed, except those that lead back. Raises ValueError for a damaged zip and for a folder
    that is reached in two ways; OSError for a folder that may not be read.
    """
    if path.is_dir():
        found = list(_walk(path))
    else:
        with open_zip(path) as archive:
            found = [name for name in archive.namelist() if not name.endswith('/')]
    found = sorted((name for name in found if not _is_hidden(name)), key=natural_key)
    every = set(found)
    names, skipped = [], []
    for name in found:
        grid = GRID.fullmatch(name)
        if grid and f'{grid[1] or ""}samples_{grid[2]}.npz' in every:
            continue
        if name.lower().endswith(SUFFIXES):
            names.append(name)
        elif not name.endswith('.json'):
            skipped.append(name)
    root = os.path.commonprefix([min(names), max(names)]).rpartition('/')[0] if names else ''
    folders = [root[:end] for end in [0, *(match.start() for match in re.finditer('/', root)), len(root)]]
    labels = (f'{folder}/{LABEL_FILE}'.lstrip('/') for folder in folders)
    return Listing(names, next((name for name in labels if name in every), None), skipped, f'{root}/' if root else '')


def _is_hidden(name: str) -> bool:
    return any(part.startswith('.') or part.lower() in SYSTEM for part in name.split('/'))


def _walk(top: Path) -> Iterator[str]:
    """Names of all files below a folder, except in hidden folders; each folder once."""
    real = os.path.realpath(top)
    seen = {real: str(top)}
    todo: list[tuple[str, tuple]] = [('', (real,))]
    while todo:
        below, way = todo.pop()  # way: the real paths of the folders through which this one was reached
        with os.scandir(way[-1]) as entries:
            entries = list(entries)
        for entry in entries:
            name = f'{below}{entry.name}'
            if _is_hidden(entry.name):
                continue
            if not _is_folder(entry):
                yield name
                continue
            target = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
            if entry.is_symlink() and any(os.path.commonpath([target, passed]) == target for passed in way):
                continue  # a loop
            if target in seen:
                raise ValueError(f'{name} and {seen[target]} in {top} are one folder, by a link; remove one of them')
            seen[target] = name
            todo.append((f'{name}/', (*way, target)))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False

#----------------------------------------------------------------------------
# Reading.

@contextlib.contextmanager
def open_files(path: Path) -> Iterator[Callable[[str], bytes]]:
    """Yields `read(name)`, which returns the bytes of a file that `list_images` names; threads may share it."""
    if path.is_dir():
        yield lambda name: _read_file(path / name)
    else:
        with open_zip(path) as archive:
            yield lambda name: read_member(archive, name)


def _read_file(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # a pipe would never end
        raise ValueError('it is not a file')
    with path.open('rb') as file:
        data = file.read(MAX_MEMBER + 1)
    if len(data) > MAX_MEMBER:
        raise ValueError(f'it is longer than the {MAX_MEMBER >> 20} MiB that are read')
    return data


def decode_image(read: Callable[[str], bytes], name: str, shown: str | None = None) -> np.ndarray:
    """An image file as uint8 [H, W, C]: 1 channel for grey, 3 for RGB, 4 with transparency.

    Rotated as its EXIF orientation says; the first of several frames. Raises ValueError, which calls the file `shown`
    (default: the name), for a damaged file, another format, more than MAX_PIXELS, or more than 8 bits per channel.
    """
    shown = shown or name
    try:
        return _decode(read(name), shown)
    except _Refused as error:
        raise ValueError(str(error)) from None
    except PIL.UnidentifiedImageError:  # whose text names a buffer
        raise ValueError(f'{shown} is not a readable image: it is none of {", ".join(FORMATS)}') from None
    except Exception as error:  # pillow raises many kinds
        raise ValueError(f'{shown} is not a readable image: {reason(error)}') from None


class _Refused(ValueError):
    """A message that is shown as it is."""


@functools.cache
def _formats() -> tuple:
    PIL.Image.init()
    return tuple(name for name in FORMATS if name in PIL.Image.OPEN)  # AVIF is not in every pillow


def _turned(image):
    try:
        if image.getexif().get(PIL.ExifTags.Base.Orientation, 1) != 1:
            return PIL.ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF is ignored
        pass
    return image


def _decode(blob: bytes, shown: str) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(blob), formats=_formats()) as image:
        if image.width * image.height > MAX_PIXELS:
            raise _Refused(f'{shown} has {image.width}x{image.height} pixels, more than the {MAX_PIXELS:,} that are '
                           f'decoded')
        if image.mode.startswith(('I', 'F')):  # a conversion would cut off what is above 255
            raise _Refused(f'{shown} has 16 or 32 bits per pixel (mode {image.mode}); make it one of 8 bits')
        image.load()
        if image.mode == '1':
            image = image.convert('L')
        elif image.mode not in ('L', 'RGB'):
            image = image.convert('RGBA' if image.has_transparency_data else 'RGB')
        pixels = np.asarray(_turned(image))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def to_rgb(images: np.ndarray, shown: str) -> np.ndarray:
    """uint8 [..., C] with 1, 3 or 4 channels -> [..., 3], as detectors take them: grey three times, opaque RGBA as RGB.

    Raises ValueError for transparency, since only the user knows what shows behind it.
    """
    if images.shape[-1] == 1:
        return np.repeat(images, 3, axis=-1)
    if images.shape[-1] == 4 and images[..., 3].min(initial=255) < 255:
        raise ValueError(f'{shown} is partly transparent; choose the colour behind it: '
                         'dataset_tool.py zip --rgb=white makes a zip of RGB images')
    return images[..., :3]
