"""The Frechet distance between two Gaussians, with a trace that stays exact where covariances are singular."""

import numpy as np
import torch

EPS = torch.finfo(torch.float64).eps


def frechet_distance(mu1, sigma1, mu2, sigma2) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), Dowson and Landau 1982; Heusel et al. 2017, equation 6.

    mu [D], sigma [D, D] symmetric and positive semi-definite, any of them singular. Raises ValueError
    for shapes that do not belong together and for values that are not finite.
    """
    mu1, mu2 = (np.asarray(mu, dtype=np.float64) for mu in (mu1, mu2))
    sigma1, sigma2 = (np.asarray(sigma, dtype=np.float64) for sigma in (sigma1, sigma2))
    dim = mu1.shape[0] if mu1.ndim == 1 else -1
    if mu2.shape != (dim,) or sigma1.shape != (dim, dim) or sigma2.shape != (dim, dim):
        raise ValueError(f'moments of unlike shapes: mu {list(mu1.shape)} and {list(mu2.shape)}, '
                         f'sigma {list(sigma1.shape)} and {list(sigma2.shape)}')
    if not all(np.isfinite(array).all() for array in (mu1, mu2, sigma1, sigma2)):
        raise ValueError('the moments hold NaN or infinite values')
    mean_part = np.square(mu1 - mu2).sum()
    return float(mean_part + np.trace(sigma1) + np.trace(sigma2) - 2 * trace_sqrt_product(sigma1, sigma2))


def trace_sqrt_product(sigma1: np.ndarray, sigma2: np.ndarray) -> float:
    """tr (S1 S2)^(1/2) for symmetric positive semi-definite matrices [D, D] in float64.

    With S = A A^T, A [D, rank], the eigenvalues of S1 S2 other than 0 are those of M^T M with M = A1^T A2, and their
    square roots are the singular values of M. Eigenvalues are several times as fast, but one near 0 is known only to
    eps * (the largest), and its root to the root of that; where that would show, singular values are used.
    """
    A1, A2 = _factor(torch.from_numpy(sigma1)), _factor(torch.from_numpy(sigma2))
    M = A1.T @ A2 if A1.shape[1] >= A2.shape[1] else A2.T @ A1  # at least as high as it is wide
    if 0 in M.shape:
        return 0.0
    lam = torch.linalg.eigvalsh(M.T @ M)
    noise = 4 * EPS * lam[-1].clamp_min(0)
    root = lam.clamp_min(noise).sqrt()  # [smaller rank]
    if (noise / (2 * root)).sum() <= 1e-9 * root.sum():  # also false for NaN, that is for M = 0
        return float(root.sum())
    return float(torch.linalg.svdvals(M).sum())


def _factor(S: torch.Tensor) -> torch.Tensor:
    """A [D, rank] with S = A A^T: Cholesky where S has full rank by a wide margin, else from eigenvectors."""
    A, info = torch.linalg.cholesky_ex(S)
    if int(info) == 0:
        pivots = A.diagonal().square()
        if pivots.min() > 1e3 * len(S) * EPS * pivots.max():
            return A
    lam, U = torch.linalg.eigh((S + S.T) / 2)
    kept = lam > len(S) * EPS * lam[-1].clamp_min(0)  # the rest is rounding; its root would not be small
    return U[:, kept] * lam[kept].sqrt()
