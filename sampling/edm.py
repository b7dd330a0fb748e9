"""The EDM sampler (Karras et al. 2022, algorithm 2), with optional discriminator guidance (Kim et al. 2023)."""

import math
from dataclasses import dataclass

import torch

from diffusion.schedules import clamp_range, edm_steps
from torch_utils.transfer import upload

from .guidance import BOOST_S_CHURN, BOOST_S_NOISE, Unguided, per_row


@dataclass(frozen=True)
class Step:
    """What a sampler's callback learns after each step."""

    index: int  # 0 to num_steps - 1
    num_steps: int
    sigma: float  # noise level at the start of the step
    sigma_next: float  # and at its end
    x: torch.Tensor  # [N, C, H, W] float64, the state after the step
    denoised: torch.Tensor  # [N, C, H, W] float64, the step's last denoised image
    nfe: int  # network calls so far
    discriminator_calls: int  # log-ratio evaluations so far


def rounded_steps(net, sigmas: torch.Tensor) -> torch.Tensor:
    """The levels that the network knows, nearest to `sigmas`, float64 on the host."""
    return torch.as_tensor(net.round_sigma(sigmas)).to('cpu', torch.float64)


def churned_steps(net, sigmas: torch.Tensor, S_churn: float, S_min: float, S_max: float) -> torch.Tensor:
    """Each level after the temporary increase of algorithm 2: t_hat = (1 + gamma) t, gamma > 0 in [S_min, S_max]."""
    gamma = min(S_churn / len(sigmas), math.sqrt(2) - 1)
    raised = rounded_steps(net, sigmas + gamma * sigmas)
    return torch.where((sigmas >= S_min) & (sigmas <= S_max) & (gamma > 0), raised, sigmas)


def added_noise(sigmas: torch.Tensor, raised: torch.Tensor) -> torch.Tensor:
    """Standard deviation of the noise that lifts level `sigmas` to `raised`."""
    return (raised ** 2 - sigmas ** 2).clip(min=0).sqrt()


@torch.no_grad()
def edm_sampler(net, latents, class_labels=None, *, randn_like=torch.randn_like, num_steps=18,
                sigma_min=0.002, sigma_max=80, rho=7, S_churn=0, S_min=0, S_max=float('inf'), S_noise=1,
                guidance=None, callback=None):
    """Draw images [N, C, H, W], float64 in about [-1, 1], from standard normal latents [N, C, H, W].

    net(x, sigma, class_labels) denoises (`networks.precond.Precond`); class_labels [N, K] or None. `randn_like` is
    called only in steps where a row may take noise. `guidance` is a DiscriminatorGuidance; `callback` gets a `Step`
    after every step. 2 num_steps - 1 network calls. The schedule lives on the host, so that no step waits for the
    device. Raises ValueError for an empty range of noise levels.
    """
    low, high = clamp_range(net, sigma_min, sigma_max)
    levels = rounded_steps(net, edm_steps(num_steps, low, high, rho))  # t_0 > ... > t_{n-1}, host
    raised = churned_steps(net, levels, S_churn, S_min, S_max)
    noise = S_noise * added_noise(levels, raised)
    boost_raised = churned_steps(net, levels, BOOST_S_CHURN, S_min, S_max)
    boost_noise = BOOST_S_NOISE * added_noise(levels, boost_raised)
    t_steps = torch.cat([levels, levels.new_zeros(1)])  # t_n = 0
    on_device = upload(torch.stack([raised, noise, boost_raised, boost_noise, t_steps[1:]]), latents.device)
    guide = (guidance or Unguided()).start()
    nfe = 0

    x_next = latents.to(torch.float64) * levels[0].item()
    for i in range(num_steps):
        x_cur = x_next
        t_hat, std, t_hat_boost, std_boost, t_next = on_device[:, i]  # [] each
        hat_levels = raised[i:i + 1]

        # Increase the noise temporarily; boosted rows have an amount of their own.
        x_hat = x_cur
        rows = guide.boosted(i)
        if rows is not None:
            t_hat, std = torch.where(rows, t_hat_boost, t_hat), torch.where(rows, std_boost, std)  # [N]
            hat_levels = torch.stack([raised[i], boost_raised[i]])
        if noise[i] > 0 or (rows is not None and boost_noise[i] > 0):
            x_hat = x_cur + per_row(std, x_cur) * randn_like(x_cur)

        # Euler step from t_hat to t_next.
        denoised = net(x_hat, t_hat, class_labels).to(torch.float64)
        denoised = denoised + guide.first(i, x_hat, t_hat, hat_levels, class_labels)
        d_cur = (x_hat - denoised) / per_row(t_hat, x_hat)
        h = per_row(t_next - t_hat, x_hat)
        x_next = x_hat + h * d_cur
        nfe += 1

        # Heun's correction, except in the step to zero noise.
        if i < num_steps - 1:
            denoised = net(x_next, t_next, class_labels).to(torch.float64)
            denoised = denoised + guide.second(x_next, t_next, t_steps[i + 1:i + 2], class_labels)
            d_prime = (x_next - denoised) / t_next
            x_next = x_hat + h * (0.5 * d_cur + 0.5 * d_prime)
            nfe += 1

        if callback is not None:
            callback(Step(i, num_steps, levels[i].item(), t_steps[i + 1].item(), x_next, denoised, nfe, guide.calls))
    return x_next
