"""Training losses of score networks: how noise levels are drawn and how their errors are weighted.

Each loss is `loss(net, images, labels, rng, augment_labels=None)` -> [N], the weighted squared error of the denoised
image, averaged over pixels:  weight(sigma) * |D(y + sigma n; sigma) - y|^2 / (C H W).  `images` are y [N, C, H, W] in
[-1, 1]; `labels` are one-hot [N, K] or None; `rng` has the methods of torch_utils.rng.StackedRandomGenerator and
draws the noise levels first, then the noise.
"""

import math

import torch

from .schedules import VP_BETA_D, VP_BETA_MIN, vp_sigma


class _Loss:
    def sigma(self, rng, count: int) -> torch.Tensor:
        """Noise levels [N] of one batch."""
        raise NotImplementedError

    def weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """The weight of the squared error at each noise level."""
        raise NotImplementedError

    def __call__(self, net, images, labels, rng, augment_labels=None) -> torch.Tensor:
        sigma = self.sigma(rng, len(images)).to(images.device)  # [N]
        n = rng.randn_like(images)
        extra = {} if augment_labels is None else dict(augment_labels=augment_labels)
        D_yn = net(images + sigma.reshape(-1, 1, 1, 1) * n, sigma, labels, **extra)
        return self.weight(sigma) * (D_yn - images).square().flatten(1).mean(1)


class EDMLoss(_Loss):
    """Log-normal noise levels, weighted so that every level's error starts at 1 (Karras et al. 2022, table 1).

    The weight is 1 / c_out(sigma)^2, so the loss is that of the network inside the preconditioning.
    """

    def __init__(self, P_mean: float = -1.2, P_std: float = 1.2, sigma_data: float = 0.5):
        self.P_mean, self.P_std, self.sigma_data = P_mean, P_std, sigma_data

    def sigma(self, rng, count):
        return (rng.randn([count]) * self.P_std + self.P_mean).exp()

    def weight(self, sigma):
        return (sigma ** 2 + self.sigma_data ** 2) / (sigma * self.sigma_data) ** 2


class VPLoss(_Loss):
    """Uniform times of the variance-preserving SDE, weight 1/sigma^2 (Song et al. 2021, as stated in EDM, table 1)."""

    def __init__(self, beta_d: float = VP_BETA_D, beta_min: float = VP_BETA_MIN, epsilon_t: float = 1e-5):
        self.beta_d, self.beta_min, self.epsilon_t = beta_d, beta_min, epsilon_t

    def sigma(self, rng, count):
        t = 1 + rng.rand([count]) * (self.epsilon_t - 1)  # in [epsilon_t, 1]
        return vp_sigma(t, self.beta_d, self.beta_min)

    def weight(self, sigma):
        return 1 / sigma ** 2


class VELoss(_Loss):
    """Noise levels uniform in log sigma, weight 1/sigma^2 (Song et al. 2021, as stated in EDM, table 1)."""

    def __init__(self, sigma_min: float = 0.02, sigma_max: float = 100.0):
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def sigma(self, rng, count):
        return (math.log(self.sigma_min) + rng.rand([count]) * math.log(self.sigma_max / self.sigma_min)).exp()

    def weight(self, sigma):
        return 1 / sigma ** 2
