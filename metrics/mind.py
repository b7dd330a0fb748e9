"""MIND: the sliced Wasserstein distance between features."""

import math

import numpy as np
import torch

from .estimate import Estimate, from_terms
from .measure import sample_positions

CHUNK = 50  # directions at a time


def mind(x: torch.Tensor, y: torch.Tensor, directions: int = 1000, seed: int = 0) -> Estimate:
    """The mean over unit directions of the squared Wasserstein-2 distance between projections; arXiv:2605.06797.

    x, y: features [n, D], [m, D]. Along a direction that is the mean of the squared differences of the sorted
    projections; of the larger set as many vectors are used as the smaller one has, evenly spread. Directions are drawn
    uniformly, the same for every call. Biased upwards for few images. Raises ValueError for unlike dimensions and NaN.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f'features of shapes {list(x.shape)} and {list(y.shape)} cannot be compared')
    n = min(len(x), len(y))
    x, y = (features.to('cpu', torch.float32)[sample_positions(len(features), n)] for features in (x, y))
    ways = torch.randn([directions, x.shape[1]], generator=torch.Generator().manual_seed(seed))
    total, terms = 0.0, torch.zeros([n], dtype=torch.float64)
    for way in torch.nn.functional.normalize(ways, dim=1).split(CHUNK):
        u = (way @ x.T).numpy()  # [CHUNK, n]; numpy sorts several times as fast as torch on a CPU
        order = np.argsort(u, axis=1)
        u = torch.from_numpy(np.take_along_axis(u, order, axis=1)).double()
        gap = u - torch.from_numpy(np.sort((way @ y.T).numpy(), axis=1)).double()
        total += float(gap.square().mean(dim=1).sum())
        # Kantorovich's potential, whose slope at u is twice the gap, is what moving mass to u changes.
        steps = (gap[:, 1:] + gap[:, :-1]) * u.diff(dim=1)
        potential = torch.cat([torch.zeros_like(u[:, :1]), steps.cumsum(dim=1)], dim=1)
        terms.scatter_add_(0, torch.from_numpy(order).flatten(),
                           (potential - potential.mean(dim=1, keepdim=True)).flatten())
    if not math.isfinite(total):
        raise ValueError('the features hold NaN or infinite values')
    return from_terms(total / directions, terms / directions)
