"""Kernel inception distance: an unbiased distance for few images, with its standard error."""

from typing import NamedTuple

import torch

ROWS = 512  # of a kernel matrix, held at a time


class KernelDistance(NamedTuple):
    """An estimate of MMD^2 (it may be negative, since it is unbiased) and its standard error."""

    value: float
    error: float


def polynomial_kernel_sum(x: torch.Tensor, y: torch.Tensor) -> float:
    """Sum over all pairs of k(x, y) = (x . y / D + 1)^3; x [n, D], y [m, D], float64."""
    return float((x @ y.T / x.shape[1] + 1).pow_(3).sum())


def kernel_distance(x: torch.Tensor, y: torch.Tensor, groups: int = 20, seed: int = 0) -> KernelDistance:
    """The unbiased estimate of MMD^2 between features x [n, D] and y [m, D] with KID's cubic kernel.

    Binkowski et al. 2018 (arXiv:1801.01401), section 4, but with every pair of images instead of random
    subsets: the same expectation, less variance. The standard error is the jackknife over `groups`
    disjoint subsets of both sets at once, drawn by `seed`. Memory: one pair of groups at a time.

    Raises ValueError for unlike dimensions, for fewer than 4 vectors on a side, and for NaN.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f'features of shapes {list(x.shape)} and {list(y.shape)} cannot be compared')
    if min(len(x), len(y)) < 4:
        raise ValueError(f'an unbiased distance needs at least 4 images on each side, not {len(x)} and {len(y)}')
    groups = max(2, min(groups, len(x) // 2, len(y) // 2))
    xs, ys = _split(x, groups, seed), _split(y, groups, seed + 1)
    xx = _pair_sums(xs, xs, diagonal=False)
    yy = _pair_sums(ys, ys, diagonal=False)
    xy = _pair_sums(xs, ys, diagonal=True)
    n = torch.tensor([len(part) for part in xs], dtype=torch.float64)
    m = torch.tensor([len(part) for part in ys], dtype=torch.float64)

    def mmd2(xx_sum, yy_sum, xy_sum, n, m):
        return xx_sum / (n * (n - 1)) + yy_sum / (m * (m - 1)) - 2 * xy_sum / (n * m)

    value = mmd2(xx.sum(), yy.sum(), xy.sum(), n.sum(), m.sum())
    if not bool(torch.isfinite(value)):
        raise ValueError('the features hold NaN or infinite values')
    # Without group b: take its row and column from each matrix of sums (the corner only once).
    without = [matrix.sum() - matrix.sum(dim=0) - matrix.sum(dim=1) + matrix.diagonal() for matrix in (xx, yy, xy)]
    left_out = mmd2(*without, n.sum() - n, m.sum() - m)  # [groups]
    error = ((groups - 1) / groups * (left_out - left_out.mean()).square().sum()).sqrt()
    return KernelDistance(float(value), float(error))


def _split(features, groups, seed):
    """The rows in random order, as float64, in `groups` nearly equal parts."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    return features.cpu()[order].to(torch.float64).tensor_split(groups)


def _pair_sums(xs, ys, diagonal):
    """[groups, groups] sums of the kernel; without `diagonal`, xs is ys and k(x, x) of one image is left out."""
    sums = torch.zeros([len(xs), len(ys)], dtype=torch.float64)
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            if diagonal or j >= i:
                sums[i, j] = polynomial_kernel_sum(x, y)
            else:
                sums[i, j] = sums[j, i]
        if not diagonal:
            sums[i, i] -= float((x.square().sum(dim=1) / x.shape[1] + 1).pow(3).sum())
    return sums


def kernel_terms(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """[n] float64: the first-order contribution of each image of x to `kernel_distance(x, y)`, for paired differences.

    2 (mean of k(x_i, x_j) over j other than i - mean of k(x_i, y_j)), up to a constant.
    """
    x, y = x.to(torch.float64), y.to(torch.float64)
    terms = []
    for part in x.split(ROWS):
        own = (part.square().sum(dim=1) / x.shape[1] + 1).pow(3)
        inner = ((part @ x.T / x.shape[1] + 1).pow_(3).sum(dim=1) - own) / (len(x) - 1)
        terms.append(2 * (inner - (part @ y.T / x.shape[1] + 1).pow_(3).mean(dim=1)))
    return torch.cat(terms)
