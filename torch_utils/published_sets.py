"""CIFAR-10 and MNIST from the archives that their authors publish."""

import gzip
import struct
import tarfile
from pathlib import Path

import numpy as np

from dnnlib.files import atomic_write

from .archives import reason
from .safe_pickle import SafeUnpickler, UnsafePickle

CIFAR10 = 'cifar-10-python.tar.gz'
MNIST = '-images-idx3-ubyte.gz'
CIFAR10_NAMES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
MAX_BYTES = 1 << 26  # of one file inside


def read_published(path: Path) -> tuple[np.ndarray, np.ndarray, tuple] | None:
    """(images uint8 [N, H, W, C], class indices int64 [N], class names) of such an archive; None for any other file.

    MNIST's images are padded by two pixels to 32x32, as in EDM. Raises ValueError for a damaged archive.
    """
    if path.name != CIFAR10 and not path.name.endswith(MNIST) or not path.is_file():
        return None
    try:
        return _read_cifar10(path) if path.name == CIFAR10 else _read_mnist(path)
    except OSError as error:
        if error.filename is not None:
            raise
        raise ValueError(f'{path} is damaged: {reason(error)}') from None
    except Exception as error:  # a damaged archive fails in many ways
        raise ValueError(f'{path} is damaged: {reason(error)}') from None


def _read_cifar10(path: Path):
    images, labels = [], []
    with tarfile.open(path, 'r:gz') as archive:
        for batch in range(1, 6):
            member = archive.getmember(f'cifar-10-batches-py/data_batch_{batch}')
            if not member.isfile() or member.size > MAX_BYTES:
                raise ValueError(f'{member.name} is not a batch of images')
            found = _Unpickler(archive.extractfile(member), encoding='bytes').load()
            data = found[b'data']
            if not isinstance(data, _Array) or data.shape[1:] != (3072,):
                raise ValueError(f'{member.name} holds no images')
            images.append(np.frombuffer(data.data, np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(np.array(found[b'labels'], dtype=np.int64))
    return np.concatenate(images), np.concatenate(labels), CIFAR10_NAMES


class _Array:
    """A numpy array of bytes in the file: `shape` [N, K] and `data`."""

    def __init__(self, *args):
        self.shape, self.data = (0, 0), b''

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        plain = isinstance(dtype, _Dtype) and dtype.name in (b'u1', 'u1') and isinstance(data, bytes) and not fortran
        if not plain or len(shape) != 2 or shape[0] * shape[1] != len(data):
            raise UnsafePickle('an array that is not rows of bytes')
        self.shape, self.data = tuple(shape), data


class _Dtype:
    """numpy.dtype."""

    def __init__(self, name, *flags):
        self.name = name

    def __setstate__(self, state):
        pass


class _Unpickler(SafeUnpickler):
    """Allows the names that CIFAR-10's batches ask for."""

    ALLOWED = {
        ('numpy.core.multiarray', '_reconstruct'): lambda *args: _Array(),
        ('numpy', 'ndarray'): _Array,
        ('numpy', 'dtype'): _Dtype,
    }


def _read_mnist(path: Path):
    images = _read_idx(path, 3)
    labels = _read_idx(path.with_name(path.name.replace(MNIST, '-labels-idx1-ubyte.gz')), 1)
    if len(images) != len(labels) or images.shape[1:] != (28, 28):
        raise ValueError(f'{list(images.shape)} images and {len(labels)} labels')
    images = np.pad(images, [(0, 0), (2, 2), (2, 2)])[..., None]
    return images, labels.astype(np.int64), tuple(map(str, range(10)))


def _read_idx(path: Path, dims: int) -> np.ndarray:
    with gzip.open(path) as file:
        magic, *shape = struct.unpack(f'>{dims + 1}i', file.read(4 + 4 * dims))
        data = file.read(MAX_BYTES)
    if magic != 0x800 + dims or min(shape) < 0:
        raise ValueError(f'{path.name} is not an IDX file of bytes')
    return np.frombuffer(data, np.uint8).reshape(shape)


def download_cifar10(train: bool) -> Path:
    """data/cifar10-{train,test}.npz with `samples` and `label`, made by torchvision's download on first use."""
    path = Path('data') / f'cifar10-{"train" if train else "test"}.npz'
    if not path.exists():
        import torchvision  # slow to import, and only needed here

        try:
            raw = torchvision.datasets.CIFAR10(str(path.parent / 'cifar10-raw'), train=train, download=True)
        except (RuntimeError, OSError) as error:
            raise ValueError(f'CIFAR-10 could not be downloaded ({error}); give a local zip or folder, or '
                             f'{CIFAR10}') from None
        with atomic_write(path) as file:
            np.savez(file, samples=raw.data, label=np.asarray(raw.targets, dtype=np.int64))
    return path
