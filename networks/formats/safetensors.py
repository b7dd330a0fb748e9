"""This project's own network files: safetensors whose metadata describe the network."""

from torch_utils.checkpoint import NetworkFile, read_network

from ..precond import PRECONDITIONERS

NEEDS_PRESET = False


def recognises(head: bytes, path) -> bool:
    return head[8:9] == b'{'


def read(path) -> NetworkFile:
    """The network in a safetensors file. Raises ValueError, also for another kind of network."""
    file = read_network(path)
    if file.constructor not in PRECONDITIONERS:
        raise ValueError(f'{path} is a {file.constructor}, not a score network')
    return file
