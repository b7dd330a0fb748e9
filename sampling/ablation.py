"""EDM's generalised sampler (Karras et al. 2022, algorithm 1 and table 1): other solvers, grids and schedules."""

import torch

from diffusion.schedules import clamp_range, default_range, grid_steps, time_schedule
from torch_utils.transfer import upload

from .edm import Step, added_noise, churned_steps, rounded_steps
from .guidance import Unguided

SOLVERS = ('euler', 'heun')


@torch.no_grad()
def ablation_sampler(net, latents, class_labels=None, *, randn_like=torch.randn_like, num_steps=18,
                     sigma_min=None, sigma_max=None, rho=7, solver='heun', discretization='edm', schedule='linear',
                     scaling='none', S_churn=0, S_min=0, S_max=float('inf'), S_noise=1,
                     guidance=None, callback=None):
    """Draw images as `edm_sampler` does, with any solver ('euler', 'heun'), grid of noise levels
    ('vp', 've', 'iddpm', 'edm'), noise schedule sigma(t) ('vp', 've', 'linear') and scaling s(t) ('vp', 'none').

    sigma_min and sigma_max default to what the grid's authors used. The network sees x / s(t). Guidance works
    without boosting, whose noise per row has no meaning here. Raises ValueError.
    """
    if solver not in SOLVERS:
        raise ValueError(f'{solver!r} is not a solver; use one of {", ".join(SOLVERS)}')
    guide = (guidance or Unguided()).start()
    if guidance is not None and guidance.boosting:
        raise ValueError('boosting works with the EDM sampler alone (no other solver, grid, schedule or scaling)')
    default_min, default_max = default_range(discretization)
    low, high = clamp_range(net, default_min if sigma_min is None else sigma_min,
                            default_max if sigma_max is None else sigma_max)
    time = time_schedule(schedule, scaling, low, high)

    # All coefficients are known beforehand: levels, times, scales and their derivatives, float64 on the host.
    levels = rounded_steps(net, grid_steps(discretization, num_steps, low, high, rho))
    raised = churned_steps(net, levels, S_churn, S_min, S_max)
    noise = S_noise * added_noise(levels, raised)
    t_hat = time.sigma_inv(raised)
    t_next = torch.cat([time.sigma_inv(levels[1:]), levels.new_zeros(1)])  # t_n = 0
    h = (t_next - t_hat).tolist()
    sigma_next = time.sigma(t_next)
    on_device = upload(torch.stack([raised, sigma_next]), latents.device)
    scale_cur, scale_hat, scale_next = (time.scale(t) for t in (time.sigma_inv(levels), t_hat, t_next))
    first, second = _drift(time, t_hat), _drift(time, t_next)
    nfe = 0

    x_next = latents.to(torch.float64) * (levels[0] * scale_cur[0]).item()
    for i in range(num_steps):
        # Increase the noise temporarily.
        x_hat = x_next * (scale_hat[i] / scale_cur[i]).item()
        if noise[i] > 0:
            x_hat = x_hat + (noise[i] * scale_hat[i]).item() * randn_like(x_next)

        # Euler step.
        unscaled, sigma = x_hat / scale_hat[i].item(), on_device[0, i]
        denoised = net(unscaled, sigma, class_labels).to(torch.float64)
        denoised = denoised + guide.first(i, unscaled, sigma, raised[i:i + 1], class_labels)
        d_cur = first(i, x_hat, denoised)
        x_next = x_hat + h[i] * d_cur
        nfe += 1

        # Heun's correction, except in the step to zero noise.
        if solver == 'heun' and i < num_steps - 1:
            unscaled, sigma = x_next / scale_next[i].item(), on_device[1, i]
            denoised = net(unscaled, sigma, class_labels).to(torch.float64)
            denoised = denoised + guide.second(unscaled, sigma, sigma_next[i:i + 1], class_labels)
            x_next = x_hat + h[i] * 0.5 * (d_cur + second(i, x_next, denoised))
            nfe += 1

        if callback is not None:
            callback(Step(i, num_steps, levels[i].item(), sigma_next[i].item(), x_next, denoised, nfe, guide.calls))
    return x_next


def _drift(time, t):
    """dx/dt at the times t [n] as (index, x, denoised) -> [N, C, H, W] (Karras et al. 2022, algorithm 1)."""
    rate = time.sigma_deriv(t) / time.sigma(t)
    on_x = (rate + time.scale_deriv(t) / time.scale(t)).tolist()
    on_denoised = (rate * time.scale(t)).tolist()
    return lambda index, x, denoised: on_x[index] * x - on_denoised[index] * denoised
