"""Score matching of the correction: on a mixture its minimiser is the gradient of the true log-ratio."""

import numpy as np
import pytest
import torch

from diffusion.mixtures import GaussianMixture, exact_log_ratio
from diffusion.vpsde import VPSDE
from training.discriminator import CorrectionLoss

DATA = GaussianMixture([[-0.6], [0.5]], [0.7, 0.3], [0.15, 0.25])
MODEL = GaussianMixture([[-0.5], [0.5]], [0.4, 0.6], [0.2, 0.3])
SDE = VPSDE()
NODES = 80


def quadrature():
    """Clean images [M, 1, 1, 1], noise likewise, and weights [M] that integrate over data and noise, float64."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(NODES))
    weights = weights / weights.sum()
    y = (DATA.means + DATA.stds[:, None] * nodes).flatten()  # [K * NODES]
    share = (DATA.weights[:, None] * weights).flatten()
    grid = torch.cartesian_prod(y, nodes)[:, :, None, None, None]
    return grid[:, 0], grid[:, 1], torch.outer(share, weights).flatten()


class Family:
    """L(x, sigma) = a l(x, sigma) + b sin(3 x) + c, l being the true log-ratio; a discriminator of VP images."""

    def __init__(self, a=1.0, b=0.0, c=0.0):
        self.theta = torch.tensor([a, b, c], dtype=torch.float64, requires_grad=True)

    def __call__(self, features, t, condition=None):
        mean, std = SDE.marginal(t.double())
        x = features.double() / mean[:, None, None, None]
        terms = exact_log_ratio(DATA, MODEL)(x, std / mean), torch.sin(3 * x.flatten()), torch.ones(len(x))
        return sum(weight * term for weight, term in zip(self.theta, terms, strict=True))


def expected_loss(family, t):
    y, noise, weights = quadrature()
    loss = CorrectionLoss(family, lambda x, t: x, SDE, denoise=lambda x, sigma, classes: MODEL.denoiser(x, sigma))
    times = torch.full([len(y)], t, dtype=torch.float64)
    _, error, unguided = loss.correction_error(y, None, times, noise, create_graph=True)
    return (weights * error).sum(), (weights * unguided).sum()


@pytest.mark.parametrize('t', [0.02, 0.1, 0.4])
def test_the_minimiser_is_the_gradient_of_the_true_log_ratio(t):
    """Nothing improves on a = 1, b = 0; c, the constant, is not determined. The minimum is that of the closed form."""
    family = Family()
    value, unguided = expected_loss(family, t)
    slope, = torch.autograd.grad(value, family.theta, create_graph=True)
    curvature = torch.stack([torch.autograd.grad(entry, family.theta, retain_graph=True)[0] for entry in slope[:2]])
    torch.testing.assert_close(slope, torch.zeros(3, dtype=torch.float64), rtol=0, atol=2e-6)
    assert torch.linalg.eigvalsh(curvature[:, :2])[0] > 1e-3 and curvature[:, 2].abs().max() < 1e-12

    # -E |sigma (s_data - s_model)|^2 over the noisy data, and with it the exact denoiser's error is left
    mean, std = SDE.marginal(torch.tensor(t, dtype=torch.float64))
    sigma, (y, noise, weights) = std / mean, quadrature()
    x = y + sigma * noise
    gap = (DATA.denoiser(x, sigma) - MODEL.denoiser(x, sigma)) / sigma
    torch.testing.assert_close(value, -(weights * gap.flatten() ** 2).sum(), rtol=1e-5, atol=1e-7)
    left = (weights * ((DATA.denoiser(x, sigma) - y) / sigma).flatten() ** 2).sum()
    torch.testing.assert_close(value + unguided, left, rtol=1e-5, atol=1e-7)


def test_another_gradient_is_worse_by_its_distance():
    """Loss(a) - loss(1) = (a - 1)^2 E |sigma grad l|^2."""
    best, _ = expected_loss(Family(), 0.1)
    for a in (0.0, 0.5, 1.7):
        value, _ = expected_loss(Family(a), 0.1)
        torch.testing.assert_close(value - best, -(a - 1) ** 2 * best, rtol=1e-4, atol=1e-7)
