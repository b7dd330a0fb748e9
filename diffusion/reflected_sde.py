"""The reflected variance-exploding SDE on the unit cube (Lou and Ermon, ICML 2023): no drift, reflecting walls."""

import math

import torch

from . import cube
from .vpsde import VPSDE


class ReflectedVE:
    """dx = g(t) dw + reflection with sigma(t) = sigma_min (sigma_max / sigma_min)^t and g^2 = d sigma^2 / dt.

    x_t given x_0 follows the heat kernel of the cube at sigma(t); x_1 is uniform: the prior has density 1.
    Methods work elementwise on tensors and keep their dtype. Raises ValueError for an empty range.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 5.0):
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f'noise levels from {sigma_min:g} to {sigma_max:g}: give 0 < sigma_min < sigma_max')
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        self.log_ratio = math.log(sigma_max / sigma_min)

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """The noise level at time t in [0, 1]."""
        return self.sigma_min * (self.log_ratio * t).exp()

    def diffusion(self, t: torch.Tensor) -> torch.Tensor:
        """g(t), the same forwards and in the reverse SDE."""
        return self.sigma(t) * math.sqrt(2 * self.log_ratio)

    def levels(self, num_steps: int) -> torch.Tensor:
        """sigma at num_steps + 1 equal times from 1 to 0, float64."""
        return self.sigma(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64))


class ReflectedVP(VPSDE):
    """Reflected diffusion in the time of the VP SDE, in which discriminators are trained.

    At time t an image in [-1, 1] has Gaussian noise of level std(t) / mean(t), folded back at -1 and 1: in the cube
    [0, 1] that is half of this level.
    """

    def perturb(self, x, t, noise):
        """The state [N, C, H, W] in [-1, 1] at times t [N], in the dtype of x: x and noise z [N, C, H, W]."""
        mean, std = self.marginal(t)
        return 2 * cube.perturb((x + 1) / 2, std / mean / 2, noise) - 1
