"""The noise levels of a run and the churn between them, made once on the host for any sampler."""

import math
from dataclasses import dataclass, field

import torch

from diffusion.schedules import clamp_range, default_range, sigma_steps


@dataclass(frozen=True)
class Churn:
    """How strongly and between which levels noise is renewed (Karras et al. 2022, algorithm 2)."""

    S_churn: float = 0
    S_min: float = 0
    S_max: float = math.inf
    S_noise: float = 1


@dataclass(frozen=True)
class Levels:
    """Noise levels t_0 > ... > t_{n-1} > t_n = 0, and the first n of them after churn; float64 on the host.

    With a last dimension [..., N] each of N samples has its own levels.
    """

    sigmas: torch.Tensor  # [n + 1], the last one 0
    raised: torch.Tensor  # [n], t_hat: the levels after churn
    noise: torch.Tensor  # [n], standard deviation of the noise that raises a state to these
    churn: Churn = field(default_factory=Churn)

    @property
    def num_steps(self) -> int:
        return len(self.raised)


def rounded(net, sigmas: torch.Tensor) -> torch.Tensor:
    """The levels of the network nearest to `sigmas`, float64 on the host."""
    return torch.as_tensor(net.round_sigma(sigmas)).to('cpu', torch.float64)


def levels_from(net, sigmas: torch.Tensor, churn: Churn = Churn()) -> Levels:
    """Levels for decreasing `sigmas` [n] or [n, N] without the final 0; the network must support them.

    t_hat = (1 + gamma) t with gamma = min(S_churn / n, sqrt(2) - 1) for t in [S_min, S_max] (Karras et al. 2022,
    algorithm 2).
    """
    gamma = min(churn.S_churn / len(sigmas), math.sqrt(2) - 1)
    raised = rounded(net, sigmas + gamma * sigmas)
    raised = torch.where((sigmas >= churn.S_min) & (sigmas <= churn.S_max) & (gamma > 0), raised, sigmas)
    noise = churn.S_noise * (raised ** 2 - sigmas ** 2).clip(min=0).sqrt()
    return Levels(torch.cat([sigmas, torch.zeros_like(sigmas[:1])]), raised, noise, churn)


def edm_levels(net, num_steps: int = 18, sigma_min: float | None = None, sigma_max: float | None = None,
               rho: float = 7, S_churn: float = 0, S_min: float = 0, S_max: float = math.inf, S_noise: float = 1,
               discretization: str = 'edm') -> Levels:
    """The levels of Karras et al. 2022 (table 1, "time steps"), as far as the network supports them.

    `discretization` is one of 'vp', 've', 'iddpm', 'edm'; sigma_min and sigma_max default to those of its authors
    ('edm': 0.002 and 80). Raises ValueError if nothing is left of the range.
    """
    low, high = level_range(net, sigma_min, sigma_max, discretization)
    sigmas = rounded(net, sigma_steps(discretization, num_steps, low, high, rho))
    return levels_from(net, sigmas, Churn(S_churn, S_min, S_max, S_noise))


def listed_levels(net, sigmas, churn: Churn = Churn()) -> Levels:
    """Levels from a list of decreasing noise levels, with or without the 0 at its end.

    Raises ValueError if they do not decrease, or if the network does not support them.
    """
    sigmas = torch.as_tensor(sigmas, dtype=torch.float64)
    sigmas = sigmas[:-1] if len(sigmas) and sigmas[-1] == 0 else sigmas
    if not len(sigmas) or not (sigmas > 0).all() or not (sigmas[1:] < sigmas[:-1]).all():
        raise ValueError('noise levels must be positive and decrease')
    if sigmas[0] > net.sigma_max or sigmas[-1] < net.sigma_min:
        raise ValueError(f'noise levels run from {sigmas[0].item():g} to {sigmas[-1].item():g}, the network knows '
                         f'{float(net.sigma_min):g} to {float(net.sigma_max):g}')
    known = rounded(net, sigmas)
    if not (known[1:] < known[:-1]).all():
        raise ValueError('two of the noise levels round to the same level of the network, which has only some levels')
    return levels_from(net, known, churn)


def level_range(net, sigma_min: float | None = None, sigma_max: float | None = None,
                discretization: str = 'edm') -> tuple[float, float]:
    """The range asked for, by default that of the discretization's authors, as far as the network supports it."""
    low, high = default_range(discretization)
    return clamp_range(net, low if sigma_min is None else sigma_min, high if sigma_max is None else sigma_max)
