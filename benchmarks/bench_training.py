"""Speed of training: steps of the discriminator and of a score network, beside the published ones in float32.

    python -m benchmarks.bench_training [--what=...] [--network=demo|full] [--batch=32] [--reference=DIR]

Random images; the steps are those of `training.loop`, with optimizer and average. `full` is DG's discriminator on the
32x32 ADM classifier and EDM's CIFAR-10 network, random weights; `demo` the networks that ship.
"""

import contextlib
import functools
import tempfile
from pathlib import Path

import click
import torch

import classifier_lib
import networks
from diffusion.losses import EDMLoss
from diffusion.vpsde import VPSDE
from dnnlib.cli import IntList, blame
from networks.io import build_network
from torch_utils.device import PRECISIONS, select_device, select_precision
from training.data import BatchLoader
from training.discriminator import DiscriminatorLoss
from training.ema import Ema
from training.loop import Trainer, TrainRun, adam
from training.score import score_step

from .bench_sampling import CommaList
from .common import interleave, machine, print_table
from .modes import network_files
from .reference_client import NEEDED, Reference, find_checkouts

IMAGES = 512
PUBLISHED = 'published, fp32'


def make_trainer(what, files, batch, precision, compiled, device) -> Trainer:
    """One of the project's training runs, ready to step."""
    dtype = select_precision(precision, device)
    images = torch.randint(256, [IMAGES, 3, 32, 32], dtype=torch.uint8)
    if what == 'score':
        net = build_network(networks.read_network_file(files['score']), files['score']).to(device)
        networks.set_precision(net, dtype, training=True).train().requires_grad_(True)
        targets, loss = None, score_step(net, EDMLoss(), True, None)
        options = dict(ema=Ema(net, 500_000), lr=lambda nimg: 1e-3)
    else:
        extractor = classifier_lib.load_classifier(str(files['classifier']), 32, device, dtype=dtype)
        net = classifier_lib.load_discriminator(str(files['discriminator']), device, False,
                                                channel=extractor.feature_channels, dtype=dtype)
        targets = torch.arange(IMAGES)[:, None] % 2
        loss = DiscriminatorLoss(net, functools.partial(extractor, feature=True), VPSDE())
        options = dict(lr=lambda nimg: 3e-4, optimizer=functools.partial(adam, weight_decay=1e-7))
    trainer = Trainer(TrainRun(outdir=Path('unused'), config={}, module=net, step_loss=loss, batch_size=batch,
                               batches=BatchLoader(images, targets, batch, 0, device), total_nimg=1,
                               compile='on' if compiled else 'off', **options), batch)
    trainer.compile()
    return trainer


def bench(what, files, batch, precisions, compiled, rounds, device, reference):
    """Time steps of all modes and of the published code in turns, and print the table."""
    modes = {precision: (precision, False) for precision in precisions}
    if compiled:
        modes[f'{precisions[-1]} compiled'] = (precisions[-1], True)
    jobs = {}
    for name, (precision, compiles) in modes.items():
        trainer = make_trainer(what, files, batch, precision, compiles, device)

        def step(trainer=trainer, precision=precision):
            select_precision(precision, device)
            trainer.train_step()
            return batch
        jobs[name] = step, 0
    work = f'train_{what}'
    with Reference(find_checkouts(reference, NEEDED[work]), files, device) if reference else (
            contextlib.nullcontext()) as published:
        if published:
            jobs[PUBLISHED] = (lambda: published.run(work, batch=batch)['images']), 0
        print_table(f'Training step of the {what}{" network" * (what == "score")}, batch {batch}',
                    interleave(jobs, device, rounds), reference=PUBLISHED)


@click.command()
@click.option('--what', help='Comma-separated', type=CommaList(['discriminator', 'score']),
              default='discriminator,score', show_default=True)
@click.option('--network', help='Published sizes with random weights, or the shipped networks',
              type=click.Choice(['full', 'demo']), default='demo', show_default=True)
@click.option('--batch', help='Batch sizes', type=IntList(), default='32', show_default=True)
@click.option('--precision', help='Comma-separated', type=CommaList(PRECISIONS), default='fp32,bf16', show_default=True)
@click.option('--compile', 'compiled', help='Also the last precision, compiled', is_flag=True)
@click.option('--rounds', help='Interleaved repetitions', type=click.IntRange(min=1), default=3, show_default=True)
@click.option('--device', help='auto, cpu, cuda or cuda:0', type=str, default='auto', show_default=True)
@click.option('--reference', help='Folder with checkouts of the published code: edm, DG', metavar='DIR', type=str)
def main(what, network, batch, precision, compiled, rounds, device, reference):
    """Print tables of training speed."""
    with blame('--device'):
        device = select_device(device)
    if reference:
        with blame('--reference'):
            for name in what:
                find_checkouts(reference, NEEDED[f'train_{name}'])
    click.echo(f'{machine(device)}; {network} networks')
    with tempfile.TemporaryDirectory() as folder:
        files = network_files(network, Path(folder))
        for name in what:
            for size in batch:
                bench(name, files, size, precision, compiled, rounds, device, reference)


if __name__ == '__main__':
    main()
