"""The unit cube [0, 1]^d with reflecting walls: reflection, heat kernel, and the kernel's score.

Brownian motion reflected at the walls has the heat kernel of the cube, a product over coordinates of the kernel on
[0, 1] (Lou and Ermon, Reflected Diffusion Models, ICML 2023, section 3). On [0, 1] there are two series for it:

    K(x | y; sigma) = sum over n in Z of N(x + 2n; y, sigma^2) + N(-x + 2n; y, sigma^2)             (images)
                    = 1 + 2 sum over n >= 1 of exp(-(n pi sigma)^2 / 2) cos(n pi x) cos(n pi y)     (modes)

The first converges fast for small sigma, the second for large sigma. At SEAM both are exact to float64 with the few
terms below. SEAM is larger than the published seam (sqrt(0.02)) for the sake of precision: there the kernel falls to
1e-11 and the alternating series of modes loses all digits, while at SEAM it is never below 0.2.
"""

import math

import torch

SEAM = 0.5  # sigma up to which the images are summed
IMAGES = torch.arange(-3, 4) * 2.0  # omitted images are at least 5 away: below exp(-48) of the sum at SEAM
MODES = 6  # the next one is exp(-60) at SEAM


def inside(x: torch.Tensor) -> torch.Tensor:
    """Whether each row of x [N, ...] lies in the cube, walls included: bool [N]."""
    x = x.flatten(1)
    return ((x >= 0) & (x <= 1)).all(1)


def reflect(x: torch.Tensor) -> torch.Tensor:
    """x of any shape, folded into [0, 1] by repeated reflection at 0 and 1."""
    x = x % 2
    return torch.where(x > 1, 2 - x, x)


def perturb(x: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """One draw from the heat kernel around each row: x and standard normal noise [N, ...], sigma [] or [N]."""
    return reflect(x + _per_row(sigma, x) * noise)


def uniform(latents: torch.Tensor) -> torch.Tensor:
    """Uniform on [0, 1], float64, from standard normal latents of any shape: the prior, by the normal
    cumulative distribution function, so that reflected models start from the same latents as all others."""
    return torch.special.ndtr(latents.to(torch.float64))


def mixing_sigma(dims: int, distance: float = 1e-3) -> float:
    """The noise level at which the heat kernel on [0, 1]^dims, from any starting point, is uniform up to `distance`.

    `distance` bounds the root of the chi-squared divergence, and so twice the total variation: by the series of modes
    the divergence is prod(1 + 2 exp(-(pi sigma)^2) + ...) - 1. About 1.5 for CIFAR-10; the published sigma_max is 5.
    """
    return math.sqrt(math.log(2 * dims / distance**2)) / math.pi


def kernel_score(x: torch.Tensor, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The gradient in x of log K(x | y; sigma), of the shape and dtype of x.

    x, y [N, ...] in [0, 1]; sigma [] or [N], any positive number. Finite everywhere, 0 at the walls.
    """
    sigma = _per_row(sigma, x)
    by_images = score_by_images(x, y, sigma.clamp(max=SEAM))  # each series only where it converges
    by_modes = score_by_modes(x, y, sigma.clamp(min=SEAM))
    return torch.where(sigma <= SEAM, by_images, by_modes)


def score_by_images(x: torch.Tensor, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The score as a mean over images, weighted by their shares of the density; sigma broadcastable to x."""
    shifts = IMAGES.to(x).reshape(-1, *[1] * x.ndim)  # [7, 1, ...]
    offsets = torch.cat([x + shifts - y, -x + shifts - y])  # [14, N, ...]
    shares = torch.softmax(-0.5 * (offsets / sigma).square(), dim=0)
    forces = -offsets / sigma / sigma
    count = len(shifts)
    return (shares[:count] * forces[:count]).sum(0) - (shares[count:] * forces[count:]).sum(0)


def score_by_modes(x: torch.Tensor, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The score as a quotient of two cosine series; sigma broadcastable to x."""
    density, slope = torch.ones_like(x), torch.zeros_like(x)
    for n in range(1, MODES + 1):
        term = 2 * (-0.5 * (n * math.pi * sigma).square()).exp() * (n * math.pi * y).cos()
        density = density + term * (n * math.pi * x).cos()
        slope = slope - term * n * math.pi * (n * math.pi * x).sin()
    return slope / density


def _per_row(sigma, x: torch.Tensor) -> torch.Tensor:
    """sigma [] or [N] in the dtype of x [N, ...], broadcastable to it."""
    return torch.as_tensor(sigma).to(x).reshape(-1, *[1] * (x.ndim - 1))
