"""Restart sampling (Xu et al. 2023): stretches of the path are walked again, after noise is added at their ends."""

import json
import math
import re
from dataclasses import dataclass
from typing import NamedTuple

import torch

from diffusion.schedules import edm_steps
from torch_utils.transfer import upload

from .denoiser import At, as_denoiser
from .edm import Step, heun_step, noise_source
from .levels import Churn, Levels, edm_levels, levels_from, rounded


class Interval(NamedTuple):
    """A stretch that is walked again, as published: [number of levels, repetitions, t_min, t_max]."""

    num_levels: int
    repeats: int
    sigma_min: float  # replaced by the nearest level of the main path
    sigma_max: float

    @property
    def nfe(self) -> int:
        """Evaluations of the score network by the repetitions."""
        return 2 * self.repeats * (self.num_levels - 1)


@dataclass(frozen=True)
class Restarts:
    """Where a path restarts, and the churn within restarts: t_hat = (1 + gamma) t between the levels' S_min and S_max.

    Raises ValueError for an interval with fewer than two levels, without repetitions, or with t_min >= t_max.
    """

    intervals: tuple[Interval, ...]
    num_steps: int | None = None  # of the main path, if the intervals were published for it
    gamma: float = 0.05

    def __post_init__(self):
        for interval in self.intervals:
            if not (interval.num_levels >= 2 and interval.repeats >= 1
                    and 0 < interval.sigma_min < interval.sigma_max < math.inf):
                raise ValueError(f'{list(interval)} is not [levels (2 or more), repetitions (1 or more), t_min, t_max] '
                                 f'with 0 < t_min < t_max')

    def nfe(self, num_steps: int | None = None) -> int:
        """Evaluations of the score network per image: 2 N - 1 + sum of 2 K (n - 1)."""
        return 2 * (num_steps or self.num_steps) - 1 + sum(interval.nfe for interval in self.intervals)


class Preset(NamedTuple):
    """A published configuration; `churn` is that of its authors' command."""

    text: str
    churn: Churn


CIFAR10 = Churn(S_min=0.01, S_max=1, S_noise=1.0)
IMAGENET64 = Churn(S_min=0.01, S_max=1, S_noise=1.003)
FFHQ64 = Churn(S_min=0.01, S_max=0, S_noise=1.003)
# By data and evaluations of the score network (Xu et al. 2023, params_cifar10_vp.txt; Liu et al. 2024,
# restart_params_{imagenet,ffhq}.txt).
PRESETS = {
    'cifar10-43': Preset('18; [3,2,0.06,0.30]', CIFAR10),
    'cifar10-55': Preset('18; [3,5,0.06,0.30]', CIFAR10),
    'cifar10-75': Preset('18; [3,10,0.06,0.30]', CIFAR10),
    'cifar10-115': Preset('18; [3,20,0.06,0.30]', CIFAR10),
    'cifar10-519': Preset('20; [9,30,0.06,0.20]', CIFAR10),
    'imagenet64-39': Preset('14; [3,1,19.35,40.79],[3,1,1.09,1.92],[3,1,0.06,0.30]', IMAGENET64),
    'imagenet64-67': Preset('18; [5,1,19.35,40.79],[5,1,1.09,1.92],[5,1,0.59,1.09],[5,1,0.06,0.30]', IMAGENET64),
    'imagenet64-99': Preset('18; [3,1,19.35,40.79],[4,1,1.09,1.92],[4,4,0.59,1.09],[4,1,0.30,0.59],[4,4,0.06,0.30]',
                            IMAGENET64),
    'imagenet64-165': Preset('18; [3,1,19.35,40.79],[4,1,1.09,1.92],[4,5,0.59,1.09],[4,5,0.30,0.59],'
                             '[4,10,0.06,0.30]', IMAGENET64),
    'imagenet64-203': Preset('36; [4,1,19.35,40.79],[4,1,1.09,1.92],[4,5,0.59,1.09],[4,5,0.30,0.59],[6,6,0.06,0.30]',
                             IMAGENET64),
    'imagenet64-385': Preset('36; [3,1,19.35,40.79],[6,1,1.09,1.92],[6,5,0.59,1.09],[6,5,0.30,0.59],'
                             '[6,20,0.06,0.30]', IMAGENET64),
    'imagenet64-535': Preset('36; [6,1,19.35,40.79],[6,1,1.09,1.92],[7,6,0.59,1.09],[7,6,0.30,0.59],'
                             '[7,25,0.06,0.30]', IMAGENET64),
    'imagenet64-623': Preset('36; [10,3,19.35,40.79],[10,3,1.09,1.92],[7,6,0.59,1.09],[7,6,0.30,0.59],'
                             '[7,25,0.06,0.30]', IMAGENET64),
    'ffhq64-67': Preset('18; [5,1,1.09,1.92],[5,2,0.59,1.09],[5,1,0.06,0.30]', FFHQ64),
    'ffhq64-119': Preset('18; [8,1,19.35,40.79],[8,2,1.09,1.92],[8,2,0.59,1.09],[8,1,0.06,0.30]', FFHQ64),
    'ffhq64-251': Preset('36; [11,1,19.35,40.79],[11,3,1.09,1.92],[11,3,0.59,1.09],[11,2,0.06,0.30]', FFHQ64),
    'ffhq64-401': Preset('48; [18,1,19.35,40.79],[18,3,1.09,1.92],[18,3,0.59,1.09],[18,2,0.06,0.30]', FFHQ64),
}


def parse_restarts(text: str, gamma: float = 0.05) -> Restarts:
    """Restarts from a published string, with or without the number of steps in front.

    '18; [3,2,0.06,0.30],[...]', '18; {"0": [3, 2, 0.06, 0.30]}' and the same without ';'. Raises ValueError.
    """
    match = re.fullmatch(r'\s*(?:(\d+)\s*;?)?\s*([\[{].*[\]}])\s*', text, re.DOTALL)
    try:
        found = json.loads(match[2] if match[2].startswith('{') else f'[{match[2]}]')
        rows = list(found.values()) if isinstance(found, dict) else found
        intervals = tuple(Interval(_whole(levels), _whole(repeats), float(low), float(high))
                          for levels, repeats, low, high in rows)
        num_steps = None if match[1] is None else int(match[1])
    except (TypeError, ValueError):  # no match, not JSON, or not four numbers
        raise ValueError(f'{text!r} is not of the form "18; [3,2,0.06,0.30]", [levels, repetitions, t_min, t_max] for '
                         f'each interval, nor one of {", ".join(PRESETS)}') from None
    return Restarts(intervals, num_steps, gamma)


def _whole(number) -> int:
    if number != int(number):
        raise ValueError(f'{number} is not a whole number')
    return int(number)


class Stretch(NamedTuple):
    """Heun steps from level to level; noise may raise the state before the first one."""

    levels: Levels  # n steps from levels.sigmas[0] to levels.sigmas[n]
    lift: float = 0.0  # standard deviation of the noise that raises a state to levels.sigmas[0]
    first_step: int = 0  # the index of its first step, for guidance


def restart_path(net, levels: Levels, restarts: Restarts) -> list[Stretch]:
    """The whole path: pieces of the main path, and between them the restarts, in the order in which they are walked.

    Levels within a restart are EDM's (rho 7) from t_max to the main level nearest to t_min. Raises ValueError if two
    intervals restart at the same level, if a restart would begin below its level, or if S_noise is 0.
    """
    if not levels.churn.S_noise:
        raise ValueError('S_noise is 0: restarts need noise')
    ends: dict[int, Interval] = {}
    for interval in restarts.intervals:
        index = int((levels.sigmas - interval.sigma_min).abs().argmin())
        low = levels.sigmas[index].item()
        if index in ends:
            raise ValueError(f'{list(ends[index])} and {list(interval)} both restart at level {low:.4g}; '
                             f'use more steps')
        if not 0 < low < interval.sigma_max or not index:
            raise ValueError(f'{list(interval)} has no level of the main path to restart from: '
                             f'the nearest to its t_min is {low:.4g}; use more steps')
        ends[index] = interval
    path, begin = [], 0
    for index in sorted(ends):
        path += [Stretch(part(levels, begin, index), first_step=begin)]
        path += [_restart(net, levels, index, ends[index], restarts.gamma)] * ends[index].repeats
        begin = index
    return path + [Stretch(part(levels, begin, levels.num_steps), first_step=begin)]


def part(levels: Levels, begin: int, end: int) -> Levels:
    """The steps `begin` to `end` - 1 of `levels`; the last level need not be 0."""
    return Levels(levels.sigmas[begin:end + 1], levels.raised[begin:end], levels.noise[begin:end], levels.churn)


def _restart(net, levels: Levels, index: int, interval: Interval, gamma: float) -> Stretch:
    """One walk from t_max back to the main path's level `index`."""
    low, churn = levels.sigmas[index].item(), levels.churn
    high = min(interval.sigma_max, float(net.sigma_max))
    sigmas = rounded(net, edm_steps(interval.num_levels, low, high))
    sigmas[-1] = low
    steps = interval.num_levels - 1
    inner = levels_from(net, sigmas[:-1], Churn(gamma * steps, churn.S_min, churn.S_max, churn.S_noise))
    inner = Levels(sigmas, inner.raised, inner.noise, inner.churn)
    return Stretch(inner, lift=churn.S_noise * math.sqrt(sigmas[0].item() ** 2 - low ** 2))


@torch.no_grad()
def restart_sampler(net, latents, class_labels=None, *, levels: Levels | None = None,
                    restarts: Restarts | None = None, randn_like=None, callback=None):
    """Images like those of `edm_sampler`, with restarts (Xu et al. 2023).

    restarts: by default the paper's shortest for CIFAR-10, '18; [3,2,0.06,0.30]', 43 evaluations. `levels` and their
    churn are those of the main path, by default `edm_levels(net)`. Boosted guidance doubles its weight in every other
    step, also within restarts, but renews no additional noise. Raises ValueError as `restart_path` does, and without
    `randn_like`.
    """
    denoise = as_denoiser(net)
    restarts = restarts or parse_restarts(PRESETS['cifar10-43'].text)
    levels = levels or edm_levels(net, restarts.num_steps or 18)
    path = restart_path(net, levels, restarts)
    randn_like = noise_source(randn_like, len(path) > 1 or bool(levels.noise.any()))
    x = latents.to(torch.float64) * levels.sigmas[0].item()
    return walk(denoise, x, class_labels, path, randn_like=randn_like, callback=callback)


def walk(denoise, x, class_labels, path: list[Stretch], *, randn_like, callback=None, before=None):
    """The state [N, C, H, W] after all stretches of a path, from x, float64, at the level of the first one.

    before(x, step, sigma) -> x: called before a stretch with its index in `path` and the noise level there.
    """
    total, done, sigma = sum(stretch.levels.num_steps for stretch in path), 0, path[0].levels.sigmas[0].item()
    for number, stretch in enumerate(path):
        levels = stretch.levels
        if before is not None:
            x = before(x, number, sigma)
        if stretch.lift:
            x = x + stretch.lift * randn_like(x)
        on_device = upload(torch.stack([levels.raised, levels.sigmas[1:]]), x.device)
        for i in range(levels.num_steps):
            if levels.noise[i] > 0:
                x = x + levels.noise[i].item() * randn_like(x)
            step, sigma = stretch.first_step + i, levels.sigmas[i + 1].item()
            second = At(levels.sigmas[i + 1:i + 2], second=True, step=step) if sigma else None
            x, denoised = heun_step(denoise, x, *on_device[:, i], class_labels, At(levels.raised[i:i + 1], step=step),
                                    second)
            if callback is not None:
                callback(Step(done, total, levels.sigmas[i].item(), sigma, x, denoised))
            done += 1
    return x
