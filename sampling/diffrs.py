"""Diffusion rejection sampling (Na et al. 2024): the warm-up and the sampler."""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch

from . import diffrs_rules as rules
from .denoiser import Denoiser
from .diffrs_rules import RULES, Calibration, Rule, Thresholds
from .diffrs_slots import Rejection, SlotMachine
from .edm import edm_sampler
from .levels import Levels, edm_levels
from .samples import Progress, Samples, bar, check_class, draw_inputs, takes_seeds

WARMUP_SEED = 3_000_000_000  # first seed of the warm-up, far from the samples' seeds
WARMUP_ROUND = 100  # trajectories in one round of the warm-up, for any batch size


def warmup_seeds(rounds: int = 10) -> range:
    """The seeds of a warm-up of `rounds` rounds."""
    return range(WARMUP_SEED, WARMUP_SEED + WARMUP_ROUND * rounds)


@torch.no_grad()
def calibrate(net, log_ratio, seeds: Sequence[int] = warmup_seeds(), *, levels: Levels | None = None,
              class_idx: int | None = None, guidance=None, batch: int = 64, device='cpu',
              progress: Progress | None = None) -> Calibration:
    """The warm-up: log-ratios along EDM trajectories without rejections, one trajectory per seed.

    class_idx: the class of all trajectories, or None (each drawn from its seed); levels: by default
    `edm_levels(net)`; guidance as in `sample`; progress: see `sampling.samples.Progress`, by default a bar.
    """
    if not len(seeds):
        raise ValueError('a warm-up needs at least one trajectory')
    levels = levels or edm_levels(net)
    batches = []
    with bar(len(seeds), 'warm-up', shown=progress is None) as advance:
        for first in range(0, len(seeds), batch):
            rnd, latents, labels = draw_inputs(net, seeds[first:first + batch], device, class_idx)
            watch = _Watch(log_ratio, labels, progress or advance)
            watch.observe(latents.to(torch.float64) * levels.sigmas[0], levels.sigmas[0])
            denoise = Denoiser(net) if guidance is None else guidance(Denoiser(net))
            edm_sampler(denoise, latents, labels, levels=levels, randn_like=rnd.randn_like, callback=watch)
            batches.append(torch.stack(watch.rows).to(torch.float64))
    return Calibration(levels.sigmas.numpy(), torch.cat(batches, dim=1).cpu().numpy())


class _Watch:
    """A sampler's callback that records the log-ratios [N] at every level in `rows`."""

    def __init__(self, log_ratio, labels, progress: Progress):
        self.log_ratio, self.labels, self.progress, self.rows = log_ratio, labels, progress, []

    def observe(self, x, sigma: float) -> None:
        sigmas = torch.full([len(x)], float(sigma), dtype=torch.float64, device=x.device)
        self.rows.append(self.log_ratio(x, sigmas, self.labels))

    def __call__(self, step) -> None:
        self.observe(step.x, step.sigma_next)
        self.progress(len(step.x) / step.num_steps)


@takes_seeds
def diffrs_sampler(net, seeds: Iterable[int], *, log_ratio, thresholds: Calibration | Thresholds,
                   levels: Levels | None = None, class_idx: int | None = None, class_labels=None, guidance=None,
                   rej_percentile: float = 0.75, rule: str | Rule = 'published', backsteps: int = 1,
                   min_backsteps: int = 0, max_backsteps: int = 18, max_iter: float = math.inf, clamp: bool = True,
                   batch: int = 64, device='cpu', progress: Progress = lambda images: None) -> Iterator[Samples]:
    """One sample per seed by diffusion rejection sampling; yields them in the order of `seeds`.

    net(x, sigma, labels) denoises, log_ratio(x, sigma, labels) -> [N]. Sample k depends only on its seed (and label);
    `seeds` may be endless or lazy: the next seed is taken when a slot is free. thresholds: a warm-up
    (`calibrate`), from which `rej_percentile` and `clamp` (quantiles below 0 become 0) make thresholds, or thresholds.
    class_idx: one class for all; class_labels [n, K] in the order of `seeds`; by default each seed draws its own.

    States at levels min_backsteps < k <= max_backsteps are tested (and the prior if min_backsteps is 0); `backsteps`
    levels are taken back after a rejection (0: only the prior is tested; the exact rule always returns to the
    prior). A sample that would need more than `max_iter` evaluations starts again. costs: nfe (including those
    before a restart), discriminator_calls, cap_hits (restarts) [n]; tests and rejections by level [n, num_steps + 1].
    Raises ValueError for contradictory options, and HopelessSample.
    """
    rule = RULES[rule] if isinstance(rule, str) else rule
    levels = levels or edm_levels(net)
    rules.check_cap(max_iter, levels.num_steps)
    if guidance is not None and guidance(net).boosting is not None:
        raise ValueError('boosting needs rows that are all at the same step; leave it out with rejection')
    last_level = rules.last_level(levels.num_steps, backsteps, max_backsteps)
    if isinstance(thresholds, Calibration):
        thresholds.check(levels.sigmas.numpy())
        thresholds = rules.make_thresholds(thresholds, rej_percentile, rule, clamp=clamp, last_level=last_level)
    check_class(net, class_idx)
    if class_idx is not None:
        class_labels = torch.eye(net.label_dim)[class_idx][None]
    machine = SlotMachine(net, log_ratio, seeds, class_labels, levels=levels, guidance=guidance, batch_size=batch,
                          device=device, rejection=Rejection(rule, thresholds, last_level, backsteps=backsteps,
                                                             min_backsteps=min_backsteps, max_iter=max_iter))
    return machine.results(progress)
