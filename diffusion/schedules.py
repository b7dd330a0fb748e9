"""The noise levels and time schedules of Karras et al. 2022 (EDM), in float64 on the host."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

EPSILON_S = 1e-3  # smallest time of the VP discretization
VP_BETA_D, VP_BETA_MIN = 19.9, 0.1  # Song et al. 2021
IDDPM_M, IDDPM_C1, IDDPM_C2 = 1000, 0.001, 0.008  # Nichol and Dhariwal 2021

DISCRETIZATIONS = ('vp', 've', 'iddpm', 'edm')
SCHEDULES = ('vp', 've', 'linear')
SCALINGS = ('vp', 'none')


def clamp_range(net, sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """The part of [sigma_min, sigma_max] that the network supports. Raises ValueError if nothing is left."""
    low, high = max(float(sigma_min), float(net.sigma_min)), min(float(sigma_max), float(net.sigma_max))
    if not 0 < low <= high < math.inf:
        raise ValueError(f'no noise level is left between sigma_min {sigma_min:g} and sigma_max {sigma_max:g}: '
                         f'the network supports {float(net.sigma_min):g} to {float(net.sigma_max):g}')
    return low, high


def _fractions(num_steps: int) -> torch.Tensor:
    """0, 1/(n-1), ..., 1 (a single 0 for one step)."""
    if num_steps < 1:
        raise ValueError(f'num_steps is {num_steps}; at least one step is needed')
    return torch.arange(num_steps, dtype=torch.float64) / max(num_steps - 1, 1)


def edm_steps(num_steps: int, sigma_min: float = 0.002, sigma_max: float | torch.Tensor = 80,
              rho: float = 7) -> torch.Tensor:
    """EDM's levels [num_steps], from sigma_max down to sigma_min, without the final 0 (Karras et al. 2022, eq. 5).

    For a tensor of N largest levels [num_steps, N]. Raises ValueError if rho is too small for float64.
    """
    try:
        top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    except OverflowError:
        raise ValueError(f'{rho:g} is too small for rho; EDM uses 7') from None
    fractions = _fractions(num_steps)
    return (top + (fractions[:, None] if torch.is_tensor(sigma_max) else fractions) * (bottom - top)).pow(rho)


def vp_sigma(t: torch.Tensor, beta_d: float = VP_BETA_D, beta_min: float = VP_BETA_MIN) -> torch.Tensor:
    """Noise level of the variance-preserving process at time t: sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)."""
    return torch.expm1(0.5 * beta_d * t ** 2 + beta_min * t).sqrt()


def vp_betas(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """(beta_d, beta_min) for which `vp_sigma` runs from sigma_min at t = EPSILON_S to sigma_max at t = 1."""
    low, high = math.log1p(sigma_min ** 2), math.log1p(sigma_max ** 2)
    beta_d = 2 * (low / EPSILON_S - high) / (EPSILON_S - 1)
    return beta_d, high - 0.5 * beta_d


def default_range(discretization: str) -> tuple[float, float]:
    """The (sigma_min, sigma_max) that the original works used (Karras et al. 2022, table 1)."""
    if discretization == 'vp':
        low, high = vp_sigma(torch.tensor([EPSILON_S, 1.0], dtype=torch.float64)).tolist()
        return low, high
    _check(discretization)
    return {'ve': (0.02, 100.0), 'iddpm': (0.002, 81.0), 'edm': (0.002, 80.0)}[discretization]


def _iddpm_steps(num_steps: int, sigma_min: float, sigma_max: float) -> torch.Tensor:
    """`num_steps` evenly spaced entries of iDDPM's table of noise levels u_0 > ... > u_M = 0."""
    j = torch.arange(IDDPM_M + 1, dtype=torch.float64)
    alpha_bar = (0.5 * math.pi * j / IDDPM_M / (IDDPM_C2 + 1)).sin() ** 2
    ratio = (alpha_bar[:-1] / alpha_bar[1:]).clip(min=IDDPM_C1)  # alpha_bar_{j-1} / alpha_bar_j, j = 1..M
    # u_{j-1}^2 + 1 = (u_j^2 + 1) / ratio_j, from u_M = 0 upwards: a product taken from the end.
    growth = (1 / ratio).flip(0).cumprod(0).flip(0)
    u = (growth - 1).sqrt()
    u = u[(u >= sigma_min) & (u <= sigma_max)]
    if len(u) == 0:
        raise ValueError(f'iDDPM has no noise level between {sigma_min:g} and {sigma_max:g}')
    return u[((len(u) - 1) * _fractions(num_steps)).round().to(torch.int64)]


def sigma_steps(discretization: str, num_steps: int, sigma_min: float, sigma_max: float,
                rho: float = 7) -> torch.Tensor:
    """Decreasing noise levels [num_steps] by one of `DISCRETIZATIONS` (Karras et al. 2022, table 1, "time steps")."""
    _check(discretization)
    if discretization == 'edm':
        return edm_steps(num_steps, sigma_min, sigma_max, rho)
    if discretization == 've':
        return sigma_max * (sigma_min / sigma_max) ** _fractions(num_steps)
    if discretization == 'vp':
        return vp_sigma(1 + _fractions(num_steps) * (EPSILON_S - 1), *vp_betas(sigma_min, sigma_max))
    return _iddpm_steps(num_steps, sigma_min, sigma_max)


def _check(discretization: str) -> None:
    if discretization not in DISCRETIZATIONS:
        raise ValueError(f'{discretization!r} is not a discretization; use one of {", ".join(DISCRETIZATIONS)}')


@dataclass(frozen=True)
class TimeSchedule:
    """sigma(t), its derivative and inverse, and the signal scaling s(t) with its derivative; tensors to tensors."""

    sigma: Callable[[torch.Tensor], torch.Tensor]
    sigma_deriv: Callable[[torch.Tensor], torch.Tensor]
    sigma_inv: Callable[[torch.Tensor], torch.Tensor]
    scale: Callable[[torch.Tensor], torch.Tensor]
    scale_deriv: Callable[[torch.Tensor], torch.Tensor]


def time_schedule(schedule: str, scaling: str, sigma_min: float, sigma_max: float) -> TimeSchedule:
    """The noise schedule and the signal scaling of Karras et al. 2022, table 1.

    `schedule` is one of SCHEDULES, `scaling` one of SCALINGS; the range fixes the betas of 'vp'.
    """
    if schedule == 'vp':
        beta_d, beta_min = vp_betas(sigma_min, sigma_max)

        def sigma(t):
            return vp_sigma(t, beta_d, beta_min)

        def sigma_deriv(t):
            return 0.5 * (beta_min + beta_d * t) * (sigma(t) + 1 / sigma(t))

        def sigma_inv(level):
            return ((beta_min ** 2 + 2 * beta_d * torch.log1p(level ** 2)).sqrt() - beta_min) / beta_d
    elif schedule == 've':
        sigma, sigma_deriv, sigma_inv = torch.sqrt, lambda t: 0.5 / t.sqrt(), torch.square
    elif schedule == 'linear':
        sigma, sigma_deriv, sigma_inv = torch.clone, torch.ones_like, torch.clone
    else:
        raise ValueError(f'{schedule!r} is not a noise schedule; use one of {", ".join(SCHEDULES)}')
    if scaling == 'vp':
        def scale(t):
            return (1 + sigma(t) ** 2).rsqrt()

        def scale_deriv(t):
            return -sigma(t) * sigma_deriv(t) * scale(t) ** 3
    elif scaling == 'none':
        scale, scale_deriv = torch.ones_like, torch.zeros_like
    else:
        raise ValueError(f'{scaling!r} is not a signal scaling; use one of {", ".join(SCALINGS)}')
    return TimeSchedule(sigma, sigma_deriv, sigma_inv, scale, scale_deriv)
