"""Trains image classifiers: ADM's on noisy images (DG), the one behind FD-CIFAR10, DMCMC's noise-level model."""

import time

import click
import torch

from commands import fit, options
from commands.classifiers import DATA, FILES, NETWORK, TRAINING, build, make_config
from commands.machine import blame_machine, start
from dnnlib.cli import SectionedCommand, blame
from dnnlib.files import resolve_output
from torch_utils import distributed as dist
from training.classifier import hold_out, learning_rate, measure_hook
from training.data import BatchLoader, ImageData
from training.ema import Ema
from training.run import TrainRun


@click.command(cls=SectionedCommand, sections={
    'Images and folder': 'outdir', 'Network': 'preset', 'Training': 'kimg', 'Machine': 'device',
    'Progress and files': 'max_minutes'})
@options.with_options(DATA, NETWORK, TRAINING, fit.hyperparameters(), fit.machine_options(
    'the network; weights stay in float32', except_for=' and, for cifar10-features, its batch norm'), fit.PROGRESS)
@blame_machine('--batch_gpu')
def main(**opts):
    """Train a classifier of images; the same command again resumes.

    adm-32 and cifar10-demo classify noisy images (VP noise) and write classifier.safetensors and classifier.pt, a
    state dict as ADM's and DG's; cifar10-features classifies clean ones and writes features.safetensors; noise_level
    estimates the noise level and writes noise_level.safetensors and calibration.png.

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


def labelled(config, path, resolution, channels=None, max_images=None) -> ImageData:
    data = ImageData(path, max_images, resolution, channels, quiet=dist.get_rank() != 0)
    if config['model'] == 'noise_level':  # it needs no labels
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
