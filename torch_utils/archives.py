"""Zip archives and npz files from anywhere: what they declare is checked before any of it is read."""

import ast
import contextlib
import io
import math
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAX_MEMBER = 1 << 28  # bytes of one image file or dataset.json; the largest image that is decoded takes fewer
MAX_HEADER = 10_000  # bytes of an array's header: numpy's own limit
BLOCK_BYTES = 1 << 24  # read of an array at a time, but at least one row
PLAIN = 'biuf'  # kinds of dtype: numbers, which need no unpickling
MAX_TEXT = 4096  # characters
LINE = 160  # characters of a quoted error


def reason(error: BaseException) -> str:
    """An error's own message, shortened to one line."""
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= LINE else text[:LINE - 3] + '...'

#----------------------------------------------------------------------------
# Zip archives.

@contextlib.contextmanager
def open_zip(path: Path, kind: str = 'zip') -> Iterator[zipfile.ZipFile]:
    """A zip opened for reading, its directory checked.

    Raises ValueError in one line if `path` is not a file or not a zip, or if files in it have the same name, share
    bytes, are encrypted, or lie outside it (`../x`).
    """
    if not path.is_file():  # a pipe would never end
        raise ValueError(f'{path} is not a file')
    try:
        archive = zipfile.ZipFile(path)
    except PermissionError:
        raise
    except Exception as error:  # a file from elsewhere can fail in any way
        raise ValueError(f'{path} is not a complete {kind} file: {reason(error)}') from None
    with archive:
        _check_directory(path, archive)
        yield archive


def _check_directory(path: Path, archive: zipfile.ZipFile) -> None:
    seen, end = set(), 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if info.filename in seen:
            raise ValueError(f'{path} has two files named {info.filename}')
        if info.filename.startswith('/') or '..' in info.filename.split('/'):
            raise ValueError(f'{path} has a file outside itself ({info.filename})')
        if info.flag_bits & 1:
            raise ValueError(f'{path} is encrypted ({info.filename}); unpack it first')
        if info.header_offset < end:
            raise ValueError(f'{path} is damaged: {info.filename} overlaps another file in it')
        seen.add(info.filename)
        end = info.header_offset + 30 + len(info.filename) + info.compress_size  # 30: the shortest local header


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a file in a zip. Raises ValueError if it declares more than MAX_MEMBER, and what zipfile raises."""
    size = archive.getinfo(name).file_size
    if size > MAX_MEMBER:
        raise ValueError(f'it is {size:,} bytes long, more than the {MAX_MEMBER >> 20} MiB that are read')
    return archive.read(name)

#----------------------------------------------------------------------------
# Arrays of npz files.

class Array(NamedTuple):
    """An array of an npz: its `name`, shape and dtype; `offset` of its first byte in the file, None if compressed."""

    path: Path
    name: str
    shape: tuple
    dtype: np.dtype
    fortran: bool
    offset: int | None

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry along the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def list_arrays(path: Path) -> list[str]:
    """Names of the arrays in an npz. Raises ValueError."""
    with open_zip(path, 'npz') as archive:
        return [name[:-4] for name in archive.namelist() if name.endswith('.npy')]


def find_array(path: Path, name: str, text: bool = False) -> Array:
    """What the header of an array of numbers (with `text`: of a text) declares, checked against the length of the file.

    Raises ValueError for a damaged header, for objects (which would be unpickled), and for a shape that does not match
    the stored bytes.
    """
    with open_zip(path, 'npz') as archive:
        info = archive.getinfo(f'{name}.npy')
        try:
            with archive.open(info) as file:
                shape, fortran, dtype = _read_header(file)
                start = file.tell()
            offset = None
            if info.compress_type == zipfile.ZIP_STORED:
                archive.fp.seek(info.header_offset + 26)
                offset = info.header_offset + 30 + sum(struct.unpack('<HH', archive.fp.read(4))) + start
        except Exception as error:  # as above
            raise ValueError(f'{path} is not a complete npz file: `{name}` has a damaged header '
                             f'({reason(error)})') from None
    if dtype.kind not in ('U' if text else PLAIN) or dtype.itemsize > 4 * MAX_TEXT:
        raise ValueError(f'{path}: `{name}` holds {"objects" if dtype.hasobject else dtype}, not '
                         f'{"a short text" if text else "numbers"}')
    declared, stored = math.prod(shape) * dtype.itemsize, info.file_size - start
    if min(shape, default=0) < 0 or declared != stored:
        raise ValueError(f'{path} is damaged: `{name}` declares {list(shape)}, but has {stored:,} bytes')
    return Array(path, name, shape, dtype, fortran, offset)


def _read_header(file) -> tuple[tuple, bool, np.dtype]:
    """(shape, Fortran order, dtype) of a .npy stream, which is left at the first element."""
    magic = _exactly(file, 8)
    if magic[:6] != b'\x93NUMPY' or magic[6] not in (1, 2, 3):
        raise ValueError('no numpy array')
    length, = struct.unpack('<H' if magic[6] == 1 else '<I', _exactly(file, 2 if magic[6] == 1 else 4))
    if length > MAX_HEADER:
        raise ValueError(f'a header of {length:,} bytes')
    header = ast.literal_eval(_exactly(file, length).decode('utf-8' if magic[6] == 3 else 'latin1').strip())
    shape = tuple(header['shape'])
    if not all(type(n) is int for n in shape) or len(shape) > 32:
        raise ValueError(f'a shape of {reason(ValueError(shape))}')
    return shape, bool(header['fortran_order']), np.lib.format.descr_to_dtype(header['descr'])


def _exactly(file, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise ValueError('it is cut short')
    return data


def read_rows(array: Array, low: int, high: int) -> Iterator[np.ndarray]:
    """Yields rows low to high - 1 of an array in blocks of about BLOCK_BYTES. Raises ValueError for a damaged file.

    Holds one block in memory; an array in Fortran order is held as a whole.
    """
    if array.fortran and len(array.shape) > 1:
        yield read_whole(array)[low:high]
        return
    step = max(BLOCK_BYTES // max(array.row_bytes, 1), 1)
    try:
        with zipfile.ZipFile(array.path) as archive, archive.open(f'{array.name}.npy') as file:
            _read_header(file)
            for first in range(0, low, step):  # a compressed stream cannot jump
                file.read(min(step, low - first) * array.row_bytes)
            for first in range(low, high, step):
                count = min(step, high - first)
                block = np.frombuffer(file.read(count * array.row_bytes), dtype=array.dtype)
                yield block.reshape(count, *array.shape[1:])  # a short read fails here
            if high == array.shape[0]:
                file.read(1)  # zipfile checks the CRC at the end
    except GeneratorExit:
        raise
    except Exception as error:  # as above
        raise ValueError(f'{array.path} is damaged: {reason(error)}') from None


def read_whole(array: Array) -> np.ndarray:
    """The whole array in C order. Raises ValueError if the file is damaged, or too large for the free memory."""
    size = math.prod(array.shape) * array.dtype.itemsize
    if array.fortran and len(array.shape) > 1:  # the same bytes are its transpose in C order
        turned = array._replace(shape=array.shape[::-1], fortran=False)
        return np.ascontiguousarray(read_whole(turned).T)
    values = empty(array.shape, array.dtype, f'`{array.name}` of {array.path}')
    filled = 0
    for rows in read_rows(array, 0, array.shape[0]) if array.shape and size else ():
        values[filled:filled + len(rows)] = rows
        filled += len(rows)
    if not array.shape:
        values[()] = next(read_rows(array._replace(shape=(1,)), 0, 1))[0]
    return values


def read_rows_at(array: Array, rows: np.ndarray, out: np.ndarray) -> None:
    """Reads rows of an uncompressed array into `out` [len(rows), ...]. Raises ValueError if the file is cut short."""
    if not len(rows):
        return
    order = np.argsort(rows, kind='stable')
    runs = np.split(order, np.flatnonzero(np.diff(rows[order]) != 1) + 1)  # neighbours in the file are read together
    with open(array.path, 'rb', buffering=0) as file:
        for run in runs:
            file.seek(array.offset + int(rows[run[0]]) * array.row_bytes)
            data = file.read(len(run) * array.row_bytes)
            if len(data) != len(run) * array.row_bytes:
                raise ValueError(f'{array.path} is damaged: it is cut short')
            out[run] = np.frombuffer(data, dtype=array.dtype).reshape(len(run), *array.shape[1:])

#----------------------------------------------------------------------------
# Memory.

def empty(shape: tuple, dtype, what: str) -> np.ndarray:
    """A new array. Raises ValueError, which calls it `what`, if it does not fit into the free memory."""
    size, free = math.prod(shape) * np.dtype(dtype).itemsize, free_memory()
    try:
        if size <= free:
            return np.empty(shape, dtype)
    except MemoryError:
        pass
    raise ValueError(f'{what} would take {size / 2**30:.3g} GiB of memory, of which {free / 2**30:.3g} are free; '
                     'use fewer images (--max_images or --num_data), or make a zip of them (dataset_tool.py zip), '
                     'which is read piece by piece')


def free_memory() -> int:
    """Bytes that this process may still take, as far as the system says: free memory, and a container's limit."""
    found = [2**62]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = io.StringIO(Path('/proc/meminfo').read_text())
        found.append(1024 * int(next(line for line in lines if line.startswith('MemAvailable')).split()[1]))
    with contextlib.suppress(OSError, ValueError):  # a container's; 'max' if it has no limit
        limit = int(Path('/sys/fs/cgroup/memory.max').read_text())
        found.append(limit - int(Path('/sys/fs/cgroup/memory.current').read_text()))
    return max(min(found), 0)
