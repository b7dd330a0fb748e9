"""Trains the discriminator of discriminator guidance: real images against generated ones, at all noise levels."""

import functools
import time
from pathlib import Path

import click
import torch

from commands import fit, options
from commands.machine import blame_machine, start
from commands.reflected_words import WordsCommand
from diffusion.vpsde import VPSDE
from dnnlib.cli import FloatRange, blame
from dnnlib.files import file_digest, resolve_output, resolve_path
from figures.training import draw_training
from guided_diffusion import create_classifier
from networks.classifiers import load_classifier, time_convention
from torch_utils import checkpoint
from torch_utils import distributed as dist
from torch_utils.device import PRECISIONS
from training.data import BatchLoader, ImageData
from training.discriminator import DiscriminatorLoss, epoch_length, split_pairs
from training.held_out import PICTURE, EpochHooks, owns
from training.run import TrainResult, TrainRun, adam

EMBEDDED_CLASSES = 1000  # rows of the label table in DG's conditional discriminators
DG_CACHE = 'gen_data_for_discriminator_training.npz'  # DG's own concatenation of the shards

DATA = [
    click.option('--savedir', help='Folder of the run', metavar='DIR', type=str,
                 default='/checkpoints/discriminator/cifar_uncond', show_default=True),
    click.option('--gendir', help='Generated images: folder of samples*.npz (without any, DG\'s '
                 f'{DG_CACHE} in it), of images, or a zip', metavar='DIR', type=str,
                 default='/samples/cifar_uncond_vanilla', show_default=True),
    click.option('--datadir', help='Real images: npz, zip or folder', metavar='NPZ|ZIP|DIR', type=str,
                 default='/data/true_data.npz', show_default=True),
    click.option('--img_resolution', help='Image resolution', metavar='INT', type=fit.POSITIVE, default=32,
                 show_default=True),
    click.option('--cond', help='1: conditional on the class', metavar='INT', type=click.IntRange(min=0, max=1),
                 default=0, show_default=True),
    click.option('--pretrained_classifier_ckpt', help='ADM classifier whose features are used', metavar='PATH',
                 type=str, default='/checkpoints/ADM_classifier/32x32_classifier.pt', show_default=True),
    click.option('--num_data', help='Use at most this many real and this many generated images', metavar='INT',
                 type=fit.POSITIVE, default=50000, show_default=True),
    click.option('--val_fraction', help='Share of the images to hold out and measure on; DG: 0', metavar='FLOAT',
                 type=FloatRange(min=0, max=0.5), default=0.1, show_default=True),
]
TRAINING = [
    click.option('--width', help='Channels of the discriminator; a multiple of 64', metavar='INT',
                 type=click.IntRange(min=64), default=128, show_default=True),
    click.option('--depth', help='Residual blocks of the discriminator', metavar='INT', type=fit.POSITIVE, default=2,
                 show_default=True),
    click.option('--time', 'time_convention', help='Time fed to the networks; auto: as the classifier says, else '
                 'cosine at 64x64 and linear otherwise', type=click.Choice(['auto', 'linear', 'cosine']),
                 default='auto', show_default=True),
    click.option('--epoch', help='Passes over the images', metavar='INT', type=fit.POSITIVE, default=50,
                 show_default=True),
    click.option('--lr', help='Learning rate', metavar='FLOAT', type=FloatRange(min=0), default=3e-4,
                 show_default=True),
    click.option('--xflip', help='Mirror half of the images', metavar='BOOL', type=bool, default=False,
                 show_default=True),
    click.option('--patience', help='Stop after this many epochs without a better held-out loss; 0 = never',
                 metavar='INT', type=click.IntRange(min=0), default=0, show_default=True),
]
FILES = [
    click.option('--save_every', help='Epochs between discriminator_<epoch>.pt', metavar='INT', type=fit.POSITIVE,
                 default=1, show_default=True),
]


def refuse_words(words, rest):
    raise ValueError(f'{words[0]} is a word of reflected diffusion, and this trains discriminators; '
                     f'use python train_reflected.py {" ".join(words)}')


@click.command(cls=WordsCommand, understand=refuse_words, sections={
    'Images and folder': 'savedir', 'Training': 'width', 'Machine': 'device', 'Progress and files': 'save_every'})
@options.with_options(DATA, TRAINING, fit.hyperparameters(default_batch=128), fit.machine_options(
    'the frozen feature extractor; the discriminator stays in float32, on GPUs in TF32 with any but fp32', PRECISIONS),
    FILES, fit.PROGRESS)
@blame_machine('--batch_gpu')
def main(**opts):
    """Train a discriminator to tell real from generated images; the same command again resumes.

    Writes discriminator_<epoch>.pt (state dicts as DG's), best.pt and best.safetensors (least held-out loss),
    stats.jsonl and training.png. More epochs are not better for FID: use `best`.

    Examples:

    \b
    # unconditional, published sizes
    python train.py --savedir=/checkpoints/discriminator/cifar_uncond --gendir=/samples/cifar_uncond_vanilla \\
        --datadir=/data/true_data.npz

    \b
    # conditional
    python train.py --savedir=/checkpoints/discriminator/cifar_cond --gendir=/samples/cifar_cond_vanilla \\
        --datadir=/data/true_data_label.npz --cond=1

    \b
    # on the features of the network that ships with the repository; first its samples, without guidance
    python generate.py --outdir=samples/vanilla --dg_weight_1st_order=0
    python train.py --savedir=runs/disc --gendir=samples/vanilla --datadir=data/cifar10-train.zip --epoch=10 \\
        --width=64 --pretrained_classifier_ckpt=checkpoints/demo/classifier.safetensors
    """
    started = time.monotonic()
    machine = start(opts['device'], opts['precision'], opts['compile'], tf32_beside_half=True)
    with blame('--pretrained_classifier_ckpt'):
        extractor = load_classifier(opts['pretrained_classifier_ckpt'], opts['img_resolution'], machine.device,
                                    dtype=machine.dtype)
    real, generated = load_images(opts, extractor.in_channels)
    config = make_config(opts, real, generated)
    fit.show_config(config, opts['dry_run'])
    with blame('--gendir'):
        pairs, held_out = split_pairs(real, generated, config['val_fraction'], config['seed'])
    dist.print0(f'{len(held_out)} of {len(real)} real and {len(generated)} generated images are held out')
    if config['patience'] and not len(held_out):
        raise click.ClickException('--patience: needs held-out images; raise --val_fraction, or leave it out')
    with blame('--batch'):
        epoch_nimg = epoch_length(len(pairs), config['batch_size'])
    with blame('--width'):
        run = make_run(config, opts, extractor, pairs, held_out, epoch_nimg, real.num_classes, machine.device,
                       fit.run_options(opts, started))
    fit.fit(run, '--savedir', functools.partial(summary, epoch_nimg))


def load_images(opts, channels):
    """(real, generated) images of `channels` channels; without --cond they have no labels."""
    def read(path):
        data = ImageData(path, max_images=opts['num_data'], resolution=opts['img_resolution'], channels=channels,
                         quiet=dist.get_rank() != 0)
        if opts['cond'] and data.labels is None:
            raise ValueError(f'{path} has no labels, which --cond=1 needs (an npz with `samples` and `label`, or a '
                             f'dataset.json with "labels")')
        if not opts['cond']:
            data.labels = None
        if len(data) < 2:
            raise ValueError(f'{path} has {len(data)} image, which is too few to train on')
        return data

    with blame('--datadir'):
        real = read(opts['datadir'])
    with blame('--gendir'):
        source = resolve_path(opts['gendir'])
        if (source / DG_CACHE).is_file() and not list(source.glob('samples*.npz')):
            source /= DG_CACHE
        generated = read(source)
        if opts['cond'] and generated.num_classes > real.num_classes:
            raise ValueError(f'it has {generated.num_classes} classes, --datadir only {real.num_classes}')
    dist.print0(f'{len(real)} real images from {opts["datadir"]}, {len(generated)} generated ones from {source}')
    if len(real) != len(generated):
        dist.print0('the two counts differ: the log-ratio will be off by the logarithm of their quotient')
    return real, generated


def make_config(opts, real, generated) -> dict:
    """What decides the result, not how and where the run goes; files are known by their contents."""
    names = ('img_resolution', 'cond', 'num_data', 'epoch', 'lr', 'val_fraction', 'patience', 'xflip', 'width',
             'depth', 'time_convention', 'seed', 'precision')
    return dict(batch_size=opts['batch']) | {name: opts[name] for name in names} | dict(
        num_real=len(real), num_generated=len(generated), real_sha256=real.digest(),
        generated_sha256=generated.digest(),
        classifier_sha256=file_digest(resolve_path(opts['pretrained_classifier_ckpt'])))


def make_run(config, opts, extractor, pairs, held_out, epoch_nimg, classes, device, how) -> TrainRun:
    """The training run that `config` describes: a new discriminator on the extractor's features.

    `classes` are those of all of --datadir: the last one may be too rare for the part that is trained on.
    """
    torch.manual_seed(config['seed'])  # the initial weights
    architecture = dict(
        image_size=config['img_resolution'] // extractor.downsampling, in_channels=extractor.feature_channels,
        out_channels=1, classifier_width=config['width'], classifier_depth=config['depth'],
        num_classes=max(classes, EMBEDDED_CLASSES) if config['cond'] else 0)
    net = create_classifier(**architecture).to(device)
    convention = config['time_convention']
    if convention == 'auto':
        convention = extractor.metadata.get('time', time_convention(config['img_resolution']))
    sde, outdir = VPSDE(), resolve_output(opts['savedir'])
    loss = DiscriminatorLoss(net, functools.partial(extractor, feature=True), sde, xflip=config['xflip'],
                             time_map=sde.t_cos if convention == 'cosine' else None)
    metadata = dict(kind='discriminator', width=config['width'], depth=config['depth'],
                    channels=architecture['in_channels'], resolution=config['img_resolution'], classes=classes,
                    time=convention, classifier=Path(opts['pretrained_classifier_ckpt']).name)
    hooks = EpochHooks(loss, held_out, config['batch_size'], config['seed'], epoch_nimg, config['epoch'],
                       config['patience'], opts['save_every'],
                       functools.partial(save_network, outdir, architecture, metadata))
    return TrainRun(
        outdir=outdir, config=config, module=net, step_loss=loss, batch_size=config['batch_size'],
        batches=BatchLoader(pairs.images, pairs.targets, config['batch_size'], config['seed'], device),
        total_nimg=config['epoch'] * epoch_nimg, tick_nimg=epoch_nimg, snap_nimg=epoch_nimg,
        lr=lambda nimg: config['lr'], optimizer=functools.partial(adam, weight_decay=1e-7), seed=config['seed'],
        on_tick=hooks.on_tick, on_snapshot=hooks.on_snapshot, draw=lambda lines: draw_training(lines, outdir / PICTURE),
        frozen=(extractor,), owns=owns, desc='discriminator', **how)


def save_network(outdir: Path, architecture: dict, metadata: dict, name: str, net, **measured) -> None:
    """name.pt: a plain state dict that DG reads; name.safetensors: the same with its description."""
    if name.endswith('.safetensors'):
        checkpoint.save_network(outdir / name, net, 'create_classifier', architecture, metadata | measured)
    else:
        checkpoint.save_state_dict(outdir / name, net)


def summary(epoch_nimg: int, result: TrainResult) -> str:
    """How the run ended and which file to use."""
    ended, memory = f'{result.reason} after {result.nimg / epoch_nimg:g} epochs', result.memory
    if 'best_epoch' not in memory:
        return f'{ended}; discriminator_*.pt'
    return f'{ended}; best.pt is epoch {memory["best_epoch"]}, held-out loss {memory["best_loss"]:.4f}'


if __name__ == '__main__':
    main()
