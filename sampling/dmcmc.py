"""Denoising MCMC (Kim and Ye, ICML 2023): a chain over (x, sigma), whose states an integrator denoises.

The chain's target is the joint density of noisy images and noise levels, p(x, sigma) = p(sigma) p(x; sigma), p(sigma)
uniform over the levels of the noise-level model. A step is Langevin's in x, then a new level given x. All of it in
units of images in [-1, 1]; the published code works on [0, 1], where a step size eta is a quarter of the one here and a
level half of it.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from .denoiser import At, Denoiser, per_row
from .integrators import kar2
from .samples import Progress, Samples, draw_inputs, takes_seeds

GROWTH = 10  # states whose root mean square is this many times the largest level, or more, have diverged
FEATURES = 2  # the diagnostics read the mean colours of this many by as many parts of an image


class State(NamedTuple):
    """A chain for each row: where it is, and where it was least noisy since its last output."""

    x: torch.Tensor  # [N, C, H, W] float64
    sigma: torch.Tensor  # [N] float64, on the device of x
    x_best: torch.Tensor
    sigma_best: torch.Tensor


class Diverged(ArithmeticError):
    """A chain's state has become NaN or much larger than any noise; the message names the step."""


class NoiseLevel:
    """p(sigma | x) as a chain draws from it.

    logits(x) -> [N, K] of the levels `sigmas` [K], float64. choice: 'sample' draws a level, which is the Gibbs step of
    the paper; 'argmax' takes the likeliest one, which is what was published. device: that of the states.
    """

    def __init__(self, logits: Callable[[torch.Tensor], torch.Tensor], sigmas: torch.Tensor, choice: str = 'sample',
                 device='cpu'):
        if choice not in ('sample', 'argmax'):
            raise ValueError(f'{choice!r} is not a way to choose a noise level; use sample or argmax')
        self.logits, self.choice = logits, choice
        self.sigmas = sigmas.to('cpu', torch.float64)
        self.on_device = self.sigmas.to(device)

    def __call__(self, x: torch.Tensor, rand: Callable) -> torch.Tensor:
        """New levels [N], float64, for x [N, ...]; rand([N, 1], dtype=...) draws uniforms, if any are needed."""
        logits = self.logits(x)
        if self.choice == 'argmax':
            return self.on_device[logits.argmax(1)]
        below = logits.to(torch.float64).softmax(1).cumsum(1)
        u = rand([len(x), 1], dtype=torch.float64) * below[:, -1:]
        return self.on_device[(below <= u).sum(1).clamp(max=len(self.sigmas) - 1)]


def init(x: torch.Tensor, sigma: torch.Tensor) -> State:
    """The state of chains that start from x [N, C, H, W] with noise levels sigma [N], both float64."""
    x = x.contiguous()  # sums over another layout would round otherwise, and one read from a file has this one
    return State(x, sigma, x, sigma)


def restart(state: State) -> State:
    """The same chains after an output: the present state is the least noisy one so far."""
    return init(state.x, state.sigma)


@torch.no_grad()
def step(rng, state: State, denoise, noise_level: NoiseLevel, eta: float, class_labels=None) -> State:
    """One step of the chains: x <- x + eta/2 score(x, sigma) + sqrt(eta) z, then a level given x.

    rng: a StackedRandomGenerator with a generator per chain. score = (denoise(x, sigma) - x) / sigma^2.
    """
    x, sigma = state.x, state.sigma
    denoised = denoise(x, sigma, class_labels, at=At(noise_level.sigmas, either=True))
    x = x + per_row(0.5 * eta / sigma**2, x) * (denoised - x) + math.sqrt(eta) * rng.randn_like(x)
    sigma = noise_level(x, rng.rand)
    better = sigma < state.sigma_best
    return State(x, sigma, torch.where(per_row(better, x), x, state.x_best),
                 torch.where(better, sigma, state.sigma_best))


@torch.no_grad()
def denoised(state: State, denoise, integrator, tweedie: float, class_labels=None, randn_like=None, callback=None):
    """Images [N, C, H, W] from the least noisy states: by `integrator` from their levels, then the mean given sigma.

    integrator: one of `sampling.integrators` with its options; tweedie: the level that is taken to be left at its end
    (Tweedie's formula, one more evaluation). Reading the levels is the only time that the host waits.
    """
    x = integrator(denoise, state.x_best, state.sigma_best.cpu(), class_labels, randn_like=randn_like,
                   callback=callback)
    left = torch.full([len(x)], tweedie, dtype=torch.float64, device=x.device)  # the shape of all other levels
    return denoise(x, left, class_labels, at=At(torch.full([1], tweedie, dtype=torch.float64)))


@dataclass(frozen=True)
class Start:
    """How chains begin: an image by KAR2 from pure noise, some noise on it, then steps of two sizes without output."""

    sigma_max: float  # level of the pure noise
    sigma_min: float  # KAR2's last level above 0
    kar2_steps: int = 19
    noise: float = 1.0  # standard deviation of the noise on the image
    n_init: int = 10  # steps of size eta_init
    eta_init: float = 2.0
    n_burn: int = 10  # and then of the chain's own size

    @property
    def nfe(self) -> int:
        """Evaluations of the score network per chain."""
        return 2 * self.kar2_steps - 1 + self.n_init + self.n_burn


class Chains:
    """A group of chains that always runs together; `seeds` are their numbers."""

    def __init__(self, net, seeds, noise_level: NoiseLevel, eta: float, class_idx=None, guidance=None, device='cpu'):
        self.net, self.guidance, self.noise_level, self.eta, self.seeds = net, guidance, noise_level, eta, seeds
        self.rng, self.latents, self.labels = draw_inputs(net, seeds, device, class_idx)
        self.state: State | None = None
        self.rounds = 0  # outputs so far

    def denoiser(self) -> Denoiser:
        """A denoiser with new counts, guided if there is guidance."""
        plain = Denoiser(self.net, len(self.seeds))
        return plain if self.guidance is None else self.guidance(plain)

    def start(self, how: Start, progress: Progress = lambda images: None) -> None:
        """The first state."""
        denoise = self.denoiser()
        x = kar2(denoise, self.latents.to(torch.float64) * how.sigma_max,
                 torch.full([len(self.seeds)], how.sigma_max, dtype=torch.float64), self.labels,
                 sigma_min=how.sigma_min, num_steps=how.kar2_steps, randn_like=self.rng.randn_like,
                 callback=lambda step: progress(0))
        x = x + how.noise * self.rng.randn_like(x)
        self.state = init(x, self.noise_level(x, self.rng.rand))
        self._walk(denoise, how.n_init, how.eta_init, progress)
        self._walk(denoise, how.n_burn, self.eta, progress)
        self.state = restart(self.state)

    def _walk(self, denoise, count: int, eta: float, progress: Progress, images: float = 0) -> None:
        """This many steps. Raises Diverged."""
        sizes = []
        for _ in range(count):
            self.state = step(self.rng, self.state, denoise, self.noise_level, eta, self.labels)
            sizes.append(self.state.x.square().flatten(1).mean(1).max())  # read once, at the end
            progress(images)
        limit = (GROWTH * (1 + self.noise_level.sigmas.max().item()))**2
        wrong = [i for i, size in enumerate(torch.stack(sizes).tolist() if sizes else []) if not size < limit]
        if wrong:
            raise Diverged(f'step {wrong[0] + 1} of {count} after output {self.rounds} of chains {self.seeds[0]} to '
                           f'{self.seeds[-1]} diverged with eta {eta:g}')

    def output(self, n_skip: int, integrator, tweedie: float, progress: Progress = lambda images: None) -> Samples:
        """The next output of each chain, with what it cost and the level that it was denoised from."""
        denoise, share = self.denoiser(), len(self.seeds) / 2  # half of the work each, as the bar sees it
        self._walk(denoise, n_skip, self.eta, progress, share / max(n_skip, 1))
        images = denoised(self.state, denoise, integrator, tweedie, self.labels, self.rng.randn_like,
                          callback=lambda step: progress(share / step.num_steps))
        level = self.state.sigma_best[:, None] < self.noise_level.on_device * (1 - 1e-9)
        self.state, self.rounds = restart(self.state), self.rounds + 1
        means = F.adaptive_avg_pool2d(images.contiguous(), FEATURES).flatten(1).to(torch.float32)
        return Samples(images, self.labels, denoise.costs | dict(start_level=level.sum(1), chain_features=means))

    def saved(self) -> dict:
        """What continues the chains, arrays with a row per chain."""
        return dict(x=self.state.x, sigma=self.state.sigma, generators=self.rng.states(),
                    rounds=np.full(len(self.seeds), self.rounds))

    def restore(self, saved: dict) -> None:
        """Continue from what `saved` gave. Raises ValueError for something else."""
        x, sigma = (torch.as_tensor(saved[name]).to(self.latents.device) for name in ('x', 'sigma'))
        if x.shape != self.latents.shape or sigma.shape != x.shape[:1] or not (saved['rounds'] >= 0).all():
            raise ValueError(f'the saved state of chains {self.seeds[0]} to {self.seeds[-1]} is of another run')
        self.rng.set_states(saved['generators'])
        self.state, self.rounds = init(x, sigma), int(saved['rounds'][0])


@takes_seeds
def dmcmc_sampler(net, seeds: Iterable[int], *, noise_level: NoiseLevel, chains: int, integrator, tweedie: float,
                  start: Start, eta: float, n_skip: int, class_idx: int | None = None, guidance=None, batch: int = 64,
                  device='cpu', progress: Progress = lambda images: None, find_state=None,
                  keep_state: bool = False) -> Iterator[Samples]:
    """Samples by denoising MCMC: sample k is output k div `chains` of chain k mod `chains`, and chain c has seed c.

    `batch` chains run together and yield together; `seeds` come in whole groups of them, the last may be cut. Costs:
    nfe, discriminator_calls, start_level (index into noise_level.sigmas), chain_features. find_state(first chain) ->
    a state that an earlier run left (`Chains.saved`), or None; keep_state: hand out such states with full groups, as
    costs with names state_*. Raises ValueError if batch does not divide chains, and Diverged.
    """
    if chains % batch:
        raise ValueError(f'{chains} chains are not a multiple of {batch} that run together')
    groups: dict[int, Chains] = {}
    seeds = iter(seeds)
    while chosen := list(itertools.islice(seeds, batch)):
        wanted, first = divmod(chosen[0], chains)
        if first % batch or chosen != list(range(chosen[0], chosen[0] + len(chosen))):
            raise ValueError(f'samples {chosen[0]} to {chosen[-1]} are not {batch} that belong together')
        group = groups.get(first)
        if group is None or group.rounds > wanted:
            group = groups[first] = Chains(net, range(first, first + batch), noise_level, eta, class_idx, guidance,
                                           device)
            found = None if find_state is None else find_state(first)
            if found is not None and (found['rounds'] <= wanted).all():
                group.restore(found)
            else:
                group.start(start, progress)
        while group.rounds < wanted:  # outputs that are there, but not what follows from them
            group.output(n_skip, integrator, tweedie, lambda images: progress(0))
        samples = group.output(n_skip, integrator, tweedie, progress)
        state = {f'state_{name}': value for name, value in group.saved().items()} if keep_state else {}
        yield Samples(samples.images, samples.labels, samples.costs | state)[:len(chosen)]
