"""Low-rank adapters of an ADM classifier (LoRA: Hu et al., ICLR 2022), laid out as loralib's Conv2d.

The first 3x3 convolution of every residual block, W [out, in, 3, 3], becomes W + (B A).view(out, in, 3, 3) / r with
A = lora_A [3 r, 3 in] and B = lora_B [3 out, 3 r]; r is the rank and alpha is 1. The discriminators of Abdellaoui,
Persson and Santos Escriche's reproduction of DG read the features of such a classifier.
"""

import math
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from dnnlib.files import resolve_path
from guided_diffusion.nn import Conv2d, ResBlock
from torch_utils.checkpoint import load_state, read_network, save_network

LAYER = '.in_layers.2'  # the layer of a residual block that is adapted
CONSTRUCTOR = 'lora'  # in the description of our own files


class Adapters(NamedTuple):
    """The adapters of one classifier: tensors by their names in it, as in published files."""

    state: dict[str, torch.Tensor]  # '<layer>.lora_A' [3 r, 3 in] and '<layer>.lora_B' [3 out, 3 r]
    rank: int
    path: str


class LoraConv2d(Conv2d):
    """A convolution and its adapter: `weight` and `bias` are those of `conv`, lora_A and lora_B are new.

    lora_B starts at 0, so the layer starts as `conv`. The sum is taken in float32.
    """

    def __init__(self, conv: Conv2d, rank: int):
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding, device='meta')
        self.weight, self.bias, self.compute_dtype = conv.weight, conv.bias, conv.compute_dtype
        size, device = conv.kernel_size[0], conv.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank * size, size * conv.in_channels))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # on the CPU, so that all devices get the same weights
        self.lora_A.data = self.lora_A.data.to(device)
        self.lora_B = nn.Parameter(torch.zeros(size * conv.out_channels, rank * size, device=device))

    def forward(self, x):
        x = x.to(self.compute_dtype or x.dtype)
        weight = adapted(self.weight, self.lora_A, self.lora_B)
        return self._conv_forward(x, weight.to(x.dtype), self.bias.to(x.dtype))


def adapted(weight, lora_A, lora_B):
    """A weight [out, in, k, k] with its adapter, float32."""
    rank = lora_A.shape[0] // weight.shape[2]
    return weight.float() + (lora_B @ lora_A).view(weight.shape) / rank


def add_adapters(net: nn.Module, rank: int) -> nn.Module:
    """Freeze an ADM classifier and add adapters, the only parameters with gradients; A from torch's generator.

    Raises ValueError for a rank below 1.
    """
    if rank < 1:
        raise ValueError(f'rank {rank} is not a rank for adapters; use 1 or more')
    net.requires_grad_(False)
    for block in [module for module in net.modules() if isinstance(module, ResBlock)]:
        block.in_layers[2] = LoraConv2d(block.in_layers[2], rank)
    return net


def adapters_of(net: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters of a network that `add_adapters` has changed, by name; live parameters."""
    return {name: value for name, value in net.named_parameters() if name.rpartition('.')[2].startswith('lora_')}


def read_adapters(path: str | os.PathLike, rank: int | None = None) -> Adapters:
    """Adapters from our safetensors or from a published file, a dict of tensors; nothing in it is executed.

    The rank is read from the shapes. Raises ValueError if it is not `rank`, or if the file has no adapters, and
    FileNotFoundError.
    """
    path = Path(resolve_path(path))
    if path.suffix == '.safetensors':
        file = read_network(path)
        if file.constructor != CONSTRUCTOR:
            raise ValueError(f'{path} is a {file.constructor}, not LoRA adapters')
        state = file.state
    else:
        state = load_state(path)
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise ValueError(f'{path} is not a file of LoRA adapters')
    if not any(name.endswith('.lora_A') for name in state):
        raise ValueError(f'{path} has no LoRA adapters in it, {len(state)} other tensors (was it saved without '
                         f'--lora_rank?)')
    ranks = {value.shape[0] / 3 for name, value in state.items() if name.endswith('.lora_A')}
    found = int(max(ranks))
    if len(ranks) != 1 or found < 1 or found not in ranks:
        raise ValueError(f'{path} has adapters of different ranks: {", ".join(f"{r:g}" for r in sorted(ranks))}')
    if rank is not None and rank != found:
        raise ValueError(f'{path} has adapters of rank {found}, not {rank}')
    return Adapters({name: value.float() for name, value in state.items()}, found, str(path))


def save_adapters(path, net: nn.Module, metadata: dict) -> None:
    """Write the adapters of a network as safetensors, with their rank and `metadata`."""
    state = adapters_of(net)
    rank = next(iter(state.values())).shape[0] // 3
    save_network(path, state, CONSTRUCTOR, dict(rank=rank), metadata)


def merge(state: dict, adapters: Adapters) -> dict:
    """A classifier's state dict with the adapters added to its weights. Raises ValueError if they do not fit it."""
    layers = {name.removesuffix('.weight') for name in state if name.endswith(f'{LAYER}.weight')}
    expected = {f'{layer}.lora_{factor}' for layer in layers for factor in 'AB'}
    if missing := expected - adapters.state.keys():
        raise ValueError(f'adapters {adapters.path} lack {min(missing)}; the classifier has this layer')
    if foreign := adapters.state.keys() - expected:
        raise ValueError(f'adapters {adapters.path} have {min(foreign)[:100]!r}; the classifier has no such layer')
    merged = dict(state)
    for layer in layers:
        weight, factors = state[f'{layer}.weight'], [adapters.state[f'{layer}.lora_{factor}'] for factor in 'AB']
        size, rank = weight.shape[2], adapters.rank
        shapes = [(size * rank, size * weight.shape[1]), (size * weight.shape[0], size * rank)]
        for factor, found, shape in zip('AB', factors, shapes, strict=True):
            if tuple(found.shape) != shape:
                raise ValueError(f'adapters {adapters.path} belong to another classifier: {layer}.lora_{factor} is '
                                 f'{list(found.shape)}, this one needs {list(shape)}')
        merged[f'{layer}.weight'] = adapted(weight, *factors)
    return merged
