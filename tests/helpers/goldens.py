"""Golden arrays of the reference implementations, and the recipe for the weights of any network."""

import zlib
from pathlib import Path

import numpy as np
import torch

GOLDENS = Path(__file__).resolve().parent.parent / 'goldens'


def load(name: str) -> dict[str, np.ndarray]:
    """All arrays of tests/goldens/<name>."""
    with np.load(GOLDENS / name, allow_pickle=False) as file:
        return dict(file)


def recipe_tensor(key: str, shape, seed: int = 0) -> torch.Tensor:
    """Weights that depend only on a parameter's name and shape (tests/goldens/ORIGIN.md)."""
    key = key.removeprefix('module.')
    shape = list(shape)
    z = np.random.RandomState((zlib.crc32(key.encode()) + 1000003 * seed) % 2**32).standard_normal(shape)
    z = torch.from_numpy(np.asarray(z, dtype=np.float32))
    if key.endswith('map_noise.freqs') or (len(shape) == 1 and key.split('.')[-1] == 'W'):
        return 16 * z
    if key.endswith('label_emb.weight'):
        return 0.5 * z
    if len(shape) >= 2:
        return (z.double() / float(np.sqrt(np.prod(shape[1:])))).float()  # so that rounding to float16 agrees
    return 1 + 0.1 * z if key.endswith('weight') else 0.1 * z


@torch.no_grad()
def recipe_(module: torch.nn.Module, seed: int = 0, half: bool = False) -> torch.nn.Module:
    """Fill `module`'s parameters (and Fourier frequencies) by the recipe, in place; `half` rounds to float16."""
    entries = dict(module.named_parameters())
    entries.update((k, b) for k, b in module.named_buffers() if k.endswith('map_noise.freqs'))
    for key, tensor in entries.items():
        value = recipe_tensor(key, tensor.shape, seed)
        tensor.copy_(value.half().float() if half else value)
    return module
