"""Trains image classifiers: ADM's on noisy images (DG's feature extractor) and the clean one behind FD-CIFAR10."""

import functools
import json
import math
import sys
import time
from pathlib import Path

import click
import torch

from commands.machine import blame_machine
from diffusion.vpsde import VPSDE
from dnnlib.cli import FloatRange, blame
from dnnlib.files import resolve_output
from guided_diffusion import create_classifier, set_precision
from metrics.feature_net import FeatureNet, save_feature_net
from networks.classifiers import time_convention
from torch_utils import checkpoint
from torch_utils import distributed as dist
from torch_utils.device import select_device, select_precision
from training.classifier import CleanClassifierLoss, NoisyClassifierLoss, accuracy, accuracy_by_noise
from training.data import BatchLoader, ImageData
from training.ema import Ema
from training.loop import share_of_batch, train
from training.run import NonFiniteLoss, TickContext, TrainRun

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
}


@click.command()
@click.option('--outdir',        help='Folder of the run', metavar='DIR', type=str, required=True)
@click.option('--data',          help='Labelled training images', metavar='ZIP|DIR|NPZ', type=str, required=True)
@click.option('--test_data',     help='Labelled images to measure on; without it a part of --data is held out',
              metavar='ZIP|DIR|NPZ', type=str)
@click.option('--preset',        help='What to train; the options below override it', type=click.Choice([*PRESETS]),
              default='cifar10-demo', show_default=True)
# Preset values.
@click.option('--width',         help='Channels of the first level (adm); a multiple of 64', metavar='INT',
              type=click.IntRange(min=64))
@click.option('--depth',         help='Residual blocks per level (adm)', metavar='INT', type=click.IntRange(min=1))
@click.option('--attention',     help='Resolutions with attention (adm)', metavar='LIST', type=str)
@click.option('--classes',       help='Size of the last layer; 0 = as many as --data has', metavar='INT',
              type=click.IntRange(min=0))
@click.option('--batch_size',    help='Images per step, over all processes', metavar='INT',
              type=click.IntRange(min=1))
@click.option('--kimg',          help='Length of the training in thousands of images', metavar='FLOAT',
              type=FloatRange(min=0, min_open=True))
@click.option('--lr',            help='Largest learning rate', metavar='FLOAT', type=FloatRange(min=0))
@click.option('--weight_decay',  help='Weight decay (AdamW; SGD for features)', metavar='FLOAT',
              type=FloatRange(min=0))
@click.option('--schedule',      help='Learning rate over time',
              type=click.Choice(['constant', 'cosine', 'one-cycle']))
@click.option('--ema_kimg',      help='Half-life of the weight average in thousands of images; 0 = none',
              metavar='FLOAT', type=FloatRange(min=0))
@click.option('--shift',         help='Move images by up to so many pixels', metavar='INT', type=click.IntRange(min=0))
@click.option('--val_images',    help='Measure on at most so many images', metavar='INT', type=click.IntRange(min=1))
# The same for all presets.
@click.option('--xflip',         help='Mirror half of the images', metavar='BOOL', type=bool, default=True,
              show_default=True)
@click.option('--time', 'time_convention', help='Time fed to the adm network; auto: cosine at 64x64, else linear',
              type=click.Choice(['auto', 'linear', 'cosine']), default='auto', show_default=True)
@click.option('--img_resolution', help='Resolution that --data must have; default: any', metavar='INT',
              type=click.IntRange(min=1))
@click.option('--val_fraction',  help='Share of --data to hold out, where there is no --test_data', metavar='FLOAT',
              type=FloatRange(min=0, max=0.9), default=0.05, show_default=True)
@click.option('--seed',          help='Seed of weights, order and noise', metavar='INT', type=click.IntRange(min=0),
              default=0, show_default=True)
# How to run.
@click.option('--batch_gpu',     help='Images per forward pass of a process (gradient accumulation); the result '
              'changes by rounding and, for cifar10-features, because its batch norm sees so many  [default: the whole '
              'share]', metavar='INT', type=click.IntRange(min=1))
@click.option('--precision',     help='Arithmetic of the network; weights stay float32',
              type=click.Choice(['auto', 'fp32', 'tf32', 'bf16']), default='auto', show_default=True)
@click.option('--compile',       help='torch.compile; auto: on GPUs, for runs that are long enough',
              type=click.Choice(['auto', 'on', 'off']), default='auto', show_default=True)
@click.option('--max_minutes',   help='Stop after so long; the same command goes on', metavar='FLOAT',
              type=FloatRange(min=0))
@click.option('--device',        help='auto, cpu, cuda or cuda:N', metavar='STR', type=str, default='auto',
              show_default=True)
@click.option('--overwrite',     help='Replace an earlier run in --outdir', is_flag=True)
@click.option('-n', '--dry_run', '--dry-run', help='Print the configuration and exit', is_flag=True)
@blame_machine('--batch_gpu')
def main(**opts):
    """Train a classifier of images, resumable: the same command again goes on where it stopped.

    `adm` presets classify noisy images (VP noise) and write classifier.safetensors and classifier.pt, a state
    dict as ADM's and DG's; `features` classifies clean ones and writes features.safetensors.

    Examples:

    \b
    # the extractor of the shipped demo, minutes on a GPU; for an hour on 2 CPU cores add --kimg=150 --batch_size=64
    python train_classifier.py --outdir=runs/classifier --data=data/cifar10-train.zip \\
        --test_data=data/cifar10-test.zip

    \b
    # the network behind FD-CIFAR10
    python train_classifier.py --outdir=runs/features --preset=cifar10-features --data=data/cifar10-train.zip

    \b
    # DG's architecture on 8 GPUs
    torchrun --standalone --nproc_per_node=8 train_classifier.py --outdir=runs/adm --preset=adm-32 \\
        --data=imagenet-32.zip
    """
    started = time.monotonic()
    dist.init()
    config = make_config(opts)
    dist.print0(json.dumps(config, indent=2))
    if opts['dry_run']:
        return
    with blame('--device'):
        device = select_device(opts['device'])
        dtype = select_precision(opts['precision'], device)
    torch.backends.cudnn.benchmark = True
    with blame('--data'):
        data = _labelled(opts['data'], config['img_resolution'])
    with blame('--test_data'):
        test = opts['test_data'] and _labelled(opts['test_data'], data.resolution, data.channels, config['val_images'])
    with blame('--batch_size'):
        share_of_batch(config['batch_size'])
    with blame('--val_fraction' if test is None else '--test_data'):
        (images, labels), held_out = _split(data, test, config)
    with blame('--classes'):
        classes = _head_size(config['classes'], data.num_classes)
    torch.manual_seed(config['seed'])
    with blame('--width/--depth/--attention'):
        trainee = _kind(config)(config, data, classes, device, dtype)
    outdir = resolve_output(opts['outdir'])
    nimg = max(round(config['kimg'] * 1000), config['batch_size'])
    run = TrainRun(
        outdir=outdir, config=config | _sources(data, test, images), module=trainee.net,
        batches=BatchLoader(images, labels, config['batch_size'], config['seed'], device), step_loss=trainee.loss,
        batch_size=config['batch_size'], total_nimg=nimg, tick_nimg=max(nimg // 10, 1), snap_nimg=max(nimg // 5, 1),
        lr=functools.partial(learning_rate, config, nimg), optimizer=trainee.optimizer, seed=config['seed'],
        ema=Ema(trainee.net, config['ema_kimg'] * 1000) if config['ema_kimg'] else None,
        batch_gpu=opts['batch_gpu'], max_grad_norm=trainee.max_grad_norm,
        on_tick=functools.partial(_measure, trainee, held_out, opts['batch_gpu']),
        on_snapshot=lambda net, nimg: trainee.save(outdir, net, dict(nimg=nimg, data=data.name)),
        max_minutes=opts['max_minutes'], started=started, compile=opts['compile'], overwrite=opts['overwrite'],
        owns=lambda config, name: name in _kind(config).files, desc=f'training {config["preset"]}')
    try:
        with blame('--outdir'):
            result = train(run)
    except NonFiniteLoss as error:
        raise click.ClickException(f'--lr: {error}') from None
    dist.print0(f'{outdir}: {result.nimg / 1000:g} kimg, {result.reason}; {" and ".join(trainee.files)}' +
                ('' if result.complete else '; the same command resumes'))
    dist.shutdown()
    sys.exit(143 if result.reason == 'signal' else 0)


def make_config(opts: dict) -> dict:
    """The preset with the given options in place of its own: what decides the result, and nothing else."""
    preset = PRESETS[opts['preset']]
    given = [name for name in ('width', 'depth', 'attention') if opts[name] is not None]
    given += ['time'] * (opts['time_convention'] != 'auto')
    if preset['model'] != 'adm' and given:
        raise click.ClickException(f'--{given[0]}: belongs to the adm presets; leave it out')
    config = {name: value if opts.get(name) is None else opts[name] for name, value in preset.items()}
    same = ('xflip', 'time_convention', 'img_resolution', 'val_fraction', 'seed', 'precision')
    config |= dict(preset=opts['preset']) | {name: opts[name] for name in same}
    if opts['test_data']:
        config['val_fraction'] = 0.0
    return config


def learning_rate(config: dict, total_nimg: int, nimg: int) -> float:
    """Rate at `nimg` images: a short warm-up and a constant or half a cosine, or one cycle up and down."""
    done = nimg / total_nimg
    if config['schedule'] == 'one-cycle':
        return config['lr'] * min((done + 1e-3) / 0.2, (1 - done) / 0.8)
    warm = min((nimg + config['batch_size']) / min(200 * config['batch_size'], 0.1 * total_nimg), 1.0)
    return config['lr'] * warm * (1.0 if config['schedule'] == 'constant' else 0.5 + 0.5 * math.cos(math.pi * done))


def _kind(config: dict):
    """The trainee that a config is of."""
    return FeatureTrainee if config.get('model') == 'features' else AdmTrainee


class AdmTrainee:
    """ADM's classifier at VP noise."""

    files = ('classifier.safetensors', 'classifier.pt')
    max_grad_norm = 1.0

    def __init__(self, config, data, classes, device, dtype):
        self.time = config['time_convention']
        if self.time == 'auto':
            self.time = time_convention(data.resolution)
        self.kwargs = dict(
            image_size=data.resolution, in_channels=data.channels, out_channels=classes,
            classifier_width=config['width'], classifier_depth=config['depth'],
            classifier_attention_resolutions=config['attention'])
        self.net = set_precision(create_classifier(**self.kwargs).to(device), dtype, training=True)
        self.device, self.sde = device, VPSDE()
        self.time_map = self.sde.t_cos if self.time == 'cosine' else None
        self.loss = NoisyClassifierLoss(self.net, self.sde, self.time_map, config['xflip'], config['shift'])
        self.optimizer = functools.partial(torch.optim.AdamW, lr=0.0, weight_decay=config['weight_decay'], fused=True)

    def measure(self, net, images, labels, batch_gpu) -> dict:
        accuracies = accuracy_by_noise(net, images, labels, self.sde, self.device, self.time_map, batch_gpu)
        dist.print0('held-out accuracy: ' + ', '.join(f'{a:.3f} at sigma {s:g}' for s, a in accuracies.items()))
        return {f'accuracy_sigma_{s:g}': a for s, a in accuracies.items()}

    def save(self, outdir: Path, net, metadata: dict) -> None:
        k = self.kwargs
        metadata |= dict(kind='classifier', width=k['classifier_width'], depth=k['classifier_depth'],
                         channels=k['in_channels'], resolution=k['image_size'], classes=k['out_channels'],
                         time=self.time)
        checkpoint.save_network(outdir / self.files[0], net, 'create_classifier', k, metadata)
        checkpoint.save_state_dict(outdir / self.files[1], net)


class FeatureTrainee:
    """The network behind FD-CIFAR10 on clean images."""

    files = ('features.safetensors',)
    max_grad_norm = None

    def __init__(self, config, data, classes, device, dtype):
        self.net = FeatureNet(num_classes=classes, img_channels=data.channels, img_resolution=data.resolution)
        self.net.to(device)
        self.device = device
        self.loss = CleanClassifierLoss(autocast(self.net, device, dtype), config['xflip'], config['shift'])
        self.optimizer = functools.partial(torch.optim.SGD, lr=0.0, momentum=0.9, nesterov=True,
                                           weight_decay=config['weight_decay'])

    def measure(self, net, images, labels, batch_gpu) -> dict:
        held_out_accuracy = accuracy(net, images, labels, self.device, batch_gpu)
        dist.print0(f'held-out accuracy: {held_out_accuracy:.4f}')
        return dict(held_out_accuracy=held_out_accuracy)

    def save(self, outdir: Path, net, metadata: dict) -> None:
        save_feature_net(outdir / self.files[0], net, metadata)


def autocast(net, device, dtype):
    """`net` as a function whose matrix products run in `dtype`."""
    def call(*args):
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            return net(*args)

    return call


def _labelled(path, resolution, channels=None, max_images=None) -> ImageData:
    data = ImageData(path, max_images, resolution, channels, quiet=dist.get_rank() != 0)
    if data.labels is None:
        raise ValueError(f'{path} has no labels; a zip or folder needs a dataset.json with "labels", an npz `label`')
    return data


def _sources(data, test, images) -> dict:
    """For options.json: other images are another run."""
    return dict(data=data.name, images=len(images), data_sha256=data.digest(),
                test_sha256=None if test is None else test.digest())


def _head_size(asked: int, found: int) -> int:
    if asked and asked < found:
        raise ValueError(f'{asked} classes, but the data has {found}; use 0 or at least {found}')
    return asked or found


def _split(data, test, config):
    """((training images, labels), (held-out images, labels) or None)."""
    if test is not None:
        if test.num_classes > data.num_classes:
            raise ValueError(f'it has {test.num_classes} classes, --data only {data.num_classes}')
        return (data.images, data.labels), (test.images, test.labels)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(config['seed']))
    split = round(len(data) * config['val_fraction'])
    if len(data) - split < 1:
        raise ValueError(f'nothing is left to train on of {len(data)} images')
    train_rows, rows = order[split:], order[:split][:config['val_images']]
    held_out = (data.images[rows], data.labels[rows]) if split else None
    return (data.images[train_rows], data.labels[train_rows]), held_out


def _measure(trainee, held_out, batch_gpu, context: TickContext) -> dict:
    if held_out is None:
        return {}
    scores = trainee.measure(context.module, *held_out, batch_gpu)
    context.memory['scores'] = scores
    return scores


if __name__ == '__main__':
    main()
