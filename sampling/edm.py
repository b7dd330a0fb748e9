"""The EDM sampler (Karras et al. 2022, algorithm 2)."""

from dataclasses import dataclass

import torch

from torch_utils.transfer import upload

from .denoiser import At, as_denoiser, per_row
from .levels import Levels, edm_levels, levels_from


@dataclass(frozen=True)
class Step:
    """The argument of a sampler's callback after each step."""

    index: int  # 0 to num_steps - 1
    num_steps: int
    sigma: float  # noise level at the start of the step, the largest if rows differ
    sigma_next: float  # and at its end
    x: torch.Tensor  # [N, C, H, W] float64, the state after the step
    denoised: torch.Tensor  # [N, C, H, W] float64, the step's last denoised image


def noise_source(randn_like, needed: bool):
    """`randn_like`, which a sampler that needs noise requires: a default would ignore the samples' seeds."""
    if needed and randn_like is None:
        raise ValueError('this sampler adds noise: pass randn_like=StackedRandomGenerator(device, seeds).randn_like, '
                         'or call it through sample()')
    return randn_like


def heun_step(denoise, x_hat, t_hat, t_next, class_labels, first: At, second: At | None):
    """(the state at t_next, the step's last denoised image) from x_hat [N, C, H, W] at noise level t_hat ([] or [N]).

    first, second: what is known of both evaluations; without a second one this is Euler's step, as the last one is.
    """
    denoised = denoise(x_hat, t_hat, class_labels, at=first)
    d_cur = (x_hat - denoised) / per_row(t_hat, x_hat)
    h = per_row(t_next - t_hat, x_hat)
    x_next = x_hat + h * d_cur
    if second is not None:
        denoised = denoise(x_next, t_next, class_labels, at=second)
        d_prime = (x_next - denoised) / per_row(t_next, x_next)
        x_next = x_hat + h * (0.5 * d_cur + 0.5 * d_prime)
    return x_next, denoised


@torch.no_grad()
def edm_sampler(net, latents, class_labels=None, *, levels: Levels | None = None, randn_like=None, callback=None):
    """Images [N, C, H, W], float64 in about [-1, 1], from standard normal latents [N, C, H, W].

    net(x, sigma, class_labels) denoises: a score network, or a denoiser that guidance wraps; class_labels [N, K] or
    None. `levels` default to `edm_levels(net)`. randn_like(x) draws noise, only in steps that may add some;
    `callback` gets a `Step` after every step. 2 n - 1 evaluations for n steps. No step waits for the device. Raises
    ValueError if there is churn and no `randn_like`.
    """
    levels = levels or edm_levels(net)
    x = latents.to(torch.float64) * levels.sigmas[0].item()
    return heun(net, x, class_labels, levels=levels, randn_like=randn_like, callback=callback)


@torch.no_grad()
def heun(net, x, class_labels=None, *, levels: Levels, randn_like=None, callback=None):
    """Images [N, C, H, W], float64, from states x [N, C, H, W] with noise levels.sigmas[0]; otherwise as edm_sampler.

    Each row may have its own levels, see `Levels`.
    """
    denoise = as_denoiser(net)
    boost = levels if denoise.boosting is None else levels_from(
        net, levels.sigmas[:-1], denoise.boosting.churn(levels.churn))
    randn_like = noise_source(randn_like, bool(levels.noise.any() or boost.noise.any()))
    t_steps, num_steps = levels.sigmas, levels.num_steps
    on_device = upload(torch.stack([levels.raised, levels.noise, boost.raised, boost.noise, t_steps[1:]]), x.device)

    x_next = x.to(torch.float64)
    for i in range(num_steps):
        x_cur = x_next
        t_hat, std, t_hat_boost, std_boost, t_next = on_device[:, i]  # [] or [N] each

        # Increase the noise temporarily; boosted rows get their own amount.
        rows, at = denoise.boosted(i), At(levels.raised[i].reshape(-1), step=i)
        if rows is not None:
            t_hat, std = torch.where(rows, t_hat_boost, t_hat), torch.where(rows, std_boost, std)  # [N]
            at = At(torch.stack([levels.raised[i], boost.raised[i]]).reshape(-1), step=i, either=True)
        x_hat = x_cur
        if levels.noise[i].any() or (rows is not None and boost.noise[i].any()):
            x_hat = x_cur + per_row(std, x_cur) * randn_like(x_cur)

        second = At(t_steps[i + 1].reshape(-1), second=True, step=i) if i < num_steps - 1 else None
        x_next, denoised = heun_step(denoise, x_hat, t_hat, t_next, class_labels, at, second)

        if callback is not None:
            callback(Step(i, num_steps, t_steps[i].max().item(), t_steps[i + 1].max().item(), x_next, denoised))
    return x_next
