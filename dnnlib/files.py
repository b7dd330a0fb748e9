"""Paths as users write them, and files that are whole or absent."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def resolve_path(path: str | os.PathLike) -> Path:
    """The input file or folder that `path` means.

    As given; else, where a path with a leading slash does not exist, relative to the working folder:
    the published commands write `/stats/x.npz` for `./stats/x.npz`.
    """
    given = Path(os.path.expanduser(path))
    relative = _below_working_folder(given)
    return relative if not given.exists() and relative.exists() else given


def resolve_output(path: str | os.PathLike) -> Path:
    """The output file or folder that `path` means.

    An absolute path whose top folder does not exist (`/samples/run` where there is no `/samples`)
    means the same below the working folder, so that the published commands read what they wrote.
    """
    given = Path(os.path.expanduser(path))
    if given.is_absolute() and len(given.parts) > 2 and not Path(*given.parts[:2]).exists():
        return _below_working_folder(given)
    relative = _below_working_folder(given)
    return relative if not given.exists() and relative.exists() else given


def _below_working_folder(path: Path) -> Path:
    return Path.cwd() / path.relative_to(path.anchor) if path.is_absolute() else path


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a binary file that takes the name `path` only when the block ends without an error.

    It is written beside its destination under a temporary name, flushed to disk and renamed;
    after an error the temporary file is removed and an older `path` is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.tmp')
    try:
        with open(temporary, 'xb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
