"""Mean and covariance of features, summed in float64 batch by batch and over ranks."""

import numpy as np
import torch

from torch_utils import distributed as dist


class Moments:
    """Sums of feature vectors and of their outer products, float64, on one device.

    `dim`: length D of a feature vector. `all_reduce` adds the sums of all ranks, so that every rank then holds the
    moments of all images.
    """

    def __init__(self, dim: int, device: torch.device | str = 'cpu'):
        self.count = 0
        self.total = torch.zeros([dim], dtype=torch.float64, device=device)  # sum of f
        self.outer = torch.zeros([dim, dim], dtype=torch.float64, device=device)  # sum of f f^T

    @property
    def dim(self) -> int:
        return self.total.shape[0]

    def add(self, features: torch.Tensor) -> None:
        """Adds [N, D] features of any floating dtype. Raises ValueError for another shape."""
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f'features of shape [N, {self.dim}] expected, got {list(features.shape)}')
        f = features.to(self.total.device, torch.float64)
        self.count += f.shape[0]
        self.total += f.sum(dim=0)
        self.outer.addmm_(f.T, f)

    def all_reduce(self) -> 'Moments':
        """Replaces the sums by those of all ranks together."""
        count = torch.tensor([self.count], dtype=torch.int64, device=self.total.device)
        self.count = int(dist.all_reduce_(count))
        dist.all_reduce_(self.total)
        dist.all_reduce_(self.outer)
        return self

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """mu [D] and the unbiased covariance sigma [D, D] (divisor count - 1), float64.

        Raises ValueError for fewer than two images and for features that are not finite.
        """
        if self.count < 2:
            raise ValueError(f'a covariance needs at least 2 images, there are {self.count}')
        mu = self.total / self.count
        sigma = (self.outer - torch.outer(mu, self.total)) / (self.count - 1)
        if not bool(torch.isfinite(sigma).all()):
            raise ValueError('the features hold NaN or infinite values')
        return mu.cpu().numpy(), ((sigma + sigma.T) / 2).cpu().numpy()
