"""Gaussian mixtures, for which denoiser, noisy density and log-ratio are exact: models to test samplers on."""

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

    def _log_joint(self, x, sigma):
        """log w_k + log N(x; m_k, s_k^2 + sigma^2) [N, K] for x [N, D]; also the variances [N, K]."""
        variance = (self.stds ** 2 + torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1) ** 2)
        variance = variance.expand(len(x), -1)  # [N, K]
        squares = (x[:, None, :] - self.means).square().sum(2)  # [N, K]
        normaliser = 0.5 * self.dim * torch.log(2 * torch.pi * variance)
        return self.weights.log() - 0.5 * squares / variance - normaliser, variance

    def log_density(self, x, sigma=0.0):
        """log p(x; sigma) [N] of the mixture plus noise of standard deviation sigma ([] or [N]); differentiable."""
        x = x.flatten(1).to(torch.float64)
        return self._log_joint(x, sigma)[0].logsumexp(1)

    def denoiser(self, x, sigma):
        """E[y | y + sigma n = x], of the shape of x [N, ...] (D values in each row)."""
        flat = x.flatten(1).to(torch.float64)
        joint, variance = self._log_joint(flat, sigma)
        responsibility = joint.softmax(1)  # [N, K]
        shrink = (self.stds ** 2 / variance)[:, :, None]  # [N, K, 1]
        means = self.means + shrink * (flat[:, None, :] - self.means)  # [N, K, D]
        return (responsibility[:, :, None] * means).sum(1).reshape(x.shape)

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
    """p-value of the permutation test of the energy distance: small where x and y differ in distribution."""
    both = torch.cat([x.flatten(1), y.flatten(1)]).to(torch.float64)
    distances = torch.cdist(both, both)
    sign = torch.cat([torch.full([len(x)], 1 / len(x)), torch.full([len(y)], -1 / len(y))]).to(torch.float64)
    generator = torch.Generator().manual_seed(seed)
    shuffles = torch.stack([sign] + [sign[torch.randperm(len(both), generator=generator)]
                                     for _ in range(permutations)])
    statistics = -((shuffles @ distances) * shuffles).sum(1)
    return float((statistics >= statistics[0]).double().mean())
