"""Mixtures with exact denoiser, noisy density and log-ratio, on R^D and in the cube: models to test samplers on."""

import math

import torch


class GaussianMixture:
    """sum_k w_k N(m_k, s_k^2 I) in D dimensions, in float64.

    means [K, D]; weights [K] (normalised here); stds [K] or a number.
    """

    def __init__(self, means, weights=None, stds=1.0):
        self.means = torch.as_tensor(means, dtype=torch.float64)  # [K, D]
        count, self.dim = self.means.shape
        weights = torch.ones(count) if weights is None else torch.as_tensor(weights)
        self.weights = weights.to(torch.float64) / weights.to(torch.float64).sum()  # [K]
        self.stds = torch.as_tensor(stds, dtype=torch.float64).expand(count)  # [K]
        self._variances = self.stds.square()
        self._log_factors = self.weights.log() - 0.5 * self.dim * math.log(2 * math.pi)

    def _log_joint(self, x, sigma):
        """log w_k + log N(x; m_k, s_k^2 + sigma^2) [N, K] for x [N, D]; also the variances [N, K]."""
        variance = self._variances + torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1).square()
        variance = variance.expand(len(x), -1)  # [N, K]
        squares = (x[:, None, :] - self.means).square().sum(2)  # [N, K]
        return self._log_factors - 0.5 * (squares / variance + self.dim * variance.log()), variance

    def log_density(self, x, sigma=0.0):
        """log p(x; sigma) [N] of the mixture plus noise of standard deviation sigma ([] or [N]); differentiable."""
        x = x.flatten(1).to(torch.float64)
        return self._log_joint(x, sigma)[0].logsumexp(1)

    def level_logits(self, x, sigmas):
        """log p(x; sigma) [N, K] at each of `sigmas` [K]: log p(sigma | x) + const if all are equally likely."""
        rows = x.flatten(1).repeat_interleave(len(sigmas), 0)  # [N K, D]
        return self.log_density(rows, sigmas.repeat(len(x))).unflatten(0, [len(x), len(sigmas)])

    def denoiser(self, x, sigma):
        """E[y | y + sigma n = x], of the shape of x [N, ...] (D values in each row)."""
        flat = x.flatten(1).to(torch.float64)
        joint, variance = self._log_joint(flat, sigma)
        responsibility = joint.softmax(1)  # [N, K]
        of_x = responsibility * self._variances / variance  # [N, K], the weight of x itself; the means get the rest
        means = ((responsibility - of_x)[:, :, None] * self.means).sum(1)  # [N, D]
        return (means + of_x.sum(1, keepdim=True) * flat).reshape(x.shape)

    def sample(self, n, generator=None):
        """n draws [n, D]."""
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn([n, self.dim], dtype=torch.float64, generator=generator)
        return self.means[component] + self.stds[component, None] * noise

    def component(self, x):
        """The likeliest component [N] of each row of x [N, ...]."""
        return self._log_joint(x.flatten(1).to(torch.float64), 0.0)[0].argmax(1)


class MixtureNet:
    """The score-network interface around a mixture's exact denoiser; images are [N, D, 1, 1] (or `shape`)."""

    label_dim = 0
    sigma_min = 0.0
    sigma_max = float('inf')

    def __init__(self, mixture, shape=None):
        self.mixture = mixture
        self.shape = tuple(shape or (mixture.dim, 1, 1))
        self.img_channels, self.img_resolution = self.shape[0], self.shape[-1]
        self.calls = 0

    def __call__(self, x, sigma, class_labels=None):
        self.calls += 1
        return self.mixture.denoiser(x, sigma)

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)


class TruncatedMixture:
    """sum_k w_k N(m_k, s_k^2 I), each component truncated to the cube [0, 1]^D and normalised there, in float64.

    Diffusing it with reflecting walls for noise level sigma gives, per component and coordinate, a sum over images
    x' = +-x + 2n of N(x'; m, s^2 + sigma^2) P(0 < y < 1), y ~ N((m sigma^2 + x' s^2) / (s^2 + sigma^2), s^2 sigma^2 /
    (s^2 + sigma^2)) being the origin of such an image. means [K, D]; weights [K]; stds [K] or a number.
    """

    def __init__(self, means, weights=None, stds=0.1):
        plain = GaussianMixture(means, weights, stds)
        self.means, self.weights, self.stds, self.dim = plain.means, plain.weights, plain.stds, plain.dim

    def log_density(self, x, sigma=0.0):
        """log p(x; sigma) [N] of x [N, ...] in the cube after reflected noise sigma ([] or [N]); differentiable."""
        x = x.flatten(1).to(torch.float64)
        sigma = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1, 1).clamp(min=1e-6)  # [N or 1, 1, 1]
        reach = math.ceil(0.5 + 4.2 * float(sigma.max()))  # omitted images are 8 sigma away from the cube
        shifts = 2.0 * torch.arange(-reach, reach + 1, dtype=torch.float64)[:, None, None]
        images = torch.cat([x + shifts, -x + shifts])[:, :, None]  # [J, N, 1, D]

        m, s = self.means, self.stds[:, None]  # [K, D], [K, 1]
        variance = s**2 + sigma**2  # [N or 1, K, 1]
        origin = (m * sigma**2 + images * s**2) / variance  # [J, N, K, D]
        spread = s * sigma / variance.sqrt()
        logs = -0.5 * ((images - m)**2 / variance + torch.log(2 * torch.pi * variance))
        logs = logs + _log_ndtr_between(-origin / spread, (1 - origin) / spread)
        inside = _log_ndtr_between(-m / s, (1 - m) / s)  # [K, D]
        per_component = (logs.logsumexp(0) - inside).sum(2)  # [N, K]
        return (self.weights.log() + per_component).logsumexp(1)

    def denoiser(self, x, sigma):
        """x + sigma^2 grad log p(x; sigma), of the shape of x [N, ...]; differentiable where gradients are enabled."""
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x.to(torch.float64)
            x = x if x.requires_grad else x.detach().requires_grad_()
            score, = torch.autograd.grad(self.log_density(x, sigma).sum(), x, create_graph=graph)
        return x + torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, *[1] * (x.ndim - 1))**2 * score

    def sample(self, n, generator=None):
        """n draws [n, D]."""
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        m, s = self.means[component], self.stds[component, None]
        low, high = torch.special.ndtr(-m / s), torch.special.ndtr((1 - m) / s)
        u = torch.rand([n, self.dim], dtype=torch.float64, generator=generator)
        return (m + s * torch.special.ndtri(low + u * (high - low))).clamp(0, 1)


def _log_ndtr_between(low, high):
    """log P(low < z < high) of a standard normal z, exact in both tails."""
    flip = low + high > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    log_high = torch.special.log_ndtr(high)
    return log_high + torch.log1p(-(torch.special.log_ndtr(low) - log_high).exp())


class ReflectedMixtureNet(MixtureNet):
    """A TruncatedMixture as a reflected score network: net(x, sigma) = x + sigma^2 score, x in [0, 1]."""

    sigma_min = 0.01
    sigma_max = 5.0

    def decode(self, x):
        """Images in [-1, 1]."""
        return 2 * x - 1


def exact_log_ratio(right, wrong):
    """log p_right(x; sigma) - log p_wrong(x; sigma) as a log-ratio: (x, sigma, class_labels=None) -> [N]."""
    def log_ratio(x, sigma, class_labels=None):
        return right.log_density(x, sigma) - wrong.log_density(x, sigma)
    return log_ratio


def energy_distance(x, y):
    """2 E|X-Y| - E|X-X'| - E|Y-Y'| between samples [n, ...] and [m, ...] (Szekely and Rizzo; biased V-statistic)."""
    x, y = x.flatten(1).to(torch.float64), y.flatten(1).to(torch.float64)
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


def same_distribution_pvalue(x, y, permutations=500, seed=0):
    """p-value of the permutation test of the energy distance: small if x and y differ in distribution."""
    both = torch.cat([x.flatten(1), y.flatten(1)]).to(torch.float64)
    distances = torch.cdist(both, both)
    sign = torch.cat([torch.full([len(x)], 1 / len(x)), torch.full([len(y)], -1 / len(y))]).to(torch.float64)
    generator = torch.Generator().manual_seed(seed)
    shuffles = torch.stack([sign] + [sign[torch.randperm(len(both), generator=generator)]
                                     for _ in range(permutations)])
    statistics = -((shuffles @ distances) * shuffles).sum(1)
    return float((statistics >= statistics[0]).double().mean())
