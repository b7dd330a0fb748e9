"""The samplers published with score_sde (Song et al., ICLR 2021) and Soft-Truncation (Kim et al., ICML 2022).

They take equal steps in the time of the network's own process (VE, VP or sub-VP; diffusion/processes.py); a corrector
adds Langevin steps before each of them.
"""

import torch

from diffusion.processes import SubVariancePreserving, VarianceExploding, VariancePreserving, last_step, predictor_steps
from torch_utils.transfer import upload

from .denoiser import At, as_denoiser, per_row
from .edm import Step, noise_source
from .levels import Levels

CORRECTORS = ('none', 'langevin')
NUM_STEPS = 1000


@torch.no_grad()
def predictor_corrector(net, latents, class_labels=None, *, levels: Levels | None = None,
                        predictor: str = 'euler_maruyama', corrector: str = 'none', corrector_steps: int = 1,
                        snr: float = 0.16, time_end: float = 0.0, to_zero: bool = False, randn_like=None,
                        callback=None):
    """Images [N, C, H, W], float64 in about [-1, 1], from standard normal latents [N, C, H, W].

    Published: VE networks 'reverse_diffusion' with 'langevin' (2000 evaluations in 1000 steps), VP and sub-VP networks
    'euler_maruyama'; Soft-Truncation's VP networks the same with time_end=1e-5 and to_zero.

    Args:
        net: score network or denoiser, as edm_sampler's; `net.process` is 've' (default), 'vp' or 'subvp'.
        levels: only their number matters, 1000 by default: times are equally spaced from 1 to `time_end`.
        predictor: 'euler_maruyama', 'reverse_diffusion' or 'ancestral' (not for sub-VP).
        corrector: 'none' or 'langevin': corrector_steps of size 2 alpha (snr |z| / |score|)^2 before each predictor
            step, with norms of each sample (published: averages over the batch, so that samples depend on each other).
        time_end: time of the last step; 0: as published, 1e-5 for VE and 1e-3 for the others.
        to_zero: Soft-Truncation's denoising step from `time_end` to 0 at the end (VP and sub-VP).
        randn_like, callback: as edm_sampler's.
    The noise of the last step of the predictor is left out, as published. Raises ValueError.
    """
    if corrector not in CORRECTORS:
        raise ValueError(f'{corrector!r} is not a corrector; use one of {", ".join(CORRECTORS)}')
    denoise, randn_like = as_denoiser(net), noise_source(randn_like, True)
    process, num_steps = process_of(net), NUM_STEPS if levels is None else levels.num_steps
    times = torch.linspace(1, time_end or process.time_end, num_steps, dtype=torch.float64)
    moves = torch.stack(predictor_steps(process, predictor, times))
    if to_zero:
        times = torch.cat([times, times[-1:]])
        moves = torch.cat([moves, torch.stack(last_step(process, times[-1:]))], dim=1)
    moves[2, num_steps - 1:] = 0  # no noise in the last step, nor before the step to 0
    mean, std = process.mean(times), process.std(times)
    alphas = process.alpha(times, num_steps) if corrector == 'langevin' else torch.ones_like(times)
    sigmas = std / mean
    on_device = upload(torch.cat([moves, torch.stack([mean, std, sigmas, alphas])]), latents.device)

    x = latents.to(torch.float64) * process.prior_std
    for i in range(len(times)):
        a, b, c, m, s, sigma, alpha = on_device[:, i]
        at = At(sigmas[i:i + 1], step=i)

        def score(x, m=m, s=s, sigma=sigma, at=at):
            denoised = denoise(x / m, sigma, class_labels, at=at)
            return denoised, (m * denoised - x) / s**2

        for _ in range(corrector_steps if corrector == 'langevin' and i < num_steps else 0):
            x = _langevin(x, score(x)[1], randn_like(x), snr, alpha, s)
        denoised, gradient = score(x)
        x = a * x + b * gradient
        if moves[2, i] > 0:
            x = x + c * randn_like(x)
        if callback is not None:
            sigma_next = sigmas[i + 1].item() if i + 1 < len(times) else 0.0
            callback(Step(i, len(times), sigmas[i].item(), sigma_next, x, denoised))
    return x


def process_of(net):
    """The forward process of a network, by its `process` and parameters; EDM's networks count as VE, 0.02 to 100."""
    kind = getattr(net, 'process', 've')
    if kind == 've':
        low, high = float(net.sigma_min), float(net.sigma_max)
        return VarianceExploding(low or 0.02, high if high < float('inf') else 100.0)
    beta_max = net.beta_max if hasattr(net, 'beta_max') else net.beta_min + net.beta_d
    return (SubVariancePreserving if kind == 'subvp' else VariancePreserving)(net.beta_min, beta_max)


def _langevin(x, score, noise, snr, alpha, std):
    """One Langevin step with a size for each row, at most std^2: few dimensions may have a score of nearly 0."""
    size = 2 * alpha * (snr * noise.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1))**2
    size = per_row(torch.minimum(size, std**2), x)
    return x + size * score + (2 * size).sqrt() * noise
