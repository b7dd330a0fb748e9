"""Network files (safetensors with a JSON description) and training state, never executed when read."""

import json
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch

from dnnlib.files import atomic_write

FORMAT = 'network-v1'


class NetworkFile(NamedTuple):
    """Contents of a network file: tensors, the class name and arguments that take them, free metadata."""

    state: dict[str, torch.Tensor]
    constructor: str
    kwargs: dict[str, Any]
    metadata: dict[str, Any]


def save_network(path, state, constructor: str, kwargs: dict, metadata: dict | None = None, half: bool = False) -> None:
    """Write a network to `path` (.safetensors), whole or not at all.

    `state` is a module or a state dict; `constructor` and `kwargs` (JSON-able) rebuild the module;
    `half` stores floating-point tensors as float16, which halves the file; a module's buffers stay as they are
    (tables such as noise levels and Fourier frequencies, whose rounding would show).
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
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist')
    try:
        with safetensors.safe_open(path, framework='pt', device='cpu') as file:
            text = (file.metadata() or {}).get('network')
            state = {name: file.get_tensor(name) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise ValueError(f'{path} is not a readable safetensors file ({error})') from None
    if text is None:
        raise ValueError(f'{path} holds tensors but no description of a network; it was not written by this project')
    state = {name: t.float() if t.dtype == torch.float16 else t for name, t in state.items()}
    try:
        description = json.loads(text)
        if description['format'] == FORMAT:
            return NetworkFile(state, description['constructor'], description['kwargs'], description['metadata'])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} has a damaged description ({error!r})') from None
    raise ValueError(f'{path} has format {description["format"]!r}, this version reads {FORMAT!r}')


def save_state(path, state: dict) -> None:
    """Write training state (nested dicts and lists of tensors, numbers, strings), whole or not at all."""
    with atomic_write(path) as file:
        torch.save(state, file)


def save_state_dict(path, net: torch.nn.Module) -> None:
    """Write the plain state dict of `net`, on the CPU, whole or not at all."""
    save_state(path, {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()})


def load_state(path) -> dict:
    """Read what `save_state` wrote, or a plain state dict, onto the CPU; nothing in the file is executed.

    Raises ValueError and FileNotFoundError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of files that are then refused
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises many kinds (pickle, zip, end of file) for a foreign file
        raise ValueError(f'{path} is not a PyTorch file of tensors ({_reason(error)})') from None


def _reason(error: Exception) -> str:
    """Torch's complaint in a few words, and without its advice to load the file unsafely."""
    text = str(error)
    asked = re.search(r'GLOBAL ([\w.]+)', text)
    if asked:
        return f'it asks for {asked[1]}, which is refused'
    if 'weights_only' in text:
        return 'it holds something else'
    if not text.strip():
        return type(error).__name__
    return text.strip().splitlines()[0]
