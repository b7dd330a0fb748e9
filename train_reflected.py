"""Trains a network of reflected diffusion on a zip, a folder or an npz of images."""

import functools
import math
import time

import click
import torch

from commands import fit, options
from commands.machine import blame_machine, start
from commands.reflected_training import FILES, initial_network, load_images, settle_transfer
from commands.reflected_words import PRESETS, WordsCommand, training_config
from dnnlib.cli import FloatRange, blame
from dnnlib.files import atomic_write, resolve_output
from networks import save_network, set_precision
from sampling.reflected import reflected_heun
from sampling.samples import sample
from torch_utils import distributed as dist
from torch_utils.images import image_grid, png_bytes, to_uint8
from training.data import BatchLoader, ImageData
from training.ema import Ema
from training.reflected import reflected_step
from training.run import TrainRun, adam
from training.score import Snapshots, learning_rate

EMA_RAMPUP = math.log(2) / 9  # the published rate min(decay, (1 + n) / (10 + n)), in half-lives
GRID = 36  # images

IMAGES = [
    click.option('--outdir', help='Folder of the run  [default: runs/reflected-<preset>]', metavar='DIR', type=str),
    click.option('--data', 'path', help=f'Training images: EDM-style zip, folder, npz  [default: {FILES["cifar10"]}, '
                 'as data=NAME says]', metavar='ZIP|DIR|NPZ', type=str),
    click.option('--max_images', help='Use a subset of this many images', metavar='INT', type=fit.POSITIVE),
    click.option('--preset', help='Words to start from', type=click.Choice(list(PRESETS)), default='cifar10',
                 show_default=True),
    click.option('--seed', help='Seed of weights, order and noise', metavar='INT', type=click.IntRange(min=0),
                 default=0, show_default=True),
    click.option('--word', 'words', hidden=True, multiple=True),
]
SAVING = [
    click.option('--save_minutes', help='Interval of the training state', metavar='FLOAT', type=FloatRange(min=0),
                 default=5, show_default=True),
]


@click.command(cls=WordsCommand, options_metavar='[OPTIONS] [KEY=VALUE]...',
               understand=lambda words, rest: rest + [f'--word={word}' for word in words], sections={
    'Images and network': 'outdir', 'Machine': 'device', 'Progress and files': 'save_minutes'})
@options.with_options(IMAGES, fit.machine_options(
    'the U-Net; weights stay in float32', except_for=' and, with model.dropout, its masks'), SAVING, fit.PROGRESS)
@blame_machine('--batch_gpu')
def main(**opts):
    """Train a network of reflected diffusion (Lou and Ermon 2023) that generate_reflected.py can sample from.

    The settings are those of the published code, and so are their names: words KEY=VALUE such as model=vdm or
    optim.lr=1e-4 change what --preset gives (--dry_run shows all). The same command again resumes. Writes
    network-<kimg>.safetensors (averaged weights) and grid-<kimg>.png every training.snapshot_freq steps, stats.jsonl,
    options.json and training-state.pt.

    Examples:

    \b
    # The bundled score network, made a reflected one: half an hour on 2 CPU cores
    python train_reflected.py --preset=cifar10-demo --outdir=runs/reflected-demo

    \b
    # A published command, with its words
    python train_reflected.py data=cifar10 model=ddpmpp sde.sigma_min=0.0001 optim.lr=1e-4

    \b
    # The published class-conditional ImageNet run on 8 GPUs
    torchrun --standalone --nproc_per_node=8 train_reflected.py --preset=imagenet64-cfg --batch_gpu=64
    """
    started = time.monotonic()
    machine = start(opts['device'], opts['precision'], opts['compile'])
    with blame('KEY=VALUE'):
        config, notes = training_config(opts['preset'], opts['words'])
        source = settle_transfer(config)
    for note in notes:
        dist.print0(note)
    with blame('--data'):
        data = load_images(opts, config)
    config |= {name: opts[name] for name in ('preset', 'seed', 'precision', 'max_images')} | dict(
        images=len(data), data_name=data.name, data_sha256=data.digest())
    fit.show_config(config, opts['dry_run'])
    with blame('KEY=VALUE'):
        torch.manual_seed(opts['seed'])  # the initial weights
        net = initial_network(config, source).to(machine.device)
    set_precision(net, machine.dtype, training=True)
    outdir = resolve_output(opts['outdir'] or f'runs/reflected-{opts["preset"]}')
    fit.fit(make_run(config, net, data, outdir, machine.device,
                     dict(state_sec=opts['save_minutes'] * 60) | fit.run_options(opts, started)))


def make_run(config: dict, net, data: ImageData, outdir, device, how: dict) -> TrainRun:
    """The training run that `config` describes."""
    training, optim, batch = config['training'], config['optim'], config['training']['batch_size']
    total = training['n_iters'] * batch
    halflife = batch * math.log(0.5) / math.log(config['model']['ema_rate'])
    snapshots = Snapshots(outdir, save_network, metadata={name: config[name] for name in ('preset', 'images', 'seed')})

    def on_snapshot(module, nimg):
        snapshots(module, nimg)
        grid = sample(reflected_heun, module, range(GRID), batch=GRID, progress=False)
        with atomic_write(outdir / f'grid-{nimg // 1000:06d}.png') as file:
            file.write(png_bytes(image_grid(to_uint8(module.decode(grid.images)))))

    return TrainRun(
        outdir=outdir, config=config, module=net, seed=config['seed'], batch_size=batch, total_nimg=total,
        batches=BatchLoader(data.images, data.labels, batch, config['seed'], device),
        step_loss=reflected_step(net, training['likelihood_weighting'], training['reduce_mean'],
                                 training['drop_label'], config['data']['random_flip']),
        lr=learning_rate(optim['lr'], optim['warmup'] * batch, total, optim['decay']),
        optimizer=functools.partial(adam, betas=(optim['beta1'], optim['beta2']), weight_decay=optim['weight_decay']),
        ema=Ema(net, halflife, EMA_RAMPUP), max_grad_norm=optim['grad_clip'] if optim['grad_clip'] >= 0 else None,
        tick_nimg=training['log_freq'] * batch, snap_nimg=training['snapshot_freq'] * batch, on_snapshot=on_snapshot,
        owns=owns, desc='train_reflected', **how)


def owns(config: dict, name: str) -> bool:
    """Whether a run writes a file of this name."""
    return name.startswith(('network-', 'grid-')) and name.endswith(('.safetensors', '.png'))


if __name__ == '__main__':
    main()
