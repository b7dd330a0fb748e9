"""Diffusion rejection sampling (Na et al. 2024): the noise levels, the warm-up, the sampler."""

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from diffusion.schedules import clamp_range, edm_steps

from . import diffrs_rules as rules
from .diffrs_rules import RULES, Calibration, Rule, Thresholds
from .diffrs_slots import DiffRSResult, Grid, Rejection, SlotMachine
from .edm import added_noise, churned_steps, edm_sampler, rounded_steps
from .inputs import draw_inputs

WARMUP_SEED = 3_000_000_000  # first seed of the warm-up, out of the way of the samples' seeds
WARMUP_ROUND = 100  # trajectories in one round of the warm-up, whatever the batch size


def make_grid(net, num_steps=18, sigma_min=0.002, sigma_max=80, rho=7, S_churn=0, S_min=0, S_max=float('inf'),
              S_noise=1) -> Grid:
    """EDM's noise levels and churn (Karras et al. 2022, algorithm 2). Raises ValueError."""
    low, high = clamp_range(net, sigma_min, sigma_max)
    levels = rounded_steps(net, edm_steps(num_steps, low, high, rho))
    raised = churned_steps(net, levels, S_churn, S_min, S_max)
    noise = S_noise * added_noise(levels, raised)
    return Grid(np.append(levels.numpy(), 0.0), raised.numpy(), noise.numpy())


@torch.no_grad()
def calibrate(net, log_ratio, seeds: Iterable[int] | None = None, class_labels=None, *, batch_size: int = 64,
              device='cpu', guidance=None, progress=None, **schedule) -> Calibration:
    """The warm-up: log-ratios along EDM trajectories on which nothing is rejected, one for each seed.

    Defaults: 10 rounds of `WARMUP_ROUND` seeds from `WARMUP_SEED` on. class_labels [1, K] for all trajectories or
    None (each drawn from its seed); `schedule` as in `make_grid`; progress(n) is called after each step, n being the
    number of trajectories that ended with it.
    """
    seeds = list(range(WARMUP_SEED, WARMUP_SEED + 10 * WARMUP_ROUND) if seeds is None else seeds)
    if not seeds:
        raise ValueError('a warm-up without trajectories gives no thresholds')
    grid = make_grid(net, **schedule)
    batches = []
    for first in range(0, len(seeds), batch_size):
        batch = seeds[first:first + batch_size]
        rnd, latents, labels = draw_inputs(net, batch, device)
        if class_labels is not None:
            labels = class_labels.expand(len(batch), -1).to(device)
        watch = _Watch(log_ratio, labels, progress)
        watch.observe(latents.to(torch.float64) * grid.t_steps[0], grid.t_steps[0])
        edm_sampler(net, latents, labels, randn_like=rnd.randn_like, guidance=guidance, **schedule, callback=watch)
        batches.append(torch.stack(watch.rows).to(torch.float64))
    return Calibration(grid.t_steps, torch.cat(batches, dim=1).cpu().numpy())


class _Watch:
    """A sampler's callback that notes the log-ratios [N] at every level, in `rows`."""

    def __init__(self, log_ratio, labels, progress):
        self.log_ratio, self.labels, self.progress, self.rows = log_ratio, labels, progress, []

    def observe(self, x, sigma: float) -> None:
        levels = torch.full([len(x)], sigma, dtype=torch.float64, device=x.device)
        self.rows.append(self.log_ratio(x, levels, self.labels))

    def __call__(self, step) -> None:
        self.observe(step.x, step.sigma_next)
        if self.progress is not None:
            self.progress(len(step.x) if step.index == step.num_steps - 1 else 0)


def diffrs_sampler(net, log_ratio, seeds: Iterable[int], class_labels=None, *, batch_size: int = 64, device='cpu',
                   rej_percentile: float = 0.75, rule: str | Rule = 'published', backsteps: int = 1,
                   min_backsteps: int = 0, max_backsteps: int = 18, iter_warmup: int = 10, max_iter: float = math.inf,
                   clamp: bool = True, thresholds: Thresholds | Calibration | None = None, guidance=None,
                   progress: Callable[[], object] | None = None, **schedule) -> Iterator[DiffRSResult]:
    """Draw one sample per seed by diffusion rejection sampling; yields results in the order of `seeds`.

    net(x, sigma, labels) denoises, log_ratio(x, sigma, labels) -> [N]. Sample k depends on its seed (and label)
    alone; `seeds` may be an endless or lazy iterable, from which the next seed is taken when a slot is free.
    class_labels [n, K] in the order of `seeds`, [1, K] for all, or None: drawn from each seed where the network
    has labels. States at levels min_backsteps < k <= max_backsteps are tested (and the prior where min_backsteps
    is 0); `backsteps` levels are taken back after a rejection (0: only the prior is tested; the exact rule goes
    back to the prior always). A sample that would need more than `max_iter` evaluations begins anew. Without
    `thresholds`, `calibrate` makes them in `iter_warmup` rounds; `clamp` raises those below 0 to 0. progress() is
    called after each evaluation of a network. `schedule` as in `make_grid`.
    Raises ValueError for options that contradict each other, and HopelessSample.
    """
    rule = RULES[rule] if isinstance(rule, str) else rule
    grid = make_grid(net, **schedule)
    rules.check_cap(max_iter, grid.num_steps)
    if guidance is not None and guidance.boosting:
        raise ValueError('boosting belongs to a batch whose rows are at the same step; leave it out with rejection')
    if thresholds is None:
        warmup = range(WARMUP_SEED, WARMUP_SEED + WARMUP_ROUND * iter_warmup)
        label = class_labels if class_labels is not None and len(class_labels) == 1 else None
        thresholds = calibrate(net, log_ratio, warmup, label, batch_size=batch_size, device=device,
                               guidance=guidance, **schedule)
    last_level = rules.last_level(grid.num_steps, backsteps, max_backsteps)
    if isinstance(thresholds, Calibration):
        thresholds.check(grid.t_steps)
        thresholds = rules.thresholds(thresholds, rej_percentile, rule, clamp=clamp, last_level=last_level)
    machine = SlotMachine(net, log_ratio, seeds, class_labels, grid=grid, guidance=guidance, batch_size=batch_size,
                          device=device, rejection=Rejection(rule, thresholds, last_level, backsteps=backsteps,
                                                             min_backsteps=min_backsteps, max_iter=max_iter))
    return machine.results(progress or (lambda: None))
