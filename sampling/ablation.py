"""EDM's generalised sampler (Karras et al. 2022, algorithm 1 and table 1): other solvers, levels and schedules."""

import torch

from diffusion.schedules import TimeSchedule, time_schedule
from torch_utils.transfer import upload

from .denoiser import At, as_denoiser
from .edm import Step, noise_source
from .levels import Levels, edm_levels

SOLVERS = ('euler', 'heun')


@torch.no_grad()
def ablation_sampler(net, latents, class_labels=None, *, levels: Levels | None = None,
                     time: TimeSchedule | None = None, solver: str = 'heun', randn_like=None, callback=None):
    """Images like those of `edm_sampler`, by any solver ('euler', 'heun') and any noise schedule and scaling.

    `time` is a `diffusion.schedules.time_schedule`, sigma(t) and s(t); the default is EDM's, sigma = t and s = 1.
    The network sees x / s(t). Raises ValueError for another solver, and for boosting, whose noise per row is
    not defined here.
    """
    if solver not in SOLVERS:
        raise ValueError(f'{solver!r} is not a solver; use one of {", ".join(SOLVERS)}')
    denoise, levels = as_denoiser(net), levels or edm_levels(net)
    if denoise.boosting is not None:
        raise ValueError('boosting works only with the EDM sampler (no other solver, levels, schedule or scaling)')
    randn_like = noise_source(randn_like, bool(levels.noise.any()))
    sigmas, raised, noise, num_steps = levels.sigmas[:-1], levels.raised, levels.noise, levels.num_steps
    time = time or time_schedule('linear', 'none', sigmas[-1].item(), sigmas[0].item())

    # All coefficients are known in advance: levels, times, scales and their derivatives, float64 on the host.
    t_hat = time.sigma_inv(raised)
    t_next = torch.cat([time.sigma_inv(sigmas[1:]), sigmas.new_zeros(1)])  # t_n = 0
    h = (t_next - t_hat).tolist()
    sigma_next = time.sigma(t_next)
    on_device = upload(torch.stack([raised, sigma_next]), latents.device)
    scale_cur, scale_hat, scale_next = (time.scale(t) for t in (time.sigma_inv(sigmas), t_hat, t_next))
    first, second = _drift(time, t_hat), _drift(time, t_next)

    x_next = latents.to(torch.float64) * (sigmas[0] * scale_cur[0]).item()
    for i in range(num_steps):
        # Increase the noise temporarily.
        x_hat = x_next * (scale_hat[i] / scale_cur[i]).item()
        if noise[i] > 0:
            x_hat = x_hat + (noise[i] * scale_hat[i]).item() * randn_like(x_next)

        # Euler step.
        denoised = denoise(x_hat / scale_hat[i].item(), on_device[0, i], class_labels, at=At(raised[i:i + 1], step=i))
        d_cur = first(i, x_hat, denoised)
        x_next = x_hat + h[i] * d_cur

        # Heun's correction, except in the step to zero noise.
        if solver == 'heun' and i < num_steps - 1:
            denoised = denoise(x_next / scale_next[i].item(), on_device[1, i], class_labels,
                               at=At(sigma_next[i:i + 1], second=True, step=i))
            x_next = x_hat + h[i] * 0.5 * (d_cur + second(i, x_next, denoised))

        if callback is not None:
            callback(Step(i, num_steps, sigmas[i].item(), sigma_next[i].item(), x_next, denoised))
    return x_next


def _drift(time, t):
    """dx/dt at the times t [n] as (index, x, denoised) -> [N, C, H, W] (Karras et al. 2022, algorithm 1)."""
    rate = time.sigma_deriv(t) / time.sigma(t)
    on_x = (rate + time.scale_deriv(t) / time.scale(t)).tolist()
    on_denoised = (rate * time.scale(t)).tolist()
    return lambda index, x, denoised: on_x[index] * x - on_denoised[index] * denoised
