"""Reading and writing score networks."""

import os
from pathlib import Path

import torch

from dnnlib import demo
from dnnlib.download import fetch
from torch_utils import checkpoint

from .formats import FORMATS, HEAD
from .formats.text import shown
from .precond import Precond, construct, set_precision

SIGNATURES = checkpoint.SIGNATURES | {b'PK': 'a zip archive (a .pt or .npz file?)'}


def load_network(path_or_url: str | os.PathLike = demo.DEMO_SCORE, device: torch.device | str = 'cpu',
                 dtype: torch.dtype = torch.float32, sha256: str | None = None,
                 preset: str | os.PathLike | None = None) -> Precond:
    """A score network from a file in any format of networks/formats/; nothing in the file is executed.

    Without a path, this is the bundled network for CIFAR-10. `dtype` is that of the U-Net's body; even published
    networks with `use_fp16` run in float32 unless it is given. `preset` is the configuration of a score_sde or
    Soft-Truncation checkpoint: a name (formats/song_config.py) or a YAML; None: the name of the checkpoint's folder.
    The network is in evaluation mode, frozen. Raises ValueError or OSError, in one line.
    """
    path = fetch(path_or_url, sha256=sha256)
    net = build_network(read_network_file(path, preset), path)
    return set_precision(net.to(device), dtype).eval().requires_grad_(False)


def build_network(file: checkpoint.NetworkFile, path) -> Precond:
    """The network that a file describes, with the file's weights; `path` is for messages. Raises ValueError."""
    try:
        with checkpoint.limited(file.state):
            net = construct(file.constructor, file.kwargs)
        net.load_state_dict(file.state)
    except Exception as error:  # unexpected arguments can fail in any way
        raise ValueError(f'{path} does not fit its own description: {shown(error, 300)}') from None
    net.metadata = file.metadata
    return net


def read_network_file(path, preset=None) -> checkpoint.NetworkFile:
    """Class name, arguments, tensors and metadata of a network file; its format follows from its content, not its name.

    `preset` as in `load_network`. Raises ValueError and OSError.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist')
    if not path.is_file():
        raise ValueError(f'{path} is not a file')
    with open(path, 'rb') as file:
        head = file.read(HEAD)
    for format in FORMATS:
        if format.recognises(head, path):
            if format.NEEDS_PRESET:
                return format.read(path, preset)
            if preset is not None:
                raise ValueError(f'{path} describes itself; it takes no preset')
            return format.read(path)
    kinds = [what for signature, what in SIGNATURES.items() if head.lstrip().startswith(signature)] + ['something else']
    raise ValueError(f'{path} is {kinds[0]}, not a score network (EDM pickle, score_sde checkpoint, safetensors)')


def save_network(path, net: Precond, metadata: dict | None = None, half: bool = False) -> None:
    """Write a network made by `construct` as safetensors; `half` stores parameters (not buffers) as float16."""
    checkpoint.save_network(path, net, net.constructor, net.init_kwargs, metadata, half=half)
