"""What every sampler starts from: latents and labels that follow from seeds."""

from collections.abc import Sequence

import torch

from torch_utils.rng import StackedRandomGenerator


def draw_inputs(net, seeds: Sequence[int], device, class_idx: int | None = None):
    """What a batch starts from: (generators, latents [n, C, H, W] float32, one-hot labels [n, K] or None).

    device: of the generators and what they draw; class_idx: one label for all, or None: drawn for each seed. As EDM
    draws them, one generator per seed: latents first, then the label (drawn also where `class_idx` fixes it, so that
    later noise is the same). Raises ValueError for a class that the network does not have.
    """
    check_class(net, class_idx)
    rnd = StackedRandomGenerator(device, seeds)
    size = net.img_resolution
    latents = rnd.randn([len(seeds), net.img_channels, size, size])
    if not net.label_dim:
        return rnd, latents, None
    index = rnd.randint(net.label_dim, size=[len(seeds)])
    if class_idx is not None:
        index = torch.full_like(index, class_idx)
    return rnd, latents, torch.eye(net.label_dim, device=index.device)[index]  # one_hot would wait for the device


def check_class(net, class_idx: int | None) -> None:
    """Raise ValueError for a class that `net` does not have."""
    if class_idx is None or class_idx < net.label_dim:
        return
    if not net.label_dim:
        raise ValueError('the network is unconditional; leave this option out')
    raise ValueError(f'{class_idx} is beyond the network\'s labels; use 0 to {net.label_dim - 1}')
