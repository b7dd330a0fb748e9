"""Features of toy images and of a toy reference, for metrics."""

import numpy as np
import torch


def published_features() -> tuple[torch.Tensor, torch.Tensor]:
    """x [300, 12] and y [250, 12], float32: those that the published packages were given."""
    rng = np.random.RandomState(0)
    x, y = np.abs(rng.standard_normal([300, 12])), np.abs(rng.standard_normal([250, 12]))
    return torch.from_numpy(x * 0.9 + 0.1).float(), torch.from_numpy(y).float()


class Toy:
    """A distribution of features [n, dim], not normal, and its reference."""

    def __init__(self, dim=8, reference=2000):
        self.mix = torch.randn(dim, dim) / dim ** 0.5
        self.dim = dim
        self.reference = torch.randn(reference, dim).relu() @ self.mix

    def draw(self, n):
        return (1.1 * torch.randn(n, self.dim)).relu() @ self.mix + 0.2
