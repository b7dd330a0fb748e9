"""Speed of sampling: score network, discriminator, discriminator guidance, rejection sampling; growth of the cost."""

import contextlib
import copy
import tempfile
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import click
import numpy as np
import torch

import networks
from dnnlib.cli import IntList, blame
from sampling.diffrs import WARMUP_SEED, Calibration, calibrate, diffrs_sampler
from sampling.edm import edm_sampler
from sampling.guidance import DiscriminatorGuidance
from sampling.levels import edm_levels
from sampling.padding import Padded
from torch_utils.compiler import count_flops
from torch_utils.device import PRECISIONS, select_device, select_precision

from .common import Timing, interleave, machine, matrix_peak, print_table, synchronize
from .modes import Mode, Part, call_network, load_modes, network_files, noise
from .reference_client import NEEDED, Reference, find_checkouts

BATCHES = dict(score=[1, 8, 32], discriminator=[1, 8, 32], dg=[8], diffrs=[8], growth=[1, 4, 16, 64, 256])
CALLED_IMAGES = 16  # images per timing of a network on a CPU
CUDA_CALLS = 20  # calls per timing on a GPU, which runs behind the host
PUBLISHED = 'published'  # with PyTorch's defaults: float32, on a GPU with convolutions in TF32
GROWTH_STEPS = (9, 18, 36)
WARM_STEPS = 3  # of a short run before the clock starts


class CommaList(click.ParamType):
    """Comma-separated names out of `known`."""

    name = 'LIST'

    def __init__(self, known):
        self.known = known

    def convert(self, value, param, ctx):
        names = value if isinstance(value, list) else value.split(',')
        for name in names:
            if name not in self.known:
                self.fail(f'{name!r} is not one of {", ".join(self.known)}', param, ctx)
        return list(dict.fromkeys(names))


@dataclass(frozen=True)
class Setup:
    """The settings of all benchmarks."""

    modes: dict[str, Mode]
    files: dict[str, Path]
    device: torch.device
    rounds: int
    steps: int
    percentile: float
    images: int | None  # accepted by DiffRS in one round; None: two batches
    reference: dict[str, list[str]] | None  # paths of the published code by benchmark
    plain: Mode  # float32, with the operations of the published code

    def published(self, what: str):
        """A context with the published code for one of the benchmarks, or None."""
        if self.reference is None:
            return contextlib.nullcontext()
        return Reference(self.reference[what], self.files, self.device)

    def watched(self, mode: Mode, batch: int, timed: bool) -> list[Part]:
        """Score network and log-ratio as scripts call them, with full batches, and timed for the benchmark."""
        return [Part(Padded(part, batch), self.device, timed) for part in (mode.net, mode.log_ratio)]

    def show(self, title: str, timings: dict[str, Timing]) -> None:
        """Print the table, with shares of the matrix rate of each row's precision."""
        dtypes = {name: mode.dtype for name, mode in self.modes.items()} | {PUBLISHED: torch.float32}
        peaks = {}
        for name in timings:
            select_precision(self.modes[name].precision if name in self.modes else 'tf32', self.device)
            peaks[name] = matrix_peak(self.device, dtypes.get(name, torch.float32))
        print_table(title, timings, peaks, PUBLISHED)


def called(device, batch: int) -> int:
    """Number of calls for one timing of a network."""
    return CUDA_CALLS if device.type == 'cuda' else max(1, CALLED_IMAGES // batch)


def time_calls(setup: Setup, what: str, work: str, functions: dict, batch: int, flops, reference) -> None:
    """Time one network at one batch size. `functions`: mode -> function of (images, sigma); `flops`: of a mode."""
    calls = called(setup.device, batch)
    jobs = {name: (lambda mode=setup.modes[name], evaluate=evaluate: call_network(
        evaluate, mode.net, mode.precision, batch, calls, setup.device), flops(setup.modes[name]))
        for name, evaluate in functions.items()}
    if reference:
        jobs[PUBLISHED] = (lambda: reference.run(work, batch=batch, calls=calls)['images'], flops(setup.plain))
    timings = interleave(jobs, setup.device, setup.rounds)
    setup.show(f'{what}, batch {batch}', timings)


def bench_score(setup: Setup, batch: int, reference: Reference | None) -> None:
    """Forward passes of the score network."""
    time_calls(setup, 'Score network, forward', 'score', {name: mode.net for name, mode in setup.modes.items()}, batch,
               lambda mode: mode.net_flops, reference)


def bench_discriminator(setup: Setup, batch: int, reference: Reference | None) -> None:
    """The log-ratio (classifier and discriminator), and its gradient with respect to the images.

    On a CPU the scripts do not compile it; the compiled row shows why.
    """
    modes = {name: mode.log_ratio for name, mode in setup.modes.items()}
    for name in modes:
        if name.endswith('compiled') and setup.device.type == 'cpu':
            modes[name] = copy.copy(modes[name])
            modes[name].compile()
    time_calls(setup, 'Discriminator, forward', 'log_ratio', {name: part.value for name, part in modes.items()}, batch,
               lambda mode: mode.log_ratio_flops, reference)
    time_calls(setup, 'Discriminator, gradient', 'gradient',
               {name: part.value_and_grad for name, part in modes.items()}, batch,
               lambda mode: 2 * mode.log_ratio_flops, reference)  # a frozen network's backward pass costs as much


def parts_of(setup: Setup, mode: Mode, batch: int, work, gradient: bool) -> tuple[dict[str, float], float, float]:
    """Shares of time by part, operations per image, and published ones, of a run of work(net, log_ratio) -> images."""
    select_precision(mode.precision, setup.device)
    net, log_ratio = setup.watched(mode, batch, timed=True)
    synchronize(setup.device)
    started = time.perf_counter()
    images = work(net, log_ratio)
    synchronize(setup.device)
    seconds = time.perf_counter() - started
    shares = {'score network': net.seconds / seconds, 'discriminator': log_ratio.seconds / seconds}
    flops = [(net.rows * kind.net_flops + log_ratio.rows * kind.log_ratio_flops * (2 if gradient else 1)) / images
             for kind in (mode, setup.plain)]
    return shares | {'host': 1 - sum(shares.values())}, *flops


def time_sampler(setup: Setup, title: str, batch: int, work, published, gradient: bool = False) -> None:
    """Time a sampler work(net, log_ratio) -> images, with the shares of its parts.

    `published()` -> images, or None. The networks must have seen this batch size before. Sampling calls the log-ratio
    for its value or, with `gradient`, also for its gradient.
    """
    def job(mode):
        select_precision(mode.precision, setup.device)
        return work(*setup.watched(mode, batch, timed=False))

    taken_apart = {name: parts_of(setup, mode, batch, work, gradient) for name, mode in setup.modes.items()}
    jobs = {name: (lambda mode=mode: job(mode), taken_apart[name][1]) for name, mode in setup.modes.items()}
    if published:
        jobs[PUBLISHED] = (published, next(iter(taken_apart.values()))[2])
    timings = interleave(jobs, setup.device, setup.rounds, warm=False)
    for name, (shares, *_) in taken_apart.items():
        timings[name].parts = shares
    setup.show(title, timings)


def guided_sampler(net, log_ratio, device, batch: int, steps: int) -> int:
    """Draw one batch by EDM's sampler with DG's default guidance; returns the number of images."""
    guided = DiscriminatorGuidance(log_ratio)(net)
    edm_sampler(guided, noise(net, batch, device), levels=edm_levels(net, steps))
    return batch


def bench_dg(setup: Setup, batch: int, reference: Reference | None) -> None:
    """Discriminator guidance, per image."""
    def draw(net, log_ratio):
        return guided_sampler(net, log_ratio, setup.device, batch, setup.steps)

    def published():
        return reference.run('dg', batch=batch, steps=setup.steps)['images']

    for mode in setup.modes.values():
        guided_sampler(*setup.watched(mode, batch, timed=False), setup.device, batch, WARM_STEPS)
    if reference:
        reference.run('dg', batch=batch, steps=WARM_STEPS)
    time_sampler(setup, f'DG, {setup.steps} steps, batch {batch}', batch, draw, reference and published, gradient=True)


class RejectionSampler:
    """DiffRS as a steady stream: endless seeds, so that every batch is full, until the first `images` are finished.

    Unfinished samples count by the evaluations spent on them: the images of a run are the rows that the score network
    saw, divided by the evaluations per image. These are measured on the first `images` seeds, for all of which the run
    waits, and used for the published loop too, which itself counts the images that end first: the quick ones.
    """

    def __init__(self, setup: Setup, batch: int, calibration: Calibration):
        self.setup, self.batch, self.calibration = setup, batch, calibration
        self.images = setup.images or 2 * batch
        self.nfe = self.published_nfe = 0.0  # evaluations per image of both runs

    def ours(self, net, log_ratio) -> float:
        """One run; returns the images it is worth."""
        done, nfe = 0, []
        results = diffrs_sampler(net, count(), log_ratio=log_ratio, batch=self.batch, device=self.setup.device,
                                 rej_percentile=self.setup.percentile, thresholds=self.calibration,
                                 levels=edm_levels(net, self.setup.steps))
        for result in results:
            nfe.append(result.costs['nfe'])
            done += len(result)
            if done >= self.images:
                break
        results.close()
        self.nfe = float(np.concatenate(nfe)[:self.images].mean())
        return net.rows / self.nfe

    def published(self, reference: Reference) -> float:
        """One run of the published loop; returns the images it is worth."""
        answer = reference.run('diffrs', batch=self.batch, steps=self.setup.steps, images=self.images,
                               rej_percentile=self.setup.percentile, log_ratio=self.calibration.log_ratio.tolist())
        self.published_nfe = answer['nfe']
        return answer['rows'] / self.nfe


def bench_diffrs(setup: Setup, batch: int, reference: Reference | None) -> None:
    """Diffusion rejection sampling: the warm-up per batch, and the main loop per accepted image."""
    def warm_up(net, log_ratio, batches=1, steps=setup.steps):
        seeds = range(WARMUP_SEED, WARMUP_SEED + batches * batch)
        return calibrate(net, log_ratio, seeds, batch=batch, device=setup.device, levels=edm_levels(net, steps),
                         progress=lambda images: None)

    def published_warm_up():
        return reference.run('warmup', batch=batch, steps=setup.steps)['images']

    for mode in setup.modes.values():
        warm_up(*setup.watched(mode, batch, timed=False), steps=WARM_STEPS)
    if reference:
        reference.run('warmup', batch=batch, steps=WARM_STEPS)
    time_sampler(setup, f'DiffRS, warm-up of one batch of {batch}, {setup.steps} steps', batch,
                 lambda net, log_ratio: warm_up(net, log_ratio).log_ratio.shape[1], reference and published_warm_up)

    mode = list(setup.modes.values())[-1]
    run = RejectionSampler(setup, batch, warm_up(*setup.watched(mode, batch, timed=False), batches=4))
    time_sampler(setup, f'DiffRS, per accepted image, {setup.steps} steps, batch {batch}, '
                 f'percentile {setup.percentile}', batch, run.ours, reference and (lambda: run.published(reference)))
    click.echo(f'\n{run.nfe:.1f} evaluations per accepted image'
               + (f'; {run.published_nfe:.1f} per image that the published loop finished' if reference else ''))


def bench_growth(setup: Setup, batches: list[int]) -> None:
    """Growth of the cost with batch size, resolution and number of steps, in the last mode."""
    name, mode = list(setup.modes.items())[-1]
    device, batch = setup.device, min(8, max(batches))

    def call(net, size, calls):
        return call_network(net, net, mode.precision, size, calls, device)

    def show(title, jobs):
        timings = interleave(jobs, device, setup.rounds)
        print_table(f'{title}, {name}', timings, dict.fromkeys(timings, matrix_peak(device, mode.dtype)))

    show('Score network, forward, by batch size', {
        f'batch {size}': (lambda size=size: call(mode.net, size, called(device, size)), mode.net_flops)
        for size in batches})
    jobs = {}
    for size in (32, 64):  # the same layers on larger images, with random weights
        net = networks.construct(mode.net.constructor, mode.net.init_kwargs | dict(img_resolution=size))
        net = networks.set_precision(net.to(device), mode.dtype).eval().requires_grad_(False)
        flops = count_flops(lambda net=net: call(net, 1, 1))  # counted before compiling
        if name.endswith('compiled'):
            net.compile(dynamic=False)
        jobs[f'{size}x{size}'] = (lambda net=net: call(net, batch, called(device, batch)), flops)
    show(f'Score network, forward, batch {batch}, by resolution', jobs)

    def draw(steps):
        edm_sampler(mode.net, noise(mode.net, batch, device), levels=edm_levels(mode.net, steps))
        return batch

    show(f'EDM sampler, batch {batch}, by steps', {
        f'{steps} steps': (lambda steps=steps: draw(steps), (2 * steps - 1) * mode.net_flops)
        for steps in GROWTH_STEPS})


BENCHMARKS = dict(score=bench_score, discriminator=bench_discriminator, dg=bench_dg, diffrs=bench_diffrs)
POSITIVE = click.IntRange(min=1)


@click.command()
@click.option('--what',           help=f'Comma-separated, out of {", ".join(BATCHES)}', type=CommaList(BATCHES),
              default='score,discriminator,dg,diffrs', show_default=True)
@click.option('--network',        help='The shipped networks, or the published sizes for CIFAR-10 with random weights',
              type=click.Choice(['demo', 'full']), default='demo', show_default=True)
@click.option('--batch',          help='Batch sizes  [default: 1,8,32 for networks, 8 for samplers]', type=IntList())
@click.option('--precision',      help='Comma-separated', type=CommaList(PRECISIONS), default='fp32,bf16',
              show_default=True)
@click.option('--compile',        help='Also the last precision, compiled', is_flag=True)
@click.option('--images',         help='DiffRS: images in one round  [default: two batches]', type=POSITIVE)
@click.option('--rej_percentile', help='DiffRS: rejection percentile', type=click.FloatRange(0, 1), default=0.75,
              show_default=True)
@click.option('--steps',          help='Sampling steps', type=click.IntRange(min=2), default=18, show_default=True)
@click.option('--rounds',         help='Interleaved repetitions', type=POSITIVE, default=2, show_default=True)
@click.option('--device',         help='auto, cpu, cuda or cuda:0', type=str, default='auto', show_default=True)
@click.option('--reference',      help='Folder with checkouts of the published code: edm, DG, DiffRS', metavar='DIR',
              type=str)
def main(what, network, batch, precision, compile, images, rej_percentile, steps, rounds, device, reference):
    """Print tables of our modes, and with --reference the same work by the published code, interleaved.

    Examples:

    \b
    python -m benchmarks.bench_sampling --compile --reference=..
    python -m benchmarks.bench_sampling --network=full --what=dg,diffrs --batch=8 --precision=bf16 --reference=..
    python -m benchmarks.bench_sampling --what=growth --precision=bf16
    """
    if batch and min(batch) < 1:
        raise click.ClickException('--batch: a batch has at least 1 image')
    with blame('--device'):
        device = select_device(device)
    with blame('--precision'):
        for name in precision:
            select_precision(name, device)
    with blame('--reference'):
        checkouts = reference and {name: find_checkouts(reference, NEEDED[name]) for name in what if name in NEEDED}
    with tempfile.TemporaryDirectory() as folder:
        files = network_files(network, Path(folder))
        modes = load_modes(files, precision, compile, device)
        plain, = load_modes(files, ['fp32'], False, device).values()
        setup = Setup(modes, files, device, rounds, steps, rej_percentile, images, checkouts, plain)
        click.echo(f'{machine(device)}\n{network} networks: {plain.net_flops / 1e9:.1f} GFLOP per image in the score '
                   f'network, {plain.log_ratio_flops / 1e9:.1f} in classifier and discriminator')
        for name in what:
            sizes = batch or BATCHES[name]
            if name == 'growth':
                bench_growth(setup, sizes)
                continue
            with setup.published(name) as reference:
                for size in sizes:
                    BENCHMARKS[name](setup, size, reference)


if __name__ == '__main__':
    main()
