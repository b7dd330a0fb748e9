"""What each image contributes to a Frechet distance, and the distance of infinitely many images."""

import numpy as np
import torch

from .estimate import Estimate, from_terms, standard_error
from .frechet import frechet_distance

SIZES = 10  # sizes of the subsets whose distances are extrapolated


def frechet_terms(features: torch.Tensor, mu1, sigma1, mu2, sigma2) -> torch.Tensor:
    """[n] float64: the first-order contribution of each image to `frechet_distance(mu1, sigma1, mu2, sigma2)`.

    features [n, D] are of the images whose moments are mu1, sigma1 (or of some of them). With T the optimal map between
    the Gaussians, T S1 T = S2, the derivative of the distance is 2 (mu1 - mu2) in mu1 and I - T in S1 (Bhatia, Jain and
    Lim 2019, arXiv:1712.01504). Directions in which S1 has no variance are left out.
    """
    mu1, sigma1, mu2, sigma2 = (torch.as_tensor(np.asarray(array), dtype=torch.float64)
                                for array in (mu1, sigma1, mu2, sigma2))
    lam, U = torch.linalg.eigh(sigma1)
    kept = lam > len(lam) * torch.finfo(torch.float64).eps * lam[-1].clamp_min(0)
    U, root = U[:, kept], lam[kept].sqrt()
    A = U * root  # [D, rank], S1 = A A^T; T = A^-T (A^T S2 A)^(1/2) A^-1 on the range of S1
    inner, V = torch.linalg.eigh(A.T @ sigma2 @ A)
    half = (U / root) @ V * inner.clamp_min(0).pow(0.25)  # [D, rank], T = half half^T
    centred = features.to('cpu', torch.float64) - mu1
    inside = centred @ U if not bool(kept.all()) else centred
    return (2 * centred @ (mu1 - mu2) + inside.square().sum(dim=1) - (centred @ half).square().sum(dim=1))


def frechet_estimate(features: torch.Tensor, mu1, sigma1, mu2, sigma2, count: int) -> Estimate:
    """The Frechet distance of `count` images with moments mu1, sigma1, with its error from a sample of features.

    Paired terms need the features of all images; of a sample only the error is kept. The error is that of the draw of
    images, and says nothing about the bias that few images have: the distance falls with their number.
    """
    value = frechet_distance(mu1, sigma1, mu2, sigma2)
    if len(features) < 2:
        return Estimate(value)
    estimate = from_terms(value, frechet_terms(features, mu1, sigma1, mu2, sigma2))
    if len(features) == count:
        return estimate
    return Estimate(value, estimate.error * (len(features) / count) ** 0.5)


def extrapolated_frechet(features: torch.Tensor, mu, sigma, seed: int = 0) -> Estimate:
    """The Frechet distance extrapolated to infinitely many images; Chong and Forsyth 2020 (arXiv:1911.07023).

    features [n, D] of images, mu and sigma of the reference. Distances of random subsets of n / 10 to n images (of at
    least 2 D, if there are as many) lie near a line in 1 / size; its value at 0 is given. Subsets of fewer images than
    dimensions bend it. The error is that of the fit together with that of the draw of images.
    Raises ValueError for fewer than 2 SIZES images.
    """
    if len(features) < 2 * SIZES:
        raise ValueError(f'{len(features)} images are too few to extrapolate from; at least {2 * SIZES} are needed')
    f = features.to('cpu', torch.float64)
    generator = torch.Generator().manual_seed(seed)
    least = min(max(len(f) // 10, 2 * f.shape[1]), len(f) // 2)
    sizes = np.linspace(least, len(f), SIZES).astype(int)
    distances = []
    for size in sizes.tolist():
        part = f[torch.randperm(len(f), generator=generator)[:size]]
        distances.append(frechet_distance(part.mean(dim=0).numpy(), torch.cov(part.T).numpy(), mu, sigma))
    design = np.stack([np.ones(SIZES), 1 / sizes], axis=1)  # distance = value + slope / size
    (value, _), residue, _, _ = np.linalg.lstsq(design, np.array(distances), rcond=None)
    fit = np.linalg.inv(design.T @ design)[0, 0] * float(residue[0] if len(residue) else 0) / (SIZES - 2)
    draw = standard_error(frechet_terms(f, f.mean(dim=0).numpy(), torch.cov(f.T).numpy(), mu, sigma))
    return Estimate(float(value), float(np.hypot(np.sqrt(fit), draw)))
