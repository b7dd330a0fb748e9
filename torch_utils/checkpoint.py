"""Network files (safetensors with a JSON description) and training state; reading them executes nothing."""

import contextlib
import json
import math
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
import torch.overrides

from dnnlib.files import atomic_write

from .archives import open_zip, reason
from .safe_pickle import check_pickle

FORMAT = 'network-v1'
PREFIX = 'module.'
SAFE_TORCH = (2, 10)
MAX_HEADER = 100_000_000  # bytes, as safetensors itself
MAX_TENSORS = 20_000
TOO_LARGE = 'it describes a network larger than the one it holds'
SIGNATURES = {b'\x89PNG': 'a PNG image', b'<': 'a web page', b'\x93NUMPY': 'a numpy array', b'\xff\xd8': 'a JPEG image',
              b'version https://git-lfs': 'a Git LFS pointer (fetch the file itself)'}


class NetworkFile(NamedTuple):
    """Contents of a network file: tensors, the class and arguments of the network they fit, and free metadata."""

    state: dict[str, torch.Tensor]
    constructor: str
    kwargs: dict[str, Any]
    metadata: dict[str, Any]


def save_network(path, state, constructor: str, kwargs: dict, metadata: dict | None = None, half: bool = False) -> None:
    """Write a network to `path` (.safetensors), whole or not at all.

    `state` is a module or a state dict; `constructor` and `kwargs` (JSON-able) rebuild the module;
    `half` stores floating-point tensors as float16, which halves the file; a module's buffers stay as they are
    (tables of noise levels and Fourier frequencies, for example, where rounding would show).
    """
    exact = set()
    if isinstance(state, torch.nn.Module):
        exact = {name for name, _ in state.named_buffers()}
        state = state.state_dict()
    tensors = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        if half and tensor.is_floating_point() and name not in exact:
            if tensor.abs().max() > 65504:
                raise ValueError(f'{name} does not fit into float16')
            tensor = tensor.half()
        tensors[name] = tensor
    description = dict(format=FORMAT, constructor=constructor, kwargs=kwargs, metadata=metadata or {})
    data = safetensors.torch.save(tensors, metadata={'network': json.dumps(description, sort_keys=True)})
    with atomic_write(path) as file:
        file.write(data)


def read_network(path) -> NetworkFile:
    """Read a file written by `save_network`; float16 tensors come back as float32. Raises ValueError."""
    path = _file(path)
    try:
        _check_header(path)
        with safetensors.safe_open(path, framework='pt', device='cpu') as file:
            text = (file.metadata() or {}).get('network')
            state = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # a file from elsewhere can fail in any way: its JSON, names, types
        raise ValueError(f'{path} is {what_it_is(path) or "not a readable safetensors file"} '
                         f'({reason(error)})') from None
    if text is None:
        raise ValueError(f'{path} holds tensors but no description of a network; it was not written by this project')
    state = {name: t.float() if t.dtype == torch.float16 else t for name, t in state.items()}
    try:
        description = json.loads(text, parse_constant=_constant)
        if description['format'] == FORMAT:
            constructor, kwargs, metadata = (description[key] for key in ('constructor', 'kwargs', 'metadata'))
            if not (isinstance(constructor, str) and isinstance(kwargs, dict) and isinstance(metadata, dict)):
                raise TypeError('a constructor is a name, its arguments and the metadata are tables')
            return NetworkFile(state, constructor, kwargs, metadata)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f'{path} has a damaged description ({reason(error)})') from None
    raise ValueError(f'{path} has format {reason(ValueError(description["format"]))!r}, this version reads {FORMAT!r}')


def _check_header(path: Path) -> None:
    """Raise ValueError if the header is longer than the file, or lists more tensors than any network has."""
    with path.open('rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        if length > min(path.stat().st_size - 8, MAX_HEADER):
            raise ValueError(f'its header would have {length:,} bytes')
        count = len(json.loads(file.read(length)))
    if count > MAX_TENSORS:
        raise ValueError(f'it has {count:,} tensors')


def _constant(name: str) -> float:
    if name == 'NaN':
        raise ValueError('NaN in it')
    return float(name)


@contextlib.contextmanager
def limited(state: dict[str, torch.Tensor]) -> Iterator[None]:
    """A network built inside this block may not become larger than `state`, the tensors it is to hold.

    A description of a few bytes can ask for endless layers; they are refused before they take memory. Up to twice the
    parameters are allowed, so that a file that lacks a few is told which ones. Raises ValueError.
    """
    values = 2 * sum(tensor.numel() for tensor in state.values()) + 10**6
    room = {'parameters': 2 * len(state) + 100, 'values': values}

    def count(module, name, parameter):
        if parameter is not None:
            room['parameters'] -= 1
            room['values'] -= parameter.numel()
            if min(room.values()) < 0:
                raise ValueError(TOO_LARGE)

    hook = torch.nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        with _Factories(values):
            yield
    finally:
        hook.remove()


class _Factories(torch.overrides.TorchFunctionMode):
    """Refuses new tensors with more than `most` values."""

    NAMES = ('empty', 'zeros', 'ones', 'full', 'rand', 'randn', 'randint', 'eye', 'arange', 'linspace')

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, '__name__', None) in self.NAMES:
            given = [*args, *(kwargs or {}).values()]
            sizes = [n for part in given for n in (part if isinstance(part, (tuple, list)) else [part])
                     if type(n) is int]  # or bounds and values, which are small
            if math.prod(max(abs(n), 1) for n in sizes) ** (2 if func.__name__ == 'eye' else 1) > self.most:
                raise ValueError(TOO_LARGE)
        return func(*args, **(kwargs or {}))


def save_state(path, state: dict) -> None:
    """Write training state (nested dicts and lists of tensors, numbers, strings), whole or not at all."""
    with atomic_write(path) as file:
        torch.save(state, file)


def save_state_dict(path, net: torch.nn.Module) -> None:
    """Write the plain state dict of `net`, on the CPU, whole or not at all."""
    save_state(path, {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()})


def load_state(path) -> dict:
    """Read what `save_state` wrote, or a plain state dict, onto the CPU; nothing in the file is executed.

    The prefix `module.`, which DistributedDataParallel adds to every name, is removed.
    Raises ValueError and FileNotFoundError.
    """
    path = _file(path)
    if _torch_version() < SAFE_TORCH:
        raise ValueError(f'{path} is not read: before torch 2.10 a .pt file from elsewhere can corrupt memory '
                         f'(CVE-2026-24747) and this is {torch.__version__}; update torch')
    try:
        _check_state_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about files that are then refused
            state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises many kinds (pickle, zip, end of file)
        kind = what_it_is(path)
        raise ValueError(f'{path} is {kind}, not a PyTorch file; download it again' if kind else
                         f'{path} is not a PyTorch file of tensors ({_reason(error)})') from None
    if isinstance(state, dict) and state and all(isinstance(key, str) and key.startswith(PREFIX) for key in state):
        state = {key[len(PREFIX):]: value for key, value in state.items()}
    return state


def _torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r'\d+', torch.__version__)[:2])


def _file(path) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist')
    if not path.is_file():  # a pipe would never end
        raise ValueError(f'{path} is not a file')
    return path


def _check_state_file(path: Path) -> None:
    """Raise an error of any kind if the file would cost torch's reader more memory or time than its size explains."""
    if zipfile.is_zipfile(path):
        with open_zip(path, 'PyTorch') as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError('it is compressed, which torch.save never does')
            for name in archive.namelist():
                if name.rpartition('/')[2] == 'data.pkl':
                    with archive.open(name) as file:
                        check_pickle(file)
        return
    with path.open('rb') as file:  # from before torch 1.6: a number, a version, the machine, the tensors, their names
        for _ in range(5):
            if file.tell() < path.stat().st_size:
                check_pickle(file)


def what_it_is(path: Path) -> str | None:
    """What a file that is not a network is, judged by its first bytes: 'a web page', for example."""
    with open(path, 'rb') as file:
        head = file.read(64).lstrip()
    return next((what for signature, what in SIGNATURES.items() if head.startswith(signature)), None)


def _reason(error: Exception) -> str:
    """Torch's complaint in a few words, without its advice to load the file unsafely."""
    if isinstance(error, (ValueError, EOFError)):  # ours
        return reason(error)
    text = str(error)
    asked = re.search(r'GLOBAL ([\w.]+)', text)
    if asked:
        return f'it asks for {asked[1]}, which is refused'
    if 'weights_only' in text:
        return 'it holds something else'
    if not text.strip():
        return type(error).__name__
    return reason(ValueError(text.strip().splitlines()[0]))
