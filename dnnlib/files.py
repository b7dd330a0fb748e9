"""Paths as users write them, files written complete or not at all, and their digests."""

import contextlib
import errno
import hashlib
import os
import secrets
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# Errors that reading a damaged npz, zip or image raises: SyntaxError by PIL, RuntimeError by zipfile (encrypted).
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, SyntaxError)
# Reasons why a file cannot be written, all of them faults of the place, and the remedies.
REMEDIES = {
    errno.ENOSPC: 'make room, then run the same command again',
    errno.EDQUOT: 'make room, then run the same command again',
    errno.EFBIG: 'allow larger files (ulimit -f), then run the same command again',
    errno.EROFS: 'name a place that can be written',
    errno.EACCES: 'name a place that can be written',
    errno.EPERM: 'name a place that can be written',
}


def resolve_path(path: str | os.PathLike) -> Path:
    """The input file or folder that `path` means.

    A path with a leading slash that does not exist is taken relative to the working folder, since the published
    commands write `/stats/x.npz` for `./stats/x.npz`; any other path is used as given.
    """
    given = Path(os.path.expanduser(path))
    relative = _below_working_folder(given)
    return relative if not given.exists() and relative.exists() else given


def resolve_output(path: str | os.PathLike) -> Path:
    """The output file or folder that `path` means.

    An absolute path whose top folder does not exist (`/samples/run` without a `/samples`) is taken relative to the
    working folder, so that the published commands read what they wrote.
    """
    given = Path(os.path.expanduser(path))
    if given.is_absolute() and len(given.parts) > 2 and not Path(*given.parts[:2]).exists():
        return _below_working_folder(given)
    relative = _below_working_folder(given)
    return relative if not given.exists() and relative.exists() else given


def _below_working_folder(path: Path) -> Path:
    return Path.cwd() / path.relative_to(path.anchor) if path.is_absolute() else path


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, flush: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file that is named `path` only once the block has ended without an error.

    It is written beside its destination under a temporary name, flushed to disk and renamed;
    after an error the temporary file is removed and an older `path` is left as it was.
    Without `flush` a crash of the machine (not of the program) may leave an incomplete file.
    Raises OSError with `path` and a remedy if the place is full, read-only or closed to the user.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, 'xb') as file:
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        refused = _refused(error, temporary)
        if refused is None:
            raise
        raise _with_remedy(refused, path) from error


def _with_remedy(error: OSError, path: Path) -> OSError:
    remedy = f' ({REMEDIES[error.errno]})' if error.errno in REMEDIES else ''
    return OSError(error.errno, os.strerror(error.errno) + remedy, str(path))


def check_writable(path: str | os.PathLike) -> None:
    """Raise OSError if `atomic_write` could not make `path`; to be called before a long computation."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    try:
        tempfile.TemporaryFile(dir=next(parent for parent in path.absolute().parents if parent.exists())).close()
    except OSError as error:
        raise _with_remedy(error, path) from error


def _refused(error: BaseException | None, temporary: Path) -> OSError | None:
    """The error of the file system behind `error`, if any: torch.save hides it behind a RuntimeError."""
    while error is not None:
        # an error that names another file comes from reading that file inside the block
        if isinstance(error, OSError) and error.errno in REMEDIES and error.filename in (None, str(temporary)):
            return error
        error = error.__context__
    return None


def file_sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_digest(path: str | os.PathLike) -> str | None:
    """The first digits of a file's SHA-256, to notice a checkpoint that has changed; None if there is no file."""
    return file_sha256(path)[:16] if Path(path).is_file() else None


@contextlib.contextmanager
def only_a_picture(folder: str | os.PathLike):
    """Report a failure to draw a picture in `folder` instead of raising it, since nothing else depends on it."""
    try:
        yield
    except Exception as error:  # drawing fails in many ways
        print(f'Warning: the picture in {folder} could not be drawn ({type(error).__name__}: '
              f'{" ".join(str(error).split())}); nothing else is affected', flush=True)
