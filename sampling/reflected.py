"""Samplers of reflected diffusion (Lou and Ermon, ICML 2023): every state stays in the cube [0, 1]^d.

A reflected score network returns D(x; sigma) = x + sigma^2 score for x in [0, 1], with the score of data diffused
between reflecting walls. So guidance of every kind wraps it like any denoiser, and the probability flow is EDM's:
dx = (x - D) / sigma d sigma. There are three differences: the prior is uniform, states are folded back at the walls,
and near the walls D is not a mean of images (their reflections count too), so it may lie outside the cube.

Images are in [0, 1]; `net.decode` maps them to the range of all others.
"""

import torch

from diffusion import cube
from diffusion.reflected_sde import ReflectedVE
from torch_utils.transfer import upload

from .denoiser import At, as_denoiser, per_row
from .edm import Step, noise_source
from .levels import Levels, edm_levels
from .rk45 import rk45

TIME_END = 1e-5  # the last time of the published samplers
MILEPOSTS = 20  # calls of the callback over an adaptive solution


@torch.no_grad()
def reflected_pc(net, latents, class_labels=None, *, num_steps: int = 1000, corrector_steps: int = 0,
                 snr: float = 0.01, denoiser=None, published: bool = False, randn_like=None, callback=None):
    """Images [N, C, H, W], float64 in [0, 1], by the reverse SDE: reflected Euler-Maruyama and Langevin steps.

    Args:
        net: reflected score network or denoiser, see above; its `sigma_min` and `sigma_max` are the SDE's.
        latents: standard normal [N, C, H, W], mapped to the uniform prior.
        num_steps: predictor steps at equal times; each removes exactly the variance between two levels.
        corrector_steps: Langevin steps before each of them, of size 2 (snr |z| / |score|)^2, norms row by row.
        denoiser: what removes the remaining noise sigma_min. None: nothing; 'mean': x + sigma_min^2 score (one more
            evaluation); or a function of x that returns images.
        published: the published steps: num_steps - 1 of them, of variance g^2 / num_steps, Langevin norms averaged
            over the batch (a row then depends on the others), and the result of `denoiser` is not used.
        randn_like, callback: as edm_sampler's.
    """
    denoise, randn_like = as_denoiser(net), noise_source(randn_like, True)
    sigmas, variances = _pc_levels(ReflectedVE(net.sigma_min, net.sigma_max), num_steps, published)
    steps = len(variances)
    on_device = upload(torch.stack([sigmas[:-1], variances]), latents.device)
    x = cube.uniform(latents)
    for i in range(steps):
        (sigma, variance), at = on_device[:, i], At(sigmas[i:i + 1], step=i)
        for _ in range(corrector_steps):
            score = (denoise(x, sigma, class_labels, at=at) - x) / sigma**2
            x = _langevin(x, score, randn_like(x), snr, sigma, together=published)
        denoised = denoise(x, sigma, class_labels, at=at)
        x = cube.reflect(x + variance / sigma**2 * (denoised - x) + variance.sqrt() * randn_like(x))
        if callback is not None:
            callback(Step(i, steps, sigmas[i].item(), sigmas[i + 1].item(), x, denoised))
    if published or denoiser is None:
        return x
    if denoiser == 'mean':
        last = upload(sigmas[-1], latents.device)
        return cube.reflect(denoise(x, last, class_labels, at=At(sigmas[-1:], step=steps)))
    return denoiser(x).to(torch.float64).clamp(0, 1)


def _pc_levels(sde: ReflectedVE, num_steps: int, published: bool):
    """Levels [n + 1] and the variances [n] that the steps between them remove, float64 on the host."""
    if not published:
        sigmas = sde.levels(num_steps)
        return sigmas, sigmas[:-1]**2 - sigmas[1:]**2
    times = torch.linspace(1, TIME_END, num_steps, dtype=torch.float64)
    return sde.sigma(times), sde.diffusion(times[:-1])**2 / num_steps


def _langevin(x, score, noise, snr, sigma, together):
    """One step of reflected Langevin dynamics."""
    noise_norm, score_norm = noise.flatten(1).norm(dim=1), score.flatten(1).norm(dim=1)
    if together:
        noise_norm, score_norm = noise_norm.mean(0, keepdim=True), score_norm.mean(0, keepdim=True)
    size = torch.minimum(2 * (snr * noise_norm / score_norm)**2, sigma**2)  # the score may be 0 at high noise
    size = per_row(size, x)
    return cube.reflect(x + size * score + (2 * size).sqrt() * noise)


@torch.no_grad()
def reflected_heun(net, latents, class_labels=None, *, levels: Levels | None = None, randn_like=None, callback=None):
    """Images [N, C, H, W], float64 in [0, 1], by Heun's method on the probability flow: 2 n - 1 evaluations.

    `levels` default to `reflected_levels(net)`; they take no churn. Otherwise as `reflected_pc`.
    """
    denoise, levels = as_denoiser(net), levels or reflected_levels(net)
    sigmas, num_steps = levels.sigmas, levels.num_steps
    on_device = upload(sigmas, latents.device)
    x = cube.uniform(latents)
    for i in range(num_steps):
        sigma, sigma_next = on_device[i], on_device[i + 1]
        denoised = denoise(x, sigma, class_labels, at=At(sigmas[i:i + 1], step=i))
        slope = (x - denoised) / sigma
        x_next = cube.reflect(x + (sigma_next - sigma) * slope)
        if i < num_steps - 1:
            denoised = denoise(x_next, sigma_next, class_labels, at=At(sigmas[i + 1:i + 2], second=True, step=i))
            slope = 0.5 * (slope + (x_next - denoised) / sigma_next)
            x_next = cube.reflect(x + (sigma_next - sigma) * slope)
        x = x_next
        if callback is not None:
            callback(Step(i, num_steps, sigmas[i].item(), sigmas[i + 1].item(), x, denoised))
    return x


def reflected_levels(net, num_steps: int = 18, sigma_min: float | None = None, sigma_max: float | None = None,
                     rho: float = 7) -> Levels:
    """EDM's levels from the one at which the heat kernel is uniform, or the network's largest, to its sigma_min."""
    if sigma_max is None:
        sigma_max = min(net.sigma_max, cube.mixing_sigma(net.img_channels * net.img_resolution**2))
    return edm_levels(net, num_steps, net.sigma_min if sigma_min is None else sigma_min, sigma_max, rho)


@torch.no_grad()
def reflected_ode(net, latents, class_labels=None, *, rtol: float = 1e-5, atol: float = 1e-5, moll: float = 200,
                  side: float = 0.01, randn_like=None, callback=None):
    """Images [N, C, H, W], float64 in [0, 1], by adaptive Runge-Kutta steps, chosen for each sample, on the flow.

    moll: the drift is multiplied by `mollifier(x, moll)`, 0 at the walls; 0: left as it is. side: the prior is uniform
    on [side, 1 - side]. Both as published. The costs differ between samples; `callback` is called twenty times, at
    equal parts of the way. Otherwise as `reflected_pc`.
    """
    denoise, flow = as_denoiser(net), ProbabilityFlow(net, moll)

    def drift(t, x, rows):
        labels = None if class_labels is None else class_labels[upload(torch.from_numpy(rows), x.device)]
        sigmas = flow.sde.sigma(t)
        return flow.drift(x, denoise(x, upload(sigmas, x.device), labels, at=At(sigmas, rows=rows)))

    passed = 0

    def on_step(done, x):
        nonlocal passed
        while callback is not None and passed < int(done * MILEPOSTS + 1e-9):
            ends = flow.sde.sigma(1 - torch.tensor([passed, passed + 1]) / MILEPOSTS).tolist()
            callback(Step(passed, MILEPOSTS, *ends, x, x))
            passed += 1

    prior = side + (1 - 2 * side) * cube.uniform(latents)
    return rk45(drift, prior, 1.0, TIME_END, rtol=rtol, atol=atol, project=cube.reflect, on_step=on_step)


class ProbabilityFlow:
    """The drift of dx/dt = -g^2 score / 2, in the time of the network's SDE, with or without the mollifier."""

    def __init__(self, net, moll: float):
        self.sde, self.moll = ReflectedVE(net.sigma_min, net.sigma_max), moll

    def drift(self, x: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
        """The drift at x [N, ...], D(x; sigma(t)) being `denoised`: sigma^2 score = D - x, g^2 / 2 = L sigma^2."""
        drift = -self.sde.log_ratio * (denoised - x)
        return drift * mollifier(x, self.moll) if self.moll else drift


def mollifier(x: torch.Tensor, moll: float) -> torch.Tensor:
    """exp((4 - 1 / (1/4 - (1/2 - x)^2)) / moll), 1 in the middle of [0, 1] and 0 at the walls and beyond."""
    room = x * (1 - x)
    return torch.where(room > 0, ((4 - 1 / room.clamp(min=1e-6)) / moll).exp(), 0.0)
