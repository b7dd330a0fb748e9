"""Seeds in, samples out: what every sampler starts from, what it returns, and one way to run any of them."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import tqdm

from torch_utils.rng import StackedRandomGenerator

from .denoiser import Denoiser
from .padding import Padded

Progress = Callable[[float], None]  # progress(images): this many more images' worth of work is done; 0 only shows life
Stream = Callable[[Iterator[int], Progress], Iterator['Samples']]  # what generation/run.py runs


@dataclass(frozen=True)
class Samples:
    """Finished samples in the order of their seeds, and the costs of each."""

    images: torch.Tensor  # [n, C, H, W], about [-1, 1]
    labels: torch.Tensor | None = None  # [n, K] one-hot
    costs: dict[str, np.ndarray] = field(default_factory=dict)  # arrays [n, ...]; nfe, discriminator_calls, ...

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> 'Samples':
        labels = None if self.labels is None else self.labels[rows]
        return Samples(self.images[rows], labels, {name: array[rows] for name, array in self.costs.items()})

    def followed_by(self, other: 'Samples') -> 'Samples':
        """These samples, then the others."""
        return Samples.joined([self, other])

    @classmethod
    def joined(cls, pieces: Sequence['Samples']) -> 'Samples':
        """The samples of all pieces, in their order; each is copied once."""
        labels = None if pieces[0].labels is None else torch.cat([piece.labels for piece in pieces])
        return cls(torch.cat([piece.images for piece in pieces]), labels,
                   {name: np.concatenate([piece.costs[name] for piece in pieces]) for name in pieces[0].costs})


def draw_inputs(net, seeds: Sequence[int], device, class_idx: int | None = None):
    """What a batch starts from: (generators, latents [n, C, H, W] float32, one-hot labels [n, K] or None).

    device: of the generators and their draws; class_idx: one label for all, or None: drawn for each seed. As in EDM,
    each seed has a generator, which draws the latents first, then the label (also if `class_idx` fixes it, so that
    later noise is the same). Raises ValueError for a class that the network does not have.
    """
    check_class(net, class_idx)
    rnd = StackedRandomGenerator(device, seeds)
    size = net.img_resolution
    latents = rnd.randn([len(seeds), net.img_channels, size, size])
    if not net.label_dim:
        return rnd, latents, None
    index = rnd.randint(net.label_dim, size=[len(seeds)])
    if class_idx is not None:
        index = torch.full_like(index, class_idx)
    return rnd, latents, torch.eye(net.label_dim, device=index.device)[index]  # one_hot would wait for the device


def check_class(net, class_idx: int | None) -> None:
    """Raise ValueError for a class that `net` does not have."""
    if class_idx is None or class_idx < net.label_dim:
        return
    if not net.label_dim:
        raise ValueError('the network is unconditional; leave this option out')
    raise ValueError(f'{class_idx} is beyond the network\'s labels; use 0 to {net.label_dim - 1}')


def takes_seeds(sampler):
    """Mark a sampler that takes the next seed when it has room for it, and yields `Samples`.

    It is called as sampler(net, seeds, *, class_idx, guidance, batch, device, progress, **options); all others as
    sampler(net, latents, class_labels, *, randn_like, callback, **options), and return images or Samples.
    """
    sampler.takes_seeds = True
    return sampler


def stream(sampler, net, *, batch: int, device, class_idx: int | None = None, guidance=None, pad: bool = False,
           **options) -> Stream:
    """`sampler` as a function (iterator of seeds, progress) -> iterator of `Samples` in the order of the seeds.

    guidance: wraps the denoiser of each batch (`DiscriminatorGuidance`, or any callable denoiser -> denoiser).
    pad: fill up the last batch with copies of its last seed (or, if the sampler takes seeds, every call with copies of
    its last row), so that the networks see only one shape.
    """
    if getattr(sampler, 'takes_seeds', False):
        if pad:
            net = Padded(net, batch)
            options |= {name: Padded(options[name], batch) for name in options.keys() & {'log_ratio'}}
        return functools.partial(_run_by_seed, sampler, net, batch=batch, device=device, class_idx=class_idx,
                                 guidance=guidance, **options)

    def draw(seeds: Iterator[int], progress: Progress) -> Iterator[Samples]:
        while chosen := list(itertools.islice(seeds, batch)):
            count = len(chosen)
            rows = chosen + chosen[-1:] * (batch - count if pad else 0)
            rnd, latents, labels = draw_inputs(net, rows, device, class_idx)
            denoise = Denoiser(net, len(rows))
            result = sampler(denoise if guidance is None else guidance(denoise), latents, labels,
                             randn_like=rnd.randn_like, callback=_report_steps(progress, count), **options)
            samples = result if isinstance(result, Samples) else Samples(result, labels)
            yield Samples(samples.images, samples.labels, denoise.costs | samples.costs)[:count]

    return draw


def _report_steps(progress: Progress, count: int):
    """A sampler's callback that reports the steps of `count` images to `progress`."""
    return lambda step: progress(count / step.num_steps)


def _run_by_seed(sampler, net, seeds, progress, **options):
    return sampler(net, seeds, progress=progress, **options)


def sample(sampler, net, seeds: Sequence[int], *, class_idx: int | None = None, guidance=None, batch: int = 64,
           device=None, progress: bool = True, **options) -> Samples:
    """One sample per seed, in memory; a sample follows from its seed, for any batch size.

    sampler: `edm_sampler`, `diffrs_sampler` or any other, with its `options`; class_idx: one label for all samples, by
    default each seed draws its own; guidance: see `stream`; device: by default that of the network. `progress` shows
    a bar.
    """
    if device is None:
        device = next((p.device for p in net.parameters()), 'cpu') if hasattr(net, 'parameters') else 'cpu'
    draw = stream(sampler, net, batch=min(batch, len(seeds)), device=device, class_idx=class_idx, guidance=guidance,
                  **options)
    pieces, done = [], 0
    with bar(len(seeds), shown=progress) as advance:
        for piece in draw(iter(seeds), advance):
            pieces.append(piece)
            done += len(piece)
            advance(done, absolute=True)
    return Samples.joined(pieces)


@contextlib.contextmanager
def bar(total: int, desc: str = '', shown: bool = True):
    """A progress bar in a notebook or a terminal; yields what feeds it, a `Progress`."""
    with tqdm.tqdm(total=total, desc=desc, unit='img', disable=not shown, mininterval=0.5,
                   bar_format='{l_bar}{bar}| {n:.0f}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]') as shown_bar:
        def advance(images: float, absolute: bool = False) -> None:
            done = images if absolute else shown_bar.n + images
            shown_bar.update(min(done, total) - shown_bar.n)

        yield advance
