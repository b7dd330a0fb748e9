"""Six ways from a noisy state to an image, each sample from its own noise level (Kim and Ye, ICML 2023, table 1).

Each is called as integrator(net, x, sigma, class_labels=None, *, sigma_min, randn_like=None, callback=None, **own):

    net: a score network or a denoiser, which guidance may wrap.
    x: states [N, C, H, W] = y + sigma n; sigma: float64 [N] on the host, so that no step waits for the device.
    sigma_min: the last level above 0, in the units of `sigma`.
    randn_like, callback: as edm_sampler's.

and returns images [N, C, H, W], float64. Rows at or below sigma_min have passed their last level already.
"""

import torch

from diffusion.schedules import edm_steps
from torch_utils.transfer import upload

from .denoiser import At, as_denoiser, per_row
from .edm import Step, heun, noise_source
from .levels import Churn, levels_from, rounded
from .rk45 import rk45

TIME_END = 1e-5  # the last time of the published solvers
MILEPOSTS = 20  # calls of the callback over an adaptive solution
# The published churn of KAR2, for images in [-1, 1].
CHURN = Churn(S_churn=80, S_min=0.1, S_max=2.0, S_noise=1.007)


def kar1(net, x, sigma, class_labels=None, *, sigma_min: float, num_steps: int = 19, rho: float = 7, randn_like=None,
         callback=None):
    """Heun's method on the probability flow (Karras et al. 2022, algorithm 1); 2 num_steps - 1 evaluations."""
    return heun(net, x, class_labels, levels=_levels(net, sigma, sigma_min, num_steps, rho, Churn()),
                callback=callback)


def kar2(net, x, sigma, class_labels=None, *, sigma_min: float, num_steps: int = 19, rho: float = 7,
         churn: Churn = CHURN, randn_like=None, callback=None):
    """The same with churn (Karras et al. 2022, algorithm 2). The published number of steps is one larger."""
    levels = _levels(net, sigma, sigma_min, num_steps, rho, churn)
    return heun(net, x, class_labels, levels=levels, randn_like=randn_like, callback=callback)


def _levels(net, sigma, sigma_min, num_steps, rho, churn):
    """Levels [num_steps + 1, N] from sigma [N] to sigma_min and then 0."""
    steps = edm_steps(num_steps, sigma_min, sigma.to(torch.float64).clamp(min=sigma_min), rho)
    return levels_from(net, rounded(net, steps), churn)


def _geometric(sigma, sigma_min, fractions):
    """sigma_min (sigma / sigma_min)^fraction, [n, N]: the levels of the variance-exploding SDE that starts at sigma."""
    sigma = sigma.to(torch.float64).clamp(min=sigma_min)
    return sigma_min * (sigma / sigma_min) ** fractions[:, None]


@torch.no_grad()
def _predict(net, x, class_labels, sigmas, variances, noises, randn_like, callback):
    """Steps x <- x + variance score(x; sigma) + noise z, each row with its own values [n, N]."""
    denoise, n, randn_like = as_denoiser(net), len(sigmas), noise_source(randn_like, bool(noises.any()))
    on_device = upload(torch.stack([sigmas, variances / sigmas**2, noises]), x.device)
    x = x.to(torch.float64)
    for i in range(n):
        sigma, weight, noise = on_device[:, i]  # [N] each
        denoised = denoise(x, sigma, class_labels, at=At(sigmas[i], step=i))
        x = x + per_row(weight, x) * (denoised - x)
        if noises[i].any():
            x = x + per_row(noise, x) * randn_like(x)
        if callback is not None:
            callback(Step(i, n, sigmas[i].max().item(), sigmas[min(i + 1, n - 1)].max().item(), x, denoised))
    return x


def probability_flow(net, x, sigma, class_labels=None, *, sigma_min: float, num_steps: int = 100, randn_like=None,
                     callback=None):
    """Fixed steps of first order on the probability flow, to level 0; num_steps evaluations (Song et al. 2021)."""
    sigmas, variances = _to_zero(sigma, sigma_min, num_steps)
    return _predict(net, x, class_labels, sigmas, variances / 2, torch.zeros_like(sigmas), None, callback)


def reverse_diffusion(net, x, sigma, class_labels=None, *, sigma_min: float, num_steps: int = 100, randn_like=None,
                      callback=None):
    """The discretised reverse SDE (Song et al. 2021), to level 0; num_steps evaluations."""
    sigmas, variances = _to_zero(sigma, sigma_min, num_steps)
    return _predict(net, x, class_labels, sigmas, variances, _but_last(variances.sqrt()), randn_like, callback)


def _but_last(noises):
    """The last step adds no noise, as published."""
    return torch.cat([noises[:-1], torch.zeros_like(noises[:1])])


def _to_zero(sigma, sigma_min, num_steps):
    """Levels [n, N] from sigma to sigma_min, and the variance that each step removes, the last one down to 0."""
    sigmas = _geometric(sigma, sigma_min, torch.linspace(1, 0, num_steps, dtype=torch.float64))
    return sigmas, sigmas**2 - torch.cat([sigmas[1:], torch.zeros_like(sigmas[:1])])**2


def euler_maruyama(net, x, sigma, class_labels=None, *, sigma_min: float, num_steps: int = 100, randn_like=None,
                   callback=None):
    """Euler-Maruyama on the reverse SDE at equal times, to about sigma_min; num_steps evaluations (Song et al. 2021).

    As published: num_steps times from 1 to 1e-5, and as many steps of the length 1 / num_steps.
    """
    sigmas = _geometric(sigma, sigma_min, torch.linspace(1, TIME_END, num_steps, dtype=torch.float64))
    log_ratio = (sigma.to(torch.float64).clamp(min=sigma_min) / sigma_min).log()
    variances = 2 * log_ratio * sigmas**2 / num_steps  # g^2 dt
    return _predict(net, x, class_labels, sigmas, variances, _but_last(variances.sqrt()), randn_like, callback)


@torch.no_grad()
def rk45_flow(net, x, sigma, class_labels=None, *, sigma_min: float, rtol: float = 1e-5, atol: float = 2e-5,
              randn_like=None, callback=None):
    """The probability flow by adaptive Runge-Kutta steps to sigma_min, chosen for each sample; costs differ.

    The published tolerances are 1e-5 for images in [0, 1]; there the whole batch shares one step size.
    """
    denoise = as_denoiser(net)
    log_ratio = (sigma.to(torch.float64).clamp(min=sigma_min) / sigma_min).log()

    def drift(t, x, rows):
        slope = log_ratio[rows]  # of log sigma
        sigmas = sigma_min * (slope * t).exp()
        labels = None if class_labels is None else class_labels[upload(torch.from_numpy(rows), x.device)]
        denoised = denoise(x, upload(sigmas, x.device), labels, at=At(sigmas, rows=rows))
        return per_row(upload(slope, x.device), x) * (x - denoised)  # dx/dt = dx/dsigma dsigma/dt

    passed = 0

    def on_step(done, x):
        nonlocal passed
        while callback is not None and passed < int(done * MILEPOSTS + 1e-9):
            callback(Step(passed, MILEPOSTS, float(sigma.max()), sigma_min, x, x))
            passed += 1

    return rk45(drift, x, 1.0, TIME_END, rtol=rtol, atol=atol, on_step=on_step)


INTEGRATORS = {'kar1': kar1, 'kar2': kar2, 'probability_flow': probability_flow, 'rk45': rk45_flow,
               'reverse_diffusion': reverse_diffusion, 'euler_maruyama': euler_maruyama}
