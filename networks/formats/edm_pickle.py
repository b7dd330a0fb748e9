"""Read EDM's network pickles without running them.

A pickle is a program for Python's unpickler. Here the unpickler knows a short list of names, each bound to an inert
stand-in of ours; a file that asks for another name is refused, and the Python source that EDM embeds is ignored.
"""

import collections
import inspect
import io
import math
import os
import pickle
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from torch_utils.checkpoint import NetworkFile
from torch_utils.safe_pickle import MAX_ITEMS, SafeUnpickler, UnsafePickle, safe_set

from ..precond import PRECONDITIONERS
from .text import shown

NEEDS_PRESET = False

MAX_DIMS = 16  # of a tensor


class Record:
    """An object of the file: its class name and attributes, nothing executable."""

    def __init__(self, class_name: str = '', state: dict | None = None):
        self.class_name, self.state = class_name, state or {}

    def __setstate__(self, state):
        if not isinstance(state, dict):
            raise UnsafePickle(f'{type(self).__name__} has a state of type {type(state).__name__}')
        self.state = state


class _ModuleDict(Record):
    """torch.nn.ModuleDict."""


class _Data(NamedTuple):
    """Numbers of the file: a tensor that the file itself cannot use."""

    tensor: torch.Tensor


class _EasyDict(dict):
    """dnnlib.EasyDict; its attributes are its items."""

    def __setstate__(self, state):
        if len(state) > MAX_ITEMS:  # a dictionary that occurs once in the file may be copied many times
            raise UnsafePickle(f'an EasyDict of {len(state)} attributes')
        self.update(state)


class _Dtype:
    """numpy.dtype of a number."""

    def __init__(self, name='', *flags):
        self.name = name if isinstance(name, str) and name[:1] in 'fiub' else None

    def __setstate__(self, state):
        self.order = state[1] if state[1] in ('<', '>', '|') else '='


def _numpy_scalar(dtype: _Dtype, data: bytes):
    if not isinstance(dtype, _Dtype) or dtype.name is None:
        raise UnsafePickle('a numpy scalar that is not a number')
    return np.frombuffer(data, dtype=np.dtype(dtype.name).newbyteorder(getattr(dtype, 'order', '=')), count=1)[0].item()


def _persistent_object(meta: dict) -> Record:
    if meta.get('type') != 'class' or not isinstance(meta.get('class_name'), str):
        raise UnsafePickle('a persistent object that is not a class')
    state = meta.get('state') or {}
    if not isinstance(state, dict):
        raise UnsafePickle(f'a state of type {type(state).__name__}')
    return Record(meta['class_name'].split('.')[-1], state)


def _ordered_dict() -> collections.OrderedDict:
    return collections.OrderedDict()


def _storage(data: bytes) -> _Data:
    """The whole storage in `data`, itself a PyTorch file, on the CPU."""
    if not isinstance(data, bytes) or data.startswith(b'PK'):  # a zip may hold a thousand times its length
        raise UnsafePickle('a tensor in it is not plain data')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # typed storages are deprecated, but the files hold nothing else
        try:
            storage = torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
            return _Data(torch.empty(0, dtype=storage.dtype).set_(storage.untyped()))
        except Exception as error:  # torch's restricted reader fails in many ways
            raise UnsafePickle('a tensor in it is not plain data') from error


def _tensor(storage: _Data, offset, size, stride, requires_grad=False, hooks=None, metadata=None) -> _Data:
    values, size, stride = storage.tensor, tuple(size), tuple(stride)
    if not len(size) == len(stride) <= MAX_DIMS or not all(type(n) is int for n in (offset, *size, *stride)):
        raise UnsafePickle('a tensor whose size is no list of integers')
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if all(size) else offset - 1
    if offset < 0 or min(size + stride, default=0) < 0 or last >= values.numel():
        raise UnsafePickle('a tensor that reaches beyond its storage')
    if math.prod(size) > values.numel():  # otherwise a few bytes, repeated, could fill the memory
        raise UnsafePickle('a tensor with more elements than its storage')
    return _Data(values.as_strided(size, stride, offset))  # no copy: thousands of tensors may share one storage


def _parameter(data: _Data, requires_grad=False, hooks=None) -> _Data:
    return data


ALLOWED = {
    ('torch_utils.persistence', '_reconstruct_persistent_obj'): _persistent_object,
    ('torch.nn.modules.container', 'ModuleDict'): _ModuleDict,
    ('dnnlib.util', 'EasyDict'): _EasyDict,
    ('collections', 'OrderedDict'): _ordered_dict,
    ('builtins', 'set'): safe_set,
    ('__builtin__', 'set'): safe_set,
    ('torch._utils', '_rebuild_parameter'): _parameter,
    ('torch._utils', '_rebuild_tensor_v2'): _tensor,
    ('torch.storage', '_load_from_bytes'): _storage,
    ('numpy', 'dtype'): _Dtype,
    ('numpy.core.multiarray', 'scalar'): _numpy_scalar,
    ('numpy._core.multiarray', 'scalar'): _numpy_scalar,
}


class Unpickler(SafeUnpickler):
    """An unpickler that allows only the names in ALLOWED."""

    def __init__(self, file):
        super().__init__(file)
        self._storages: dict[int, tuple[bytes, _Data]] = {}
        self.ALLOWED = ALLOWED | {('torch.storage', '_load_from_bytes'): self._storage_once}

    def _storage_once(self, data: bytes) -> _Data:
        """Bytes that occur once in the file become one storage, however often they are used."""
        if id(data) not in self._storages:
            self._storages[id(data)] = data, _storage(data)
        return self._storages[id(data)][1]


def read_pickle(path) -> Any:
    """The contents of the pickle at `path`, with our stand-ins for its classes. Raises ValueError, in one line."""
    try:
        if not os.path.isfile(path):
            raise ValueError('not a file')
        with open(path, 'rb') as file:
            return Unpickler(file).load()
    except UnsafePickle as error:
        raise ValueError(f'{path} is refused: {error}') from None
    except OSError:
        raise
    except (EOFError, pickle.UnpicklingError) as error:
        if 'truncated' not in str(error) and not isinstance(error, EOFError):
            raise ValueError(f'{path} is damaged or not a pickle ({shown(error)})') from None
        raise ValueError(f'{path} is cut short; download it again') from None
    except Exception as error:  # a foreign or damaged file can fail in any way, in torch's reader too
        raise ValueError(f'{path} is damaged or refused ({shown(error) or type(error).__name__})') from None


def recognises(head: bytes, path) -> bool:
    return head[:1] == b'\x80'


def read(path) -> NetworkFile:
    """The network in an EDM pickle: under 'ema', as EDM writes it, or the file's only object. Raises ValueError."""
    data = read_pickle(path)
    record = data.get('ema') if isinstance(data, dict) else data
    if not isinstance(record, Record) or '_parameters' not in record.state:
        raise ValueError(f'{path} is a pickle, but holds no network under "ema"')
    name = record.class_name
    if name not in PRECONDITIONERS:
        raise ValueError(f'{path} holds a {shown(name)}; known are {", ".join(PRECONDITIONERS)}')
    try:
        kwargs, state = _init_kwargs(record, PRECONDITIONERS[name]), _state_dict(record, set())
    except (TypeError, AttributeError, ValueError, RecursionError) as error:  # records unlike those that EDM writes
        raise ValueError(f'{path} does not describe its {name} ({shown(error)})') from None
    if sum(t.numel() * t.element_size() for t in state.values()) > 2 * os.path.getsize(path):  # if storages are shared
        raise ValueError(f'{path} is refused: its tensors are larger than itself')
    return NetworkFile(state, name, kwargs, dict(source=Path(path).name))


def _init_kwargs(record: Record, constructor: type) -> dict:
    """The constructor's arguments by name, including those given by position."""
    signature = inspect.signature(constructor)
    bound = signature.bind_partial(*record.state.get('_init_args', ()), **record.state.get('_init_kwargs', {}))
    kwargs = {}
    for name, value in bound.arguments.items():
        kwargs.update(value if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    return kwargs


def _state_dict(record: Record, seen: set[int], prefix: str = '') -> dict[str, torch.Tensor]:
    """All tensors below a record. Raises ValueError for a module in two places, since such files could have no end."""
    if id(record) in seen:
        raise ValueError(f'{prefix[:-1]} occurs in two places')
    seen.add(id(record))
    state = {}
    for kind in ('_parameters', '_buffers'):
        for name, data in record.state.get(kind, {}).items():
            if isinstance(data, _Data) and name not in record.state.get('_non_persistent_buffers_set', ()):
                state[prefix + name] = data.tensor
    for name, module in record.state.get('_modules', {}).items():
        if isinstance(module, Record):
            state.update(_state_dict(module, seen, f'{prefix}{name}.'))
    return state
