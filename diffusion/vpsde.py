"""The variance-preserving SDE that classifiers and discriminators are trained on, and its time maps."""

import math

import torch


class VPSDE:
    """dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw with beta(t) = beta_0 + t (beta_1 - beta_0), t in [0, 1].

    Song et al., ICLR 2021, Eq. 32-33. A variance-exploding state x at noise level sigma has the same signal-to-noise
    ratio as the VP state mean(tau) x at time tau(sigma) (DG, Kim et al., ICML 2023, Appendix).
    Methods work elementwise on tensors and keep their dtype, unless they say otherwise.
    """

    def __init__(self, beta_0: float = 0.1, beta_1: float = 20.0, s: float = 0.008):
        self.beta_0, self.beta_1, self.s = beta_0, beta_1, s

    def integral_beta(self, t):
        """B(t), the integral of beta from 0 to t."""
        return 0.5 * t**2 * (self.beta_1 - self.beta_0) + t * self.beta_0

    def _time_of_integral(self, b):
        """t with B(t) = b."""
        slope = self.beta_1 - self.beta_0
        return 2 * b / (self.beta_0 + (self.beta_0**2 + 2 * slope * b).sqrt())  # no cancellation at small b

    def marginal(self, t):
        """Mean factor and standard deviation of x_t given x_0: exp(-B/2) and sqrt(1 - exp(-B))."""
        b = self.integral_beta(t)
        return (-0.5 * b).exp(), (-torch.expm1(-b)).sqrt()

    def perturb(self, x, t, noise):
        """x_t = mean(t) x + std(t) z, in the dtype of x: x and noise z [N, C, H, W], t [N]."""
        mean, std = self.marginal(t)
        return mean.to(x)[:, None, None, None] * x + std.to(x)[:, None, None, None] * noise

    def tau(self, sigma):
        """The VP time with the signal-to-noise ratio of noise level sigma: B(tau) = log(1 + sigma^2)."""
        return self._time_of_integral(torch.log1p(sigma**2))

    def t_cos(self, t):
        """Time of the cosine schedule (Nichol and Dhariwal, ICML 2021) with the signal-to-noise ratio of linear t."""
        mean, _ = self.marginal(t)
        angle = torch.arccos(math.cos(self.s / (1 + self.s) * math.pi / 2) * mean)
        return (1 + self.s) * 2 / math.pi * angle - self.s

    def sample_time(self, u, t_min: float = 1e-5):
        """Importance-sampled times for uniforms u [N]: density beta(t) / (1 - exp(-B(t))) on [t_min, 1], float64.

        This makes the weight g^2 / std^2 of the discriminator's loss constant (Song et al., NeurIPS 2021).
        """
        u = torch.as_tensor(u, dtype=torch.float64)
        low, high = self.importance_range(t_min).tolist()
        return self._time_of_integral(torch.log1p((low + u * (high - low)).exp()))

    def importance_range(self, t_min: float = 1e-5):
        """F(t_min) and F(1) [2] of the primitive F(t) = log(exp(B(t)) - 1), in float64: float32 cancels at t_min."""
        ends = torch.tensor([t_min, 1.0], dtype=torch.float64)
        return torch.expm1(self.integral_beta(ends)).log()
