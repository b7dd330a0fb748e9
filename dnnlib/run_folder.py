"""A folder that belongs to one run: options.json records the run, and a lock keeps other runs out meanwhile."""

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from .files import atomic_write

OPTIONS_FILE = 'options.json'
REPORT = 'report'  # entry of options.json: the costs of the run; it decides nothing
COMMAND = 'command'  # the last one that wrote there; what it asked for stands in the other entries
CLASS_NAMES = 'class_names'  # [[number, name, images], ...]; they follow from the data, whose digest is compared
LOCK = '.lock'  # in a folder that cannot be locked itself
TEMPORARY = re.compile(r'\.(.+)\.\w+\.tmp')  # as atomic_write names it
_locked: set[Path] = set()  # folders that this process has locked


class RunFolder:
    """The folder `path` of the run that `options` (JSON-able) describe.

    `owns(options, name)` says whether a run with such options writes a file of this name, apart from options.json; this
    tells `overwrite` what to remove, and reveals results of unknown origin. If several processes were launched, only
    the first may call the methods that lock, check and write. All methods raise OSError if the file system refuses.
    """

    def __init__(self, path, options: dict, owns: Callable[[dict, str], bool]):
        self.path, self.owns = Path(path), owns
        self.options = json.loads(json.dumps(options))  # as they will be read back

    @contextlib.contextmanager
    def claim(self, overwrite: bool = False) -> Iterator[None]:
        """Lock and prepare the folder, and keep other runs out while the block runs. Raises ValueError as both do."""
        with self.lock() as locked:
            self.prepare(overwrite, locked)
            yield

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Create the folder and lock it, see `lock_folder`. Raises NotADirectoryError if it is a file."""
        self._make()
        with lock_folder(self.path) as locked:
            yield locked

    def prepare(self, overwrite: bool = False, locked: bool = False) -> None:
        """Make the folder this run's own, or check that it is; if `locked`, also remove what killed runs left.

        `overwrite` removes the files of an earlier run and those that this one would replace. Raises ValueError as
        `check` does.
        """
        self._make()
        if overwrite:
            self._clear()
        self.check()
        for name in os.listdir(self.path) if locked else ():
            if self.is_leftover(name):
                (self.path / name).unlink(missing_ok=True)
        earlier = read_options(self.path / OPTIONS_FILE)
        may_differ = self.may_differ(earlier) - {REPORT, CLASS_NAMES}
        changed = {name: self.options[name] for name in may_differ & self.options.keys()}
        if not earlier or earlier != earlier | changed:
            write_options(self.path, earlier | changed if earlier else self.options)

    def check(self, undecided: Collection[str] = ()) -> None:
        """Raise ValueError if the folder holds another run; the options `undecided` may still differ."""
        if (self.path / OPTIONS_FILE).exists():
            earlier = read_options(self.path / OPTIONS_FILE)
            check_options(self.path / OPTIONS_FILE, self.options, {*undecided, *self.may_differ(earlier)})
        elif found := self.own_files():
            raise ValueError(f'{self.path} holds {", ".join(found[:3])} but no {OPTIONS_FILE} that says what made '
                             f'{"it" if len(found) == 1 else "them"}; use another folder or --overwrite')

    def may_differ(self, earlier: dict) -> set[str]:
        """The options in which the earlier ones of the same run may differ from these."""
        return {REPORT, COMMAND, CLASS_NAMES}

    def own_files(self) -> list[str]:
        """Names of the files in the folder that a run with these options may have written."""
        return sorted(name for name in os.listdir(self.path) if self.owns(self.options, name))

    def is_leftover(self, name: str) -> bool:
        """Whether a file is incomplete, left by a process that was killed while writing it."""
        whole = TEMPORARY.fullmatch(name)
        return whole is not None and (whole[1] == OPTIONS_FILE or self.owns(self.options, whole[1]))

    def _make(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f'{self.path} is a file; name a folder')
        self.path.mkdir(parents=True, exist_ok=True)

    def _clear(self) -> None:
        earlier = read_options(self.path / OPTIONS_FILE)
        for name in os.listdir(self.path):
            if self.owns(self.options, name) or self.owns(earlier, name):
                (self.path / name).unlink(missing_ok=True)
        (self.path / OPTIONS_FILE).unlink(missing_ok=True)


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike) -> Iterator[bool]:
    """Keep a second run out of an existing folder while the block runs; yields whether it is locked.

    A process that holds the lock may take it again. The lock ends with that process, however it ends. If the system or
    the file system has no locks, nothing is locked; what a killed run seems to have left may then belong to a running
    one. Raises ValueError if another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    place = Path(folder).resolve()
    if place in _locked:
        yield True
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.callback(os.close, handle := os.open(folder, os.O_RDONLY))
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno != errno.EBADF:
                    raise
                # NFS locks only files that are open for writing.
                stack.callback(os.close, handle := os.open(place / LOCK, os.O_RDWR | os.O_CREAT))
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _locked.add(place)
            stack.callback(_locked.discard, place)
        except BlockingIOError:
            raise ValueError(f'another run is writing to {folder}; wait for it or use another folder') from None
        except OSError:
            pass  # a file system without locks, or without room for one
        yield place in _locked


def write_options(folder: str | os.PathLike, options: dict) -> None:
    """Write `options` (JSON-able) as options.json into a folder."""
    with atomic_write(Path(folder) / OPTIONS_FILE) as file:
        file.write((json.dumps(options, indent=1) + '\n').encode())


def read_options(path: str | os.PathLike) -> dict:
    """The options in the JSON file `path`; {} if there are none that can be read."""
    try:
        return dict(json.loads(Path(path).read_text()))
    except (OSError, TypeError, ValueError):
        return {}


def check_options(path: Path, options: dict, ignored: Collection[str] = ()) -> None:
    """Raise ValueError if the options in the JSON file `path` differ from `options`, except in those `ignored`.

    A missing option counts as None, so that folders written before an option existed remain valid.
    """
    found = read_options(path)
    if not found:
        raise ValueError(f'{path} is not readable; use another folder or --overwrite')
    differences = [f'{name} was {_short(found.get(name))}, now {_short(options.get(name))}' for name in options | found
                   if name not in ignored and options.get(name) != found.get(name)]
    if differences:
        raise ValueError(f'{path.parent} holds a run with other options ({"; ".join(differences[:4])}); '
                         f'use another folder or --overwrite')


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + '...'
