"""Precision, recall, density and coverage: whose nearest-neighbour balls cover whom."""

from typing import NamedTuple

import torch

from .estimate import Estimate, from_terms

ELEMENTS = 1 << 24  # distances held at a time


class Neighbours(NamedTuple):
    """Shares of images (precision), of the reference (recall, coverage), and a mean number of balls (density)."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def neighbours(x: torch.Tensor, y: torch.Tensor, k: int = 3, k_density: int = 5) -> Neighbours:
    """Of images with features x [n, D] against a reference y [m, D], from all pairs, in chunks of flat memory.

    A ball reaches from a vector to its k-th nearest neighbour in its own set. Precision: the share of x in a ball of y;
    recall: the share of y in a ball of x; Kynkaanniemi et al. 2019 (arXiv:1904.06991), k = 3. With `k_density`
    neighbours, density: the mean number of balls of y that an x is in, over k; coverage: the share of y with an x in
    its ball; Naeem et al. 2020 (arXiv:2002.09797), k = 5. All depend on n and m: compare only equal ones.

    The terms of recall and coverage count what one image covers and no other does, with balls as they are. Their
    errors are right to somewhat large (up to twice the deviation between draws); the jackknife's are larger still.
    Raises ValueError for unlike dimensions, for k neighbours or fewer in a set, and for NaN.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f'features of shapes {list(x.shape)} and {list(y.shape)} cannot be compared')
    if min(len(x), len(y)) <= max(k, k_density):
        raise ValueError(f'{len(x)} and {len(y)} vectors; a set must have more than {max(k, k_density)}')
    centre = y.to(torch.float32).mean(dim=0)  # short vectors lose less when squares are subtracted
    x, y = x.to(torch.float32) - centre, y.to(torch.float32) - centre
    (x_ball,), (y_ball, y_ball_density) = squared_radii(x, [k]), squared_radii(y, [k, k_density])
    if not bool(x_ball.isfinite().all() and y_ball.isfinite().all()):
        raise ValueError('the features hold NaN or infinite values')
    of_y, of_x, dense = (Balls(len(x), len(y), x.device) for _ in range(3))
    for low, high, distances in _chunks(x, y):  # [high - low, m]
        of_y.add(low, distances, y_ball)
        of_x.add(low, distances, x_ball[low:high, None])
        dense.add(low, distances, y_ball_density)
    inside, density = (of_y.hits > 0).double(), dense.hits / k_density
    return Neighbours(from_terms(inside.mean(), inside), of_x.share_reached(),
                      from_terms(density.mean(), density), dense.share_reached())


class Balls:
    """Which of n images and m reference images are closer to each other than the radius of a ball around one of them.

    Counts are sums by matrix products of 0 and 1 in float32, several times as fast as those of bools, exact to 2^24.
    """

    def __init__(self, n: int, m: int, device):
        self.hits = torch.zeros([n], dtype=torch.float64, device=device)  # of each image
        self.times = torch.zeros([m], dtype=torch.float64, device=device)  # that a reference image is hit,
        self.rows = torch.zeros([m], dtype=torch.float64, device=device)  # and the sum of the images that hit it

    def add(self, low: int, distances: torch.Tensor, squared_radii: torch.Tensor) -> None:
        """distances [rows, m] squared, of images from `low` on; squared_radii [m] or [rows, 1]."""
        hit = torch.le(distances, squared_radii, out=torch.empty_like(distances))
        self.hits[low:low + len(hit)] = hit @ hit.new_ones([hit.shape[1]])
        numbers = torch.arange(low, low + len(hit), device=hit.device)
        times, rows = torch.stack([torch.ones_like(numbers), numbers]).to(hit.dtype) @ hit
        self.times += times
        self.rows += rows

    def share_reached(self) -> Estimate:
        """The share of reference images that are hit; an image's term is the share that nothing else hits."""
        n, m = len(self.hits), len(self.times)
        alone = torch.bincount(self.rows[self.times == 1].long(), minlength=n)  # [n]
        return from_terms((self.times > 0).double().mean(), alone * (n / m))


def squared_radii(x: torch.Tensor, ks: list[int]) -> list[torch.Tensor]:
    """For each k, the squared distances [n] of x [n, D] to their k-th nearest neighbours among the others."""
    found = [torch.empty([len(x)], device=x.device) for _ in ks]
    for low, high, distances in _chunks(x, x):
        distances[torch.arange(high - low), torch.arange(low, high)] = 0  # itself, exactly
        nearest = distances.topk(max(ks) + 1, dim=1, largest=False).values  # ascending
        for each, k in zip(found, ks, strict=True):
            each[low:high] = nearest[:, k]
    return found


def _chunks(x, y):
    """Yields (low, high, squared distances of x[low:high] to all of y), in one buffer."""
    size = max(ELEMENTS // len(y), 1)
    y_square = y.square().sum(dim=1)  # [m]
    buffer = torch.empty([min(size, len(x)), len(y)], device=x.device)
    for low in range(0, len(x), size):
        part = x[low:low + size]
        distances = torch.addmm(y_square.expand(len(part), -1), part, y.T, alpha=-2, out=buffer[:len(part)])
        yield low, low + len(part), distances.add_(part.square().sum(dim=1, keepdim=True)).clamp_min_(0)
