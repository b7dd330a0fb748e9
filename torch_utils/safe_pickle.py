"""An unpickler for files from elsewhere: it allows a few names and bounds its memory and its time.

Python's unpickler in C accepts any index into its memo, even one that takes gigabytes, and hashes any key: a tuple that
holds another one twice, and so on forty levels deep, takes years to hash. This is the unpickler in Python, whose memo
is a dictionary, with bounds on what a file declares and on what may be a key.
"""

import os
import pickle
from typing import Any, BinaryIO

KEYS = (str, bytes, int, float, type(None))  # what may be a key of a dictionary or set; also short tuples of these
MAX_INTEGER = 64  # bytes of an integer
MAX_ITEMS = 1000  # of a set that one instruction makes
MAX_DEPTH = 10_000  # of objects within objects that are not yet complete


class UnsafePickle(ValueError):
    """The file asks for something that is refused."""


class _Bounded:
    """A file that is never asked for more than it has left, since that much would be allocated first."""

    def __init__(self, file: BinaryIO):
        self.file, self.readline = file, file.readline
        position = file.tell()
        self.length = file.seek(0, os.SEEK_END)
        file.seek(position)

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self.length - self.file.tell():
            raise EOFError
        return self.file.read(count)


def check_key(key: Any) -> Any:
    """The key itself. Raises UnsafePickle if it could take long to hash."""
    if not isinstance(key, KEYS) and not (isinstance(key, tuple) and all(isinstance(part, KEYS) for part in key)):
        raise UnsafePickle(f'a {type(key).__name__} as a key')
    return key


def safe_set(items=()) -> set:
    """The set that the file asks for."""
    if len(items) > MAX_ITEMS:  # a list that occurs once in the file may be used many times
        raise UnsafePickle(f'a set of {len(items)} items')
    return {check_key(item) for item in items}


class SafeUnpickler(pickle._Unpickler):
    """Reads one pickle from `file`; ALLOWED maps (module, name) to inert stand-ins. Raises many kinds of errors."""

    ALLOWED: dict[tuple[str, str], Any] = {}
    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO, encoding: str = 'ASCII'):
        super().__init__(_Bounded(file), encoding=encoding)

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            asked = ascii(' '.join(f'{module}.{name}'.split()))[1:-1][:100]
            raise UnsafePickle(f'it asks for {asked}, which is not a part of such a file')
        found = self.ALLOWED[module, name]
        # a pickle can write the attributes of a function, but not those of a bound __call__
        return found if isinstance(found, type) else found.__call__

    def persistent_load(self, pid):
        raise UnsafePickle('it asks for an object outside the file')

    def _refuse(self):
        raise UnsafePickle('it uses an instruction that such files do not need')

    def _mark(self):
        if len(self.metastack) > MAX_DEPTH:
            raise UnsafePickle('objects nested too deep')
        pickle._Unpickler.load_mark(self)

    def _checked_put(load):
        def put(self):
            load(self)
            if next(reversed(self.memo)) > 2 * len(self.memo) + MAX_ITEMS:  # the last index that was written
                raise UnsafePickle('an index into its memo far beyond the others')
        return put

    def _setitem(self):
        check_key(self.stack[-2])
        pickle._Unpickler.load_setitem(self)

    def _setitems(self):
        for key in self.stack[::2]:  # keys and values alternate above the mark
            check_key(key)
        pickle._Unpickler.load_setitems(self)

    def _additems(self):
        for item in self.stack:
            check_key(item)
        pickle._Unpickler.load_additems(self)

    def _dict(self):
        for key in self.stack[::2]:
            check_key(key)
        pickle._Unpickler.load_dict(self)

    def _long4(self):
        pickle._Unpickler.load_long4(self)
        if self.stack[-1].bit_length() > 8 * MAX_INTEGER:
            raise UnsafePickle('an integer of many digits')

    dispatch.update({
        pickle.MARK[0]: _mark, pickle.PUT[0]: _checked_put(pickle._Unpickler.load_put),
        pickle.LONG_BINPUT[0]: _checked_put(pickle._Unpickler.load_long_binput),
        pickle.SETITEM[0]: _setitem, pickle.SETITEMS[0]: _setitems, pickle.ADDITEMS[0]: _additems,
        pickle.DICT[0]: _dict, pickle.LONG4[0]: _long4,
        **dict.fromkeys(b''.join((pickle.FROZENSET, pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER,
                                  pickle.EXT1, pickle.EXT2, pickle.EXT4)), _refuse)})


class Inert:
    """Stands in for any object and does nothing."""

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    extend = add = update = append


class _Checker(SafeUnpickler):
    """Goes through a pickle without creating its objects."""

    def find_class(self, module, name):
        return Inert

    def persistent_load(self, pid):
        return Inert()


def check_pickle(file: BinaryIO) -> None:
    """Check one pickle that another unpickler is to read, and leave `file` at its end.

    Raises UnsafePickle if it would take too much memory or time there, and whatever a damaged pickle raises.
    """
    _Checker(file).load()
