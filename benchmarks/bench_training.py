"""Speed of training: steps of the discriminator and of a score network, next to the published ones in float32."""

import contextlib
import functools
import tempfile
from pathlib import Path

import click
import torch

import networks
from diffusion.losses import EDMLoss
from diffusion.vpsde import VPSDE
from dnnlib.cli import IntList, blame
from networks.classifiers import load_classifier, load_discriminator
from networks.io import build_network
from torch_utils.compiler import count_flops
from torch_utils.device import PRECISIONS, select_device, select_precision
from training.data import BatchLoader
from training.discriminator import DiscriminatorLoss
from training.ema import Ema
from training.loop import Trainer
from training.run import TrainRun, adam
from training.score import score_step

from .bench_sampling import CommaList
from .common import interleave, machine, matrix_peak, print_table
from .modes import network_files
from .reference_client import NEEDED, Reference, find_checkouts

IMAGES = 512  # random images from which batches are taken
PUBLISHED = 'published'
PUBLISHED_PRECISION = {'discriminator': 'tf32', 'score': 'fp32'}  # of convolutions on a GPU: PyTorch's default; EDM's
NETWORKS = dict(discriminator='full', score='demo')  # the sizes that users train


def choose_precision(what: str, precision: str, device) -> torch.dtype:
    """The precision that train.py and train_score.py choose."""
    return select_precision(precision, device, tf32_beside_half=what == 'discriminator')


def make_trainer(what: str, files: dict[str, Path], batch: int, precision: str, compiled: bool, device) -> Trainer:
    """A training run as train.py (discriminator) and train_score.py (score) set it up, ready for its first step."""
    dtype = choose_precision(what, precision, device)
    images = torch.randint(256, [IMAGES, 3, 32, 32], dtype=torch.uint8)
    if what == 'score':
        net = build_network(networks.read_network_file(files['score']), files['score']).to(device)
        networks.set_precision(net, dtype, training=True).train().requires_grad_(True)
        targets, loss = None, score_step(net, EDMLoss(), xflip=True)
        options = dict(ema=Ema(net, 500_000), lr=lambda nimg: 1e-3)
    else:
        extractor = load_classifier(str(files['classifier']), 32, device, dtype=dtype)
        net = load_discriminator(str(files['discriminator']), device, False, channel=extractor.feature_channels)
        targets = torch.arange(IMAGES)[:, None] % 2
        loss = DiscriminatorLoss(net, functools.partial(extractor, feature=True), VPSDE())
        options = dict(lr=lambda nimg: 3e-4, optimizer=functools.partial(adam, weight_decay=1e-7), frozen=(extractor,))
    trainer = Trainer(TrainRun(outdir=Path('unused'), config={}, module=net, step_loss=loss, batch_size=batch,
                               batches=BatchLoader(images, targets, batch, 0, device), total_nimg=1,
                               compile='on' if compiled else 'off', **options), batch)
    trainer.compile()
    return trainer


def make_step(what: str, trainer: Trainer, precision: str, batch: int, device):
    """A function that takes one step and returns the number of its images."""
    def step():
        choose_precision(what, precision, device)
        trainer.train_step()
        return batch
    return step


def name_of(what: str, kind: str) -> str:
    return f'{"discriminator" if what == "discriminator" else "score network"} ({kind})'


def bench_modes(what, kind, files, batch, precisions, compiled, rounds, device, reference) -> None:
    """Time the steps of all modes and of the published code, in turns."""
    modes = {precision: (precision, False) for precision in precisions}
    if compiled:
        modes[f'{precisions[-1]} compiled'] = (precisions[-1], True)
    trainers = {name: make_trainer(what, files, batch, *mode, device) for name, mode in modes.items()}
    flops = count_flops(trainers[precisions[0]].train_step) / batch
    jobs = {name: (make_step(what, trainers[name], mode[0], batch, device), flops) for name, mode in modes.items()}
    work = f'train_{what}'
    with Reference(find_checkouts(reference, NEEDED[work]), files, device) if reference else (
            contextlib.nullcontext()) as published:
        if published:
            jobs[PUBLISHED] = (lambda: published.run(work, batch=batch)['images'], flops)
        timings = interleave(jobs, device, rounds)
    peaks = {name: peak(modes[name][0] if name in modes else PUBLISHED_PRECISION[what], device) for name in timings}
    print_table(f'Training step of the {name_of(what, kind)}, batch {batch}', timings, peaks, PUBLISHED)


def bench_growth(what, kind, files, batches, precision, rounds, device) -> None:
    """Cost per image by batch size."""
    jobs = {}
    for batch in batches:
        trainer = make_trainer(what, files, batch, precision, False, device)
        jobs[f'batch {batch}'] = (make_step(what, trainer, precision, batch, device),
                                  count_flops(trainer.train_step) / batch)
    timings = interleave(jobs, device, rounds)
    print_table(f'Training step of the {name_of(what, kind)} by batch size, {precision}', timings,
                dict.fromkeys(timings, peak(precision, device)))


def peak(precision: str, device) -> float:
    """The machine's matrix rate in a precision."""
    return matrix_peak(device, select_precision(precision, device))


@click.command()
@click.option('--what',      help='Comma-separated: discriminator, score', type=CommaList(NETWORKS),
              default='discriminator,score', show_default=True)
@click.option('--network',   help='full: published sizes, random weights; demo: the shipped networks  '
              '[default: full for the discriminator, demo for the score network]', type=click.Choice(['full', 'demo']))
@click.option('--batch',     help='Batch sizes', metavar='LIST', type=IntList(), default='32', show_default=True)
@click.option('--growth',    help='Batch sizes of the table of growth, e.g. 1,8,64,256', metavar='LIST', type=IntList())
@click.option('--precision', help='Comma-separated', type=CommaList(PRECISIONS), default='fp32,bf16',
              show_default=True)
@click.option('--compile',   help='Also the last precision, compiled', is_flag=True)
@click.option('--rounds',    help='Interleaved repetitions', type=click.IntRange(min=1), default=3, show_default=True)
@click.option('--device',    help='auto, cpu, cuda or cuda:0', type=str, default='auto', show_default=True)
@click.option('--reference', help='Folder with checkouts of the published code: edm, DG', metavar='DIR', type=str)
def main(what, network, batch, growth, precision, compile, rounds, device, reference):
    """Print tables of training speed, and with --reference the same steps by the published code, interleaved.

    Random images; a step is one of training/loop.py, with optimizer and average.

    Examples:

    \b
    python -m benchmarks.bench_training --reference=..
    python -m benchmarks.bench_training --what=score --network=full --batch=8 --growth=1,4,16
    """
    for option, sizes in (('--batch', batch), ('--growth', growth or [1])):
        if min(sizes) < 1:
            raise click.ClickException(f'{option}: a batch has at least 1 image')
    with blame('--device'):
        device = select_device(device)
    with blame('--precision'):
        for name in precision:
            select_precision(name, device)
    with blame('--reference'):
        for name in what if reference else ():
            find_checkouts(reference, NEEDED[f'train_{name}'])
    torch.backends.cudnn.benchmark = True  # as in the training scripts
    click.echo(machine(device))
    for name in what:
        kind = network or NETWORKS[name]
        with tempfile.TemporaryDirectory() as folder:
            files = network_files(kind, Path(folder))
            for size in batch:
                bench_modes(name, kind, files, size, precision, compile, rounds, device, reference)
            if growth:
                bench_growth(name, kind, files, growth, precision[-1], rounds, device)


if __name__ == '__main__':
    main()
