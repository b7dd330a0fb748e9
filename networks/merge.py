"""Weights between two networks, or beyond one of them (Neon, Alemohammad et al. 2025, arXiv 2510.03597)."""

import torch


@torch.no_grad()
def merge_(net, other, w: float):
    """Set the parameters of `net` to (1 + w) net - w other, in place; computed in float64, stored as they were.

    Raises ValueError if architectures differ, or buffers (such as random frequencies), which cannot be averaged.
    """
    ours, theirs = dict(net.named_parameters()), dict(other.named_parameters())
    shapes = [{name: tensor.shape for name, tensor in both.items()} for both in (ours, theirs)]
    if shapes[0] != shapes[1] or type(net) is not type(other):
        raise ValueError('the networks differ in architecture; their weights do not correspond')
    buffers = dict(other.named_buffers())
    for name, buffer in net.named_buffers():
        if not torch.equal(buffer, buffers[name]):
            raise ValueError(f'the networks differ in {name}, which is not trained: they come from different trainings')
    for name, parameter in ours.items():
        parameter.copy_((1 + w) * parameter.double() - w * theirs[name].double())
    return net
