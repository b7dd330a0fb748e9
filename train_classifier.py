"""Trains image classifiers: ADM's on noisy images (DG), the one behind FD-CIFAR10, DMCMC's of noise levels."""

import time

import click
import torch

from commands import fit, options
from commands.classifiers import FILES, build
from commands.machine import blame_machine, start
from dnnlib.cli import FloatRange, SectionedCommand, blame
from dnnlib.files import resolve_output
from torch_utils import distributed as dist
from training.classifier import hold_out, learning_rate, measure_hook
from training.data import BatchLoader, ImageData
from training.ema import Ema
from training.run import TrainRun

# Each preset fills the options that are not given on the command line.
PRESETS = {
    # The architecture of DG's 32x32 extractor; batch and length are ADM's for 64x64 (arXiv:2105.05233, table 12).
    'adm-32': dict(model='adm', width=128, depth=4, attention='32,16,8', classes=1000, batch_size=1024, kimg=307_200,
                   lr=3e-4, weight_decay=0.05, schedule='constant', ema_kimg=0, shift=2, val_images=1000),
    # The extractor that ships with the repository; 0.9 GFLOP per image up to the features.
    'cifar10-demo': dict(model='adm', width=64, depth=1, attention='16,8', classes=0, batch_size=256, kimg=3000,
                         lr=1e-3, weight_decay=0.05, schedule='cosine', ema_kimg=50, shift=2, val_images=1000),
    # The detector of FD-CIFAR10; one cycle of SGD (Smith and Topin 2017, arXiv:1708.07120).
    'cifar10-features': dict(model='features', width=0, depth=0, attention='', classes=0, batch_size=512, kimg=1500,
                             lr=0.4, weight_decay=5e-4, schedule='one-cycle', ema_kimg=0, shift=4, val_images=10_000),
    # The noise-level model of denoising MCMC as published, for EDM's range of levels; a label is a level here.
    'noise_level': dict(model='noise_level', width=0, depth=0, attention='', classes=1000, batch_size=100,
                        kimg=10_000, lr=1e-3, weight_decay=0.0, schedule='constant', ema_kimg=0, shift=0,
                        val_images=1000),
}

DATA = [
    click.option('--outdir', help='Folder of the run', metavar='DIR', type=str, required=True),
    click.option('--data', help='Labelled training images', metavar='ZIP|DIR|NPZ', type=str, required=True),
    click.option('--test_data', help='Labelled images to measure on; without it a part of --data is held out',
                 metavar='ZIP|DIR|NPZ', type=str),
    click.option('--img_resolution', help='Resolution that --data must have  [default: any]', metavar='INT',
                 type=fit.POSITIVE),
    click.option('--val_fraction', help='Share of --data to hold out if there is no --test_data', metavar='FLOAT',
                 type=FloatRange(min=0, max=0.9), default=0.05, show_default=True),
    click.option('--val_images', help=f'Measure on at most this many images  {fit.BY_PRESET}', metavar='INT',
                 type=fit.POSITIVE),
]
NETWORK = [
    click.option('--preset', '--task', help='What to train; other options override it',
                 type=click.Choice([*PRESETS]), default='cifar10-demo', show_default=True),
    click.option('--width', help=f'Channels of the first level (adm); a multiple of 64  {fit.BY_PRESET}', metavar='INT',
                 type=click.IntRange(min=64)),
    click.option('--depth', help=f'Residual blocks per level (adm)  {fit.BY_PRESET}', metavar='INT', type=fit.POSITIVE),
    click.option('--attention', help=f'Resolutions with attention (adm)  {fit.BY_PRESET}', metavar='LIST', type=str),
    click.option('--classes', help=f'Size of the last layer; 0 = as many as --data has  {fit.BY_PRESET}', metavar='INT',
                 type=click.IntRange(min=0)),
    click.option('--sigma_min', help='Lower end of the levels (noise_level), for images in [-1, 1]  [default: 0.002]',
                 metavar='FLOAT', type=options.POSITIVE),
    click.option('--sigma_max', help='Upper end of the levels (noise_level)  [default: 80]', metavar='FLOAT',
                 type=options.POSITIVE),
    click.option('--time', 'time_convention', help='Time fed to the adm network; auto: cosine at 64x64, else linear',
                 type=click.Choice(['auto', 'linear', 'cosine']), default='auto', show_default=True),
]
TRAINING = [
    click.option('--kimg', help=f'Length of the training in thousands of images  {fit.BY_PRESET}', metavar='KIMG',
                 type=FloatRange(min=0, min_open=True)),
    click.option('--lr', help=f'Largest learning rate  {fit.BY_PRESET}', metavar='FLOAT', type=FloatRange(min=0)),
    click.option('--schedule', help=f'Learning rate over time  {fit.BY_PRESET}',
                 type=click.Choice(['constant', 'cosine', 'one-cycle'])),
    click.option('--weight_decay', help=f'Weight decay (AdamW; SGD for features)  {fit.BY_PRESET}', metavar='FLOAT',
                 type=FloatRange(min=0)),
    click.option('--ema_kimg', help=f'Half-life of the weight average; 0 = none  {fit.BY_PRESET}', metavar='KIMG',
                 type=FloatRange(min=0)),
    click.option('--shift', help=f'Move images by up to this many pixels  {fit.BY_PRESET}', metavar='INT',
                 type=click.IntRange(min=0)),
    click.option('--xflip', help='Mirror half of the images', metavar='BOOL', type=bool, default=True,
                 show_default=True),
]


@click.command(cls=SectionedCommand, sections={
    'Images and folder': 'outdir', 'Network': 'preset', 'Training': 'kimg', 'Machine': 'device',
    'Progress and files': 'max_minutes'})
@options.with_options(DATA, NETWORK, TRAINING, fit.hyperparameters(), fit.machine_options(
    'the network; weights stay in float32', except_for=' and, for cifar10-features, its batch norm'), fit.PROGRESS)
@blame_machine('--batch_gpu')
def main(**opts):
    """Train a classifier of images; the same command again resumes.

    `adm` presets classify noisy images (VP noise) and write classifier.safetensors and classifier.pt, a state
    dict as ADM's and DG's; `features` classifies clean ones and writes features.safetensors.

    Examples:

    \b
    # the extractor of the shipped demo, minutes on a GPU; for an hour on 2 CPU cores add --kimg=150 --batch=64
    python train_classifier.py --outdir=runs/classifier --data=data/cifar10-train.zip \\
        --test_data=data/cifar10-test.zip

    \b
    # the network behind FD-CIFAR10
    python train_classifier.py --outdir=runs/features --preset=cifar10-features --data=data/cifar10-train.zip

    \b
    # the noise-level model of generate_dmcmc.py
    python train_classifier.py --outdir=runs/noise_level --task=noise_level --data=data/cifar10-train.zip

    \b
    # DG's architecture on 8 GPUs
    torchrun --standalone --nproc_per_node=8 train_classifier.py --outdir=runs/adm --preset=adm-32 \\
        --data=imagenet-32.zip
    """
    started = time.monotonic()
    machine = start(opts['device'], opts['precision'], opts['compile'])
    config = make_config(opts)
    with blame('--data'):
        data = labelled(config, opts['data'], config['img_resolution'])
    with blame('--test_data'):
        test = opts['test_data'] and labelled(config, opts['test_data'], data.resolution, data.channels,
                                              config['val_images'])
        if test and test.num_classes > data.num_classes:
            raise ValueError(f'it has {test.num_classes} classes, --data only {data.num_classes}')
    with blame('--val_fraction'):
        images, held_out = (data.images, data.labels), test and (test.images, test.labels)
        if not test:
            images, held_out = hold_out(data, config['val_fraction'], config['val_images'], config['seed'])
    config |= dict(data=data.name, images=len(images[0]), data_sha256=data.digest(), test_sha256=test and test.digest(),
                   class_names=data.classes)
    fit.show_config(config, opts['dry_run'])
    with blame('--classes'):
        if config['model'] != 'noise_level' and 0 < config['classes'] < data.num_classes:
            raise ValueError(f'{config["classes"]}, but the data has {data.num_classes}; use 0 or at least '
                             f'{data.num_classes}')
    torch.manual_seed(config['seed'])  # the initial weights
    with blame('--sigma_min/--img_resolution' if config['model'] == 'noise_level' else '--width/--depth/--attention'):
        parts, save = build(config, data, config['classes'] or data.num_classes, machine, held_out)
    fit.fit(make_run(config, parts, save, images, held_out, resolve_output(opts['outdir']), machine.device,
                 fit.run_options(opts, started)),
        summary=lambda result: f'{fit.how_far(result)}; {" and ".join(FILES[config["model"]])}')


def make_config(opts: dict) -> dict:
    """What decides the result, beside the images: the preset with the given options in place of its own."""
    preset = PRESETS[opts['preset']]
    given = [name for name in ('width', 'depth', 'attention') if opts[name] is not None]
    given += ['time'] * (opts['time_convention'] != 'auto')
    if preset['model'] != 'adm' and given:
        raise click.ClickException(f'--{given[0]}: belongs to the adm presets; leave it out')
    ends = {name: opts[name] for name in ('sigma_min', 'sigma_max') if opts[name] is not None}
    if preset['model'] != 'noise_level' and ends:
        raise click.ClickException(f'--{[*ends][0]}: belongs to --task=noise_level; leave it out')
    opts = opts | dict(batch_size=opts['batch'])
    config = {name: value if opts.get(name) is None else opts[name] for name, value in preset.items()}
    same = ('preset', 'xflip', 'time_convention', 'img_resolution', 'val_fraction', 'seed', 'precision')
    config |= {name: opts[name] for name in same}
    if preset['model'] == 'noise_level':
        config |= dict(sigma_min=0.002, sigma_max=80.0) | ends
    if opts['test_data']:
        config['val_fraction'] = 0.0
    return config


def labelled(config, path, resolution, channels=None, max_images=None) -> ImageData:
    data = ImageData(path, max_images, resolution, channels, quiet=dist.get_rank() != 0)
    if config['model'] == 'noise_level':  # its classes are levels
        data.labels = torch.zeros(len(data), dtype=torch.int64)
    if data.labels is None:
        raise ValueError(f'{path} has no labels; a zip or folder needs a dataset.json with "labels", an npz `label`')
    return data


def make_run(config, parts, save, images, held_out, outdir, device, how) -> TrainRun:
    """The training run that `config` describes, on `images` (with their labels)."""
    batch, nimg = config['batch_size'], max(round(config['kimg'] * 1000), config['batch_size'])
    return TrainRun(
        outdir=outdir, config=config, batches=BatchLoader(*images, batch, config['seed'], device), batch_size=batch,
        total_nimg=nimg, tick_nimg=max(nimg // 10, 1), snap_nimg=max(nimg // 5, 1), seed=config['seed'],
        lr=learning_rate(config['schedule'], config['lr'], batch, nimg),
        ema=Ema(parts['module'], config['ema_kimg'] * 1000) if config['ema_kimg'] else None,
        on_tick=measure_hook(parts['step_loss'], held_out),
        on_snapshot=lambda net, nimg: save(outdir, net, dict(nimg=nimg, data=config['data'])),
        owns=lambda config, name: name in FILES.get(config.get('model'), FILES['adm']),
        desc=f'training {config["preset"]}', **parts, **how)


if __name__ == '__main__':
    main()
