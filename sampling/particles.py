"""Particles (Liu et al. 2024): groups of samples that a log-ratio resamples on the way, so that good ones multiply."""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator

import numpy as np
import torch

from torch_utils.transfer import upload

from .denoiser import Denoiser
from .edm import noise_source
from .levels import Churn, Levels, edm_levels, levels_from
from .restart import Restarts, Stretch, part, restart_path, walk
from .samples import Progress, Samples, check_class, draw_inputs, takes_seeds

DECISIONS = 0x9A27  # separates a group's stream of uniform draws from its samples' streams of noise
FINAL_SIGMA = 1e-4  # the noise level at which finished images are judged, as published


def multinomial(log_weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Indices [G, P] drawn with replacement in proportion to weights [G, P], from uniforms [G, P]; as published."""
    return _inverse(log_weights, uniforms)


def systematic(log_weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Indices [G, P] from one uniform per group: particle k gets P w_k copies, rounded down or up."""
    count = log_weights.shape[1]
    points = (torch.arange(count, device=uniforms.device) + uniforms[:, :1]) / count
    return _inverse(log_weights, points)


def _inverse(log_weights, points):
    """The first index at which the cumulative weights, normalised to end at 1, pass each point [G, P]."""
    cumulative = log_weights.softmax(1).cumsum(1)
    below_1 = points.contiguous().clamp(max=1 - 2 ** -53)  # rounding may have reached it
    return torch.searchsorted(cumulative / cumulative[:, -1:], below_1, right=True)


RESAMPLING: dict[str, Callable] = {'systematic': systematic, 'multinomial': multinomial}


class Groups:
    """The weights and ancestors of a batch of groups of P particles; weights are float64 on the device.

    After `finish`, exp(log_weight) averaged over all particles estimates E_model[ratio], which is 1, without bias, and
    the average of exp(log_weight) f(x) estimates E_data[f(x)].
    """

    def __init__(self, log_ratio, labels, seeds, size: int, resampling: Callable, threshold: float, device, costs):
        self.log_ratio, self.labels, self.size, self.resampling = log_ratio, labels, size, resampling
        self.threshold, self.device, self.costs = threshold, device, costs
        self.streams = [np.random.default_rng([DECISIONS, int(seed)]) for seed in seeds[::size]]
        shape = [len(self.streams), size]
        self.last = torch.zeros(shape, dtype=torch.float64, device=device)  # the log-ratio that is in the weights
        self.log_weight, self.log_mean = torch.zeros_like(self.last), torch.zeros_like(self.last[:, :1])
        self.ancestor = torch.arange(size, device=device).expand(shape)

    def weigh(self, x, sigma: float) -> None:
        """Multiply the weights by the change of the ratio since the last call; x [G P, C, H, W] has noise sigma."""
        self.costs.count('discriminator_calls', times=getattr(self.log_ratio, 'discriminator_calls', 1))
        level = torch.full([len(x)], sigma, dtype=torch.float64, device=x.device)
        value = self.log_ratio(x, level, self.labels).to(torch.float64).reshape(self.last.shape)
        self.log_weight, self.last = self.log_weight + value - self.last, value

    def resample(self, x, sigma: float) -> torch.Tensor:
        """x after resampling the groups with an effective sample size below threshold P; their weights become equal."""
        self.weigh(x, sigma)
        uniforms = upload(torch.from_numpy(np.stack([stream.random(self.size) for stream in self.streams])), x.device)
        index = self.resampling(self.log_weight, uniforms)  # [G, P]
        weights = self.log_weight.softmax(1)
        due = 1 / weights.square().sum(1, keepdim=True) < self.threshold * self.size  # [G, 1]
        index = torch.where(due, index, torch.arange(self.size, device=x.device))
        mean = self.log_weight.logsumexp(1, keepdim=True) - math.log(self.size)
        self.log_mean = self.log_mean + torch.where(due, mean, 0.0)
        self.log_weight = torch.where(due, 0.0, self.log_weight)
        self.last, self.ancestor = self.last.gather(1, index), self.ancestor.gather(1, index)
        first = self.size * torch.arange(len(index), device=x.device)[:, None]
        return x[(first + index).flatten()]

    def finish(self, x) -> dict[str, np.ndarray]:
        """What is saved of each particle [G P]: its log-ratio, log-weight and the index of its first ancestor."""
        self.weigh(x, FINAL_SIGMA)
        return dict(log_ratio=self.last.flatten().cpu().numpy(),
                    log_weight=(self.log_weight + self.log_mean).flatten().cpu().numpy(),
                    ancestor=self.ancestor.flatten().cpu().numpy())


def edm_path(net, levels: Levels, resample_at: Collection[int]) -> list[Stretch]:
    """EDM's path in stretches that begin at the steps `resample_at`; these renew as much noise as churn can.

    gamma = sqrt(2) - 1 in those steps (Liu et al. 2024), so that copies diverge. Raises ValueError for a step that does
    not exist, or at a level outside S_min to S_max, where no noise would be added and copies would stay equal.
    """
    steps = sorted(set(resample_at))
    if steps and not 0 <= steps[0] <= steps[-1] < levels.num_steps:
        raise ValueError(f'steps to resample at are 0 to {levels.num_steps - 1}, not {steps}')
    churn = levels.churn
    most = levels_from(net, levels.sigmas[:-1], Churn(math.inf, churn.S_min, churn.S_max, churn.S_noise))
    still = [step for step in steps if not most.noise[step] > 0]
    if still:
        raise ValueError(f'step {still[0]}, at noise level {levels.sigmas[still[0]]:.4g}, adds no noise, so copies '
                         f'would stay equal; S_min to S_max must contain the level, and S_noise must not be 0')
    raised, noise = levels.raised.clone(), levels.noise.clone()
    raised[steps], noise[steps] = most.raised[steps], most.noise[steps]
    levels = Levels(levels.sigmas, raised, noise, churn)
    ends = sorted({0, *steps})
    return [Stretch(part(levels, begin, end), first_step=begin)
            for begin, end in zip(ends, [*ends[1:], levels.num_steps], strict=True)]


@takes_seeds
def particle_sampler(net, seeds: Iterable[int], *, log_ratio, num_particles: int = 4, levels: Levels | None = None,
                     resample_at: Collection[int] = (), restarts: Restarts | None = None,
                     resampling: str | Callable | None = 'systematic', threshold: float = math.inf,
                     select: bool = False, class_idx: int | None = None, guidance=None, batch: int = 64, device='cpu',
                     progress: Progress = lambda images: None) -> Iterator[Samples]:
    """Samples in groups of `num_particles` consecutive seeds, resampled by the increments of log_ratio.

    log_ratio(x, sigma, class_labels) -> [N]. With `restarts` groups are resampled at every restart, before its noise
    is added; without them before the steps `resample_at` of EDM's sampler. A group has one label, that of its first
    seed, which also keys its draws. resampling: one of RESAMPLING, or a function of (log-weights, uniforms) [G, P] that
    returns indices [G, P], or None: never; threshold: a group is resampled if its effective sample size is below this
    part of num_particles, by default always.

    select: one sample per seed; that of seed k has the largest final log-ratio in the group of the seeds k P to
    k P + P - 1, and its costs are those of the group. costs: nfe, discriminator_calls, ancestor (the particle's
    place at the prior), log_ratio and log_weight (see `Groups`). Raises ValueError if `batch` (unless `select`) or
    the number of seeds is not a multiple of num_particles, and as `edm_path` and `restart_path` do.
    """
    resampling = RESAMPLING[resampling] if isinstance(resampling, str) else resampling
    levels = levels or edm_levels(net, (restarts.num_steps if restarts else None) or 18)
    check_class(net, class_idx)
    groups = max(1, batch // num_particles)
    if not select and batch != groups * num_particles:
        raise ValueError(f'{batch} samples at a time are not whole groups of {num_particles}; use a multiple')
    if restarts is not None and resample_at:
        raise ValueError('particles are resampled at the restarts or at the steps of resample_at, not at both')
    path = edm_path(net, levels, resample_at) if restarts is None else restart_path(net, levels, restarts)
    due = {k for k, stretch in enumerate(path) if resampling
           and (stretch.lift or restarts is None and stretch.first_step in resample_at)}

    def draw(seeds: list[int]) -> Samples:
        rnd, latents, labels = draw_inputs(net, seeds, device, class_idx)
        if labels is not None:
            labels = labels[::num_particles].repeat_interleave(num_particles, 0)
        denoise = Denoiser(net, len(seeds))
        denoise = denoise if guidance is None else guidance(denoise)
        group = Groups(log_ratio, labels, seeds, num_particles, resampling, threshold, latents.device, denoise.costs)
        kept = len(seeds) / (num_particles if select else 1)
        randn_like = noise_source(rnd.randn_like, True)
        images = walk(denoise, latents.to(torch.float64) * levels.sigmas[0].item(), labels, path,
                      randn_like=randn_like, callback=lambda step: progress(kept / step.num_steps),
                      before=lambda x, k, sigma: group.resample(x, sigma) if k in due else x)
        found = group.finish(images)
        samples = Samples(images, labels, denoise.costs | found)
        return best(samples, num_particles) if select else samples

    return _in_groups(seeds, draw, groups, num_particles, select)


def _in_groups(seeds: Iterable[int], draw, groups: int, size: int, select: bool) -> Iterator[Samples]:
    """Feed `draw` whole groups of seeds."""
    seeds = iter(seeds)
    while chosen := list(itertools.islice(seeds, groups * (1 if select else size))):
        if select:
            chosen = [seed * size + k for seed in chosen for k in range(size)]
        elif len(chosen) % size:
            raise ValueError(f'{len(chosen) % size} seeds are left over from groups of {size}; use a multiple')
        with torch.no_grad():
            samples = draw(chosen)
        yield samples


def best(samples: Samples, size: int) -> Samples:
    """The sample with the largest log-ratio of each group of `size`, with the evaluations of the whole group."""
    log_ratio = samples.costs['log_ratio'].reshape(-1, size)
    rows = torch.from_numpy(log_ratio.argmax(1) + size * np.arange(len(log_ratio)))
    costs = {name: values[rows.numpy()] for name, values in samples.costs.items()}
    costs |= {name: values.reshape(-1, size).sum(1) for name, values in samples.costs.items()
              if name == 'nfe' or name.endswith('_calls')}
    rows = rows.to(samples.images.device)
    return Samples(samples.images[rows], None if samples.labels is None else samples.labels[rows], costs)
