"""Data sets written piece by piece: zips and folders in EDM's layout, and npz files in DG's."""

import contextlib
import itertools
import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dnnlib.files import atomic_write

from .image_files import LABEL_FILE
from .image_labels import Labels

FOLDER = 1000  # images per folder in EDM's layout


def image_name(index: int) -> str:
    """The path of an image in EDM's layout: 00012/img00012345.png."""
    return f'{index // FOLDER:05d}/img{index:08d}.png'


@contextlib.contextmanager
def _new_folders(folder: Path) -> Iterator[None]:
    """After an error, remove the empty folders on the way to `folder` that did not exist before."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def open_output(dest: Path) -> Iterator[Callable[[str, bytes], None]]:
    """Yields `add(name, blob)`, which adds files to a new zip (if `dest` ends in .zip) or folder, complete or absent.

    The same files give the same zip. Raises OSError, and ValueError for a folder that is not empty.
    """
    if dest.suffix.lower() == '.zip':
        with _new_folders(dest.parent), atomic_write(dest) as file, zipfile.ZipFile(file, 'w') as archive:
            yield lambda name, blob: archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), blob)
        return
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise ValueError(f'{dest} is not an empty folder; name a new folder, or a zip (a name that ends in .zip)')
    temporary = dest.with_name(f'.{dest.name}.{secrets.token_hex(4)}.tmp')

    def add(name, blob):
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        (temporary / name).write_bytes(blob)

    with _new_folders(dest.parent):
        try:
            temporary.mkdir(parents=True)
            yield add
            os.replace(temporary, dest)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


class Written(NamedTuple):
    """What was written of a data set: the positions of the images, and their labels."""

    kept: list[int]
    labels: Labels

    def __len__(self) -> int:
        return len(self.kept)


def alike(made: Iterable) -> Iterator[bytes | None]:
    """Yields the file of each pair (shape [H, W, C], PNG file), and None for None.

    Raises ValueError unless all images are squares of one size and kind, and if there are none.
    """
    first = None
    for index, image in enumerate(made):
        if image is None:
            yield None
            continue
        shape, blob = image
        first = first or (shape, index)
        if shape[0] != shape[1]:
            raise ValueError(f'image {index} is {shape[1]}x{shape[0]}, not a square; use --resolution and --transform')
        if shape != first[0]:
            raise ValueError(f'mixed image shapes: image {first[1]} is {list(first[0])}, image {index} is '
                             f'{list(shape)} [H, W, C]; --resolution makes sizes alike, --rgb=white makes kinds alike')
        yield blob
    if first is None:
        raise ValueError('no image is as large as --resolution')


def write_dataset(dest: Path, images: Iterable[bytes | None], labels: Labels) -> Written:
    """Writes PNG files (None: an image that is left out) and their labels in EDM's layout. Raises OSError."""
    kept = []
    with open_output(dest) as add:
        for index, blob in enumerate(images):
            if blob is not None:
                add(image_name(index), blob)
                kept.append(index)
        left = labels if labels.indices is None else labels._replace(indices=labels.indices[kept])
        rows = None if left.indices is None else [[image_name(index), int(label)]
                                                  for index, label in zip(kept, left.indices)]
        text = dict(labels=rows) if rows is None else dict(labels=rows, classes=left.classes())
        add(LABEL_FILE, json.dumps(text).encode())
    return Written(kept, left)


def write_npz(names: dict[Path, str], blocks: Iterator[np.ndarray], count: int, labels: Labels, labelled: Path) -> None:
    """Writes images to several npz files at once, each with its own array name; labels only into the file `labelled`.

    names: array name by file; blocks: uint8 [n, C, H, W], `count` images in all, which become [count, H, W, C].
    The class names go into a JSON file beside `labelled`.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_new_folders(labelled.parent))
        archives = {path: stack.enter_context(zipfile.ZipFile(stack.enter_context(atomic_write(path)), 'w'))
                    for path in names}
        first = next(blocks)
        shape = (count, *first.shape[2:], first.shape[1])
        with contextlib.ExitStack() as members:
            files = [members.enter_context(archive.open(f'{names[path]}.npy', 'w', force_zip64=True))
                     for path, archive in archives.items()]
            for file in files:
                np.lib.format.write_array_header_1_0(file, dict(descr='|u1', fortran_order=False, shape=shape))
            for block in itertools.chain([first], blocks):
                pixels = np.ascontiguousarray(block.transpose(0, 2, 3, 1))
                for file in files:
                    file.write(pixels)
        if labels.indices is not None:
            with archives[labelled].open('label.npy', 'w') as file:
                np.lib.format.write_array(file, labels.indices, allow_pickle=False)
            with atomic_write(labelled.with_suffix('.json')) as file:
                file.write((json.dumps(dict(classes=labels.classes())) + '\n').encode())

