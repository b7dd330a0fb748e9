"""The forward processes of score_sde (Song et al., ICLR 2021) and the steps of its predictors, on the host.

A state at time t in [0, 1] is X = m(t) y + std(t) n, with y in [-1, 1]; x = X / m(t) has noise sigma(t) = std / m.
All steps are linear, X <- a X + b score(X) + c z, so a predictor is three numbers per step.
"""

import math

import torch

PREDICTORS = ('euler_maruyama', 'reverse_diffusion', 'ancestral')


class VariancePreserving:
    """dX = -beta X / 2 dt + sqrt(beta) dw, beta(t) from beta_min to beta_max."""

    prior_std = 1.0
    time_end = 1e-3  # the last time of published samplers

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        self.beta_min, self.beta_max = beta_min, beta_max

    def beta(self, t):
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral_beta(self, t):
        """B(t), the integral of beta from 0 to t."""
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def mean(self, t):
        """m(t)."""
        return (-0.5 * self.integral_beta(t)).exp()

    def std(self, t):
        """std(t)."""
        return (-torch.expm1(-self.integral_beta(t))).sqrt()

    def drift(self, t):
        """f(t) in the drift f X."""
        return -0.5 * self.beta(t)

    def diffusion(self, t):
        """g(t)."""
        return self.beta(t).sqrt()

    def alpha(self, t, num_steps: int):
        """1 - beta_k of the level k at or below t, of num_steps with betas from beta_min to beta_max over num_steps.

        Raises ValueError if a beta_k is 1 or more.
        """
        if num_steps <= self.beta_max:
            raise ValueError(f'{num_steps} steps are too few for this process; use more than {self.beta_max:g}')
        betas = torch.linspace(self.beta_min, self.beta_max, num_steps, dtype=torch.float64) / num_steps
        return 1 - betas[_level(t, num_steps)]

    def reverse_diffusion(self, t, num_steps: int):
        """(a, b, c) of the reverse diffusion predictor: the forward step of DDPM, reversed."""
        alpha = self.alpha(t, num_steps)
        return 2 - alpha.sqrt(), 1 - alpha, (1 - alpha).sqrt()

    def ancestral(self, t, num_steps: int):
        """(a, b, c) of ancestral sampling (Ho et al., NeurIPS 2020)."""
        alpha = self.alpha(t, num_steps)
        return alpha.rsqrt(), (1 - alpha) / alpha.sqrt(), (1 - alpha).sqrt()


class SubVariancePreserving(VariancePreserving):
    """The process whose standard deviation is the variance of the variance-preserving one."""

    def std(self, t):
        return -torch.expm1(-self.integral_beta(t))

    def diffusion(self, t):
        return (-self.beta(t) * torch.expm1(-2 * self.integral_beta(t))).sqrt()

    def reverse_diffusion(self, t, num_steps: int):
        return _euler_maruyama(self, t, num_steps)

    def ancestral(self, t, num_steps: int):
        raise ValueError('ancestral sampling is not defined for sub-VP processes')


class VarianceExploding:
    """X = y + sigma(t) n, sigma(t) = sigma_min (sigma_max / sigma_min)^t."""

    time_end = 1e-5

    def __init__(self, sigma_min: float = 0.02, sigma_max: float = 100.0):
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.prior_std, self.log_ratio = sigma_max, math.log(sigma_max / sigma_min)

    def mean(self, t):
        return torch.ones_like(t)

    def std(self, t):
        return self.sigma_min * (self.log_ratio * t).exp()

    def drift(self, t):
        return torch.zeros_like(t)

    def diffusion(self, t):
        return self.std(t) * math.sqrt(2 * self.log_ratio)

    def alpha(self, t, num_steps: int):
        return torch.ones_like(t)

    def _pair(self, t, num_steps: int):
        """The level at or below t, of num_steps levels, and the next lower one (0 below the smallest)."""
        levels = self.std(torch.linspace(0, 1, num_steps, dtype=torch.float64))
        k = _level(t, num_steps)
        return levels[k], torch.cat([levels.new_zeros(1), levels])[k]

    def reverse_diffusion(self, t, num_steps: int):
        level, lower = self._pair(t, num_steps)
        variance = level**2 - lower**2
        return torch.ones_like(t), variance, variance.sqrt()

    def ancestral(self, t, num_steps: int):
        level, lower = self._pair(t, num_steps)
        variance = level**2 - lower**2
        return torch.ones_like(t), variance, lower * variance.sqrt() / level


def predictor_steps(process, predictor: str, t: torch.Tensor):
    """(a, b, c), each [N], of a predictor's steps at the times t [N] float64, N steps in all. Raises ValueError."""
    if predictor not in PREDICTORS:
        raise ValueError(f'{predictor!r} is not a predictor; use one of {", ".join(PREDICTORS)}')
    steps = _euler_maruyama if predictor == 'euler_maruyama' else getattr(type(process), predictor)
    return steps(process, t, len(t))


def last_step(process, t: torch.Tensor):
    """(a, b, 0) of Soft-Truncation's denoising step from time t to 0: half a reverse diffusion step of length t."""
    variance = t * process.diffusion(t)**2
    if isinstance(process, VarianceExploding):
        raise ValueError('the last denoising step is defined for VP processes')
    return 2 - (1 - variance).sqrt(), variance / 2, torch.zeros_like(t)


def _euler_maruyama(process, t, num_steps: int):
    g = process.diffusion(t)
    return 1 - process.drift(t) / num_steps, g**2 / num_steps, g / math.sqrt(num_steps)


def _level(t, num_steps: int):
    """Index of the level at or below t of levels at 0, 1 / (num_steps - 1), ..., 1."""
    return (t * (num_steps - 1)).long()
