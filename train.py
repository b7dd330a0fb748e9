"""Trains the discriminator of discriminator guidance: real images against generated ones, at all noise levels."""

import functools
import math
import re
import sys
import time
from pathlib import Path

import click
import torch

import classifier_lib
from commands.machine import blame_machine
from diffusion.vpsde import VPSDE
from dnnlib.cli import FloatRange, blame
from dnnlib.files import atomic_write, file_digest, resolve_output, resolve_path
from guided_diffusion import create_classifier
from torch_utils import checkpoint
from torch_utils import distributed as dist
from torch_utils.device import select_device, select_precision
from torch_utils.stats import JsonLines
from training.data import BatchLoader, ImageData
from training.discriminator import DiscriminatorLoss, held_out_logits, held_out_scores, scores_table, split_pairs
from training.loop import share_of_batch, train
from training.run import STATS_FILE, NonFiniteLoss, TickContext, TrainRun, adam

EMBEDDED_CLASSES = 1000  # rows of the label table in DG's conditional discriminators
DG_CACHE = 'gen_data_for_discriminator_training.npz'  # DG's own concatenation of the shards


@click.command()
@click.option('--savedir',      help='Folder of the run', metavar='DIR', type=str,
              default='/checkpoints/discriminator/cifar_uncond', show_default=True)
@click.option('--gendir',       help='Generated images: folder of samples*.npz (without any, '
              f'DG\'s {DG_CACHE} in it), of images, or a zip', metavar='DIR',
              type=str, default='/samples/cifar_uncond_vanilla', show_default=True)
@click.option('--datadir',      help='Real images: npz, zip or folder', metavar='NPZ|ZIP|DIR', type=str,
              default='/data/true_data.npz', show_default=True)
@click.option('--img_resolution', help='Image resolution', metavar='INT', type=click.IntRange(min=1), default=32,
              show_default=True)
@click.option('--cond',         help='1: conditional on the class', metavar='INT', type=click.IntRange(min=0, max=1),
              default=0, show_default=True)
@click.option('--pretrained_classifier_ckpt', help='ADM classifier whose features are used', metavar='PATH', type=str,
              default='/checkpoints/ADM_classifier/32x32_classifier.pt', show_default=True)
@click.option('--num_data',     help='Use at most so many real and so many generated images', metavar='INT',
              type=click.IntRange(min=1), default=50000, show_default=True)
@click.option('--batch_size',   help='Images per step, over all processes', metavar='INT', type=click.IntRange(min=1),
              default=128, show_default=True)
@click.option('--epoch',        help='Passes over the images', metavar='INT', type=click.IntRange(min=1), default=50,
              show_default=True)
@click.option('--lr',           help='Learning rate', metavar='FLOAT', type=FloatRange(min=0), default=3e-4,
              show_default=True)
@click.option('--device',       help='auto, cpu, cuda or cuda:N', metavar='STR', type=str, default='auto',
              show_default=True)
# Beyond DG.
@click.option('--val_fraction', help='Share of the images to hold out and measure on; DG: 0', metavar='FLOAT',
              type=FloatRange(min=0, max=0.5), default=0.1, show_default=True)
@click.option('--patience',     help='Stop after so many epochs without a better held-out loss; 0 = never',
              metavar='INT', type=click.IntRange(min=0), default=0, show_default=True)
@click.option('--xflip',        help='Mirror half of the images', metavar='BOOL', type=bool, default=False,
              show_default=True)
@click.option('--width',        help='Channels of the discriminator; a multiple of 64', metavar='INT',
              type=click.IntRange(min=64), default=128, show_default=True)
@click.option('--depth',        help='Residual blocks of the discriminator', metavar='INT', type=click.IntRange(min=1),
              default=2, show_default=True)
@click.option('--time', 'time_convention', help='Time fed to the networks; auto: as the classifier says, else '
              'cosine at 64x64 and linear elsewhere', type=click.Choice(['auto', 'linear', 'cosine']),
              default='auto', show_default=True)
@click.option('--save_every',   help='Epochs between discriminator_<epoch>.pt', metavar='INT',
              type=click.IntRange(min=1), default=1, show_default=True)
@click.option('--seed',         help='Seed of weights, order and noise', metavar='INT', type=click.IntRange(min=0),
              default=0, show_default=True)
@click.option('--batch_gpu',    help='Images per forward pass of a process (gradient accumulation); the result '
              'changes by rounding alone  [default: the whole share]', metavar='INT', type=click.IntRange(min=1))
@click.option('--precision',    help='Arithmetic of the frozen feature extractor; the discriminator stays in float32, '
              'on GPUs in TF32 with any but fp32', type=click.Choice(['auto', 'fp32', 'tf32', 'bf16', 'fp16']),
              default='auto', show_default=True)
@click.option('--compile',      help='torch.compile; auto: on GPUs, for runs that are long enough',
              type=click.Choice(['auto', 'on', 'off']), default='auto', show_default=True)
@click.option('--max_minutes',  help='Stop after so long; the same command goes on', metavar='FLOAT',
              type=FloatRange(min=0))
@click.option('--overwrite',    help='Replace an earlier run in --savedir', is_flag=True)
@blame_machine('--batch_gpu')
def main(**opts):
    """Train a discriminator to tell real from generated images, resumable by the same command.

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
    dist.init()
    with blame('--device'):
        device = select_device(opts['device'])
    with blame('--precision'):
        dtype = select_precision(opts['precision'], device, tf32_beside_half=True)
    torch.backends.cudnn.benchmark = True
    with blame('--pretrained_classifier_ckpt'):
        extractor, time_convention = _load_extractor(opts, device, dtype)
    pairs, held_out, num_classes, sources = _load_pairs(opts, extractor.in_channels)
    torch.manual_seed(opts['seed'])
    with blame('--width'):
        net, architecture = _build(opts, extractor, num_classes, device)
    sde = VPSDE()
    loss = DiscriminatorLoss(net, functools.partial(extractor, feature=True), sde, xflip=opts['xflip'],
                             time_map=sde.t_cos if time_convention == 'cosine' else None)
    with blame('--batch_size'):
        share = share_of_batch(opts['batch_size'])
        epoch_nimg = _epoch_length(len(pairs), opts['batch_size'])
    savedir = resolve_output(opts['savedir'])
    metadata = dict(
        kind='discriminator', width=opts['width'], depth=opts['depth'], channels=architecture['in_channels'],
        resolution=opts['img_resolution'], classes=num_classes, time=time_convention,
        classifier=Path(opts['pretrained_classifier_ckpt']).name)
    hooks = EpochHooks(savedir, loss, held_out, epoch_nimg, opts, opts['batch_gpu'] or share, device,
                       functools.partial(_save_network, architecture=architecture, metadata=metadata))
    run = TrainRun(
        outdir=savedir, config=_config(opts) | sources, module=net, step_loss=loss,
        batches=BatchLoader(pairs.images, pairs.targets, opts['batch_size'], opts['seed'], device),
        batch_size=opts['batch_size'], total_nimg=opts['epoch'] * epoch_nimg, tick_nimg=epoch_nimg,
        snap_nimg=epoch_nimg, lr=lambda nimg: opts['lr'], optimizer=functools.partial(adam, weight_decay=1e-7),
        seed=opts['seed'], batch_gpu=opts['batch_gpu'], on_tick=hooks.on_tick, on_snapshot=hooks.on_snapshot,
        max_minutes=opts['max_minutes'], started=started, compile=opts['compile'], frozen=(extractor,), owns=_owns,
        overwrite=opts['overwrite'], desc='discriminator')
    try:
        with blame('--savedir'):
            result = train(run)
    except NonFiniteLoss as error:
        raise click.ClickException(f'--lr: {error}') from None
    dist.print0(f'{savedir}: {result.reason} after {result.nimg / epoch_nimg:g} epochs; {_summary(result.memory)}' +
                ('' if result.complete else '; the same command resumes'))
    dist.shutdown()
    sys.exit(143 if result.reason == 'signal' else 0)


def _config(opts: dict) -> dict:
    """The options that decide the result, not how and where the run goes; files are known by their contents."""
    how = ('device', 'savedir', 'gendir', 'datadir', 'pretrained_classifier_ckpt', 'batch_gpu', 'compile',
           'max_minutes', 'overwrite', 'save_every')
    digest = file_digest(resolve_path(opts['pretrained_classifier_ckpt']))
    return {name: value for name, value in opts.items() if name not in how} | dict(classifier_sha256=digest)


def _load_extractor(opts, device, dtype):
    """(the frozen classifier, 'linear' or 'cosine')."""
    path = opts['pretrained_classifier_ckpt']
    extractor = classifier_lib.load_classifier(path, opts['img_resolution'], device, dtype=dtype)
    convention = opts['time_convention']
    if convention == 'auto':
        convention = extractor.metadata.get('time', classifier_lib.time_convention(opts['img_resolution']))
    return extractor, convention


def _load_pairs(opts, channels):
    """(training pairs, held-out pairs, number of classes, their sources for options.json); images have `channels`.

    The classes are those of all of --datadir: the last one may be too rare for a part of it.
    """
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
        pairs, held_out = split_pairs(real, generated, opts['val_fraction'], opts['seed'])
    dist.print0(f'{len(real)} real images from {opts["datadir"]}, {len(generated)} generated ones from '
                f'{source}; {len(held_out)} of them held out')
    if len(real) != len(generated):
        dist.print0('the two counts differ: the log-ratio will be off by the logarithm of their quotient')
    if opts['patience'] and not len(held_out):
        raise click.ClickException('--patience: needs held-out images; raise --val_fraction, or leave it out')
    return pairs, held_out, real.num_classes, dict(num_real=len(real), num_generated=len(generated),
                                                   real_sha256=real.digest(), generated_sha256=generated.digest())


def _build(opts, extractor, num_classes, device):
    """(a new discriminator on the extractor's features, the arguments that made it)."""
    architecture = dict(
        image_size=opts['img_resolution'] // extractor.downsampling, in_channels=extractor.feature_channels,
        out_channels=1, classifier_width=opts['width'], classifier_depth=opts['depth'],
        num_classes=max(num_classes, EMBEDDED_CLASSES) if opts['cond'] else 0)
    return create_classifier(**architecture).to(device), architecture


def _owns(options: dict, name: str) -> bool:
    """Whether a run writes a file; discriminators of later epochs, a published one say, are not its own."""
    numbered = re.fullmatch(r'discriminator_(\d+)\.pt', name)
    if numbered:
        return int(numbered[1]) <= options.get('epoch', 0)
    return name in ('best.pt', 'best.safetensors', 'training.png')


def _epoch_length(count: int, batch_size: int) -> int:
    """Images of an epoch: whole batches, as DG, which drops the rest."""
    if count < batch_size:
        raise ValueError(f'a batch of {batch_size} needs at least as many images; there are {count} to train on')
    return count // batch_size * batch_size


def _save_network(path: Path, net, architecture: dict, metadata: dict, **measured) -> None:
    """Path.pt: a plain state dict that DG reads; path.safetensors: the same with its description."""
    if path.suffix == '.safetensors':
        checkpoint.save_network(path, net, 'create_classifier', architecture, metadata | measured)
        return
    checkpoint.save_state_dict(path, net)


class EpochHooks:
    """Measures after each epoch, keeps the best network, decides when to stop, writes files and the picture."""

    def __init__(self, savedir, loss, held_out, epoch_nimg, opts, batch_gpu, device, save):
        self.savedir, self.loss, self.held_out, self.epoch_nimg = savedir, loss, held_out, epoch_nimg
        self.opts, self.batch_gpu, self.device, self.save = opts, batch_gpu, device, save

    def on_tick(self, context: TickContext) -> dict:
        epoch = context.nimg // self.epoch_nimg
        if not len(self.held_out):
            return dict(epoch=epoch)
        logits = held_out_logits(self.loss, self.held_out, self.opts['batch_size'], self.opts['seed'], self.device,
                                 self.batch_gpu)
        scores = held_out_scores(*logits)
        memory = context.memory
        if scores['loss'] < memory.get('best_loss', math.inf):
            memory.update(best_loss=scores['loss'], best_epoch=epoch)
            if dist.get_rank() == 0:
                for name in ('best.pt', 'best.safetensors'):
                    self.save(self.savedir / name, context.module, epoch=epoch, held_out_loss=scores['loss'])
        dist.print0(f'epoch {epoch}, held out:\n{scores_table(scores)}')
        if self.opts['patience'] and epoch - memory.get('best_epoch', 0) >= self.opts['patience']:
            dist.print0(f'no better held-out loss for {self.opts["patience"]} epochs: stopping')
            context.stop()
        return dict(epoch=epoch) | {f'held_out_{name}': value for name, value in scores.items()}

    def on_snapshot(self, net, nimg: int) -> None:
        epoch, rest = divmod(nimg, self.epoch_nimg)
        if rest == 0 and (epoch % self.opts['save_every'] == 0 or epoch == self.opts['epoch']):
            self.save(self.savedir / f'discriminator_{epoch}.pt', net)
        draw(JsonLines(self.savedir / STATS_FILE).read(), self.savedir / 'training.png')


def _summary(memory: dict) -> str:
    """Which file to use."""
    if 'best_epoch' not in memory:
        return 'discriminator_*.pt'
    return f'best.pt is epoch {memory["best_epoch"]}, held-out loss {memory["best_loss"]:.4f}'


def draw(lines: list[dict], path: Path) -> None:
    """Loss and accuracy over epochs, and the last AUC over the noise level, as a picture."""
    from matplotlib.figure import Figure  # slow to import, and only one rank draws

    figure = Figure(figsize=(13, 3.6), layout='constrained')
    axes = figure.subplots(1, 3)
    for axis, name in zip(axes, ('loss', 'accuracy'), strict=False):
        for key, label in ((name, 'training'), (f'held_out_{name}', 'held out')):
            points = [(line['epoch'], line[key]) for line in lines if key in line and 'epoch' in line]
            if points:
                axis.plot(*zip(*points, strict=True), marker='.', label=label)
                axis.legend()
        axis.set(xlabel='epoch', title='BCE' if name == 'loss' else 'accuracy')
    measured = [line for line in lines if line.get('held_out_levels')]
    for line, style in [(measured[0], '--'), (measured[-1], '-')] if measured else []:
        levels = line['held_out_levels']
        sigma = [math.sqrt(level['sigma_from'] * level['sigma_to']) for level in levels]
        axes[2].plot(sigma, [level['auc'] for level in levels], style, marker='.', label=f'epoch {line["epoch"]}')
        axes[2].legend()
    axes[2].axhline(0.5, color='grey', linewidth=0.8)
    axes[2].set(xscale='log', xlabel='noise level sigma', title='held-out AUC (0.5 at large noise is expected)')
    for axis in axes:
        axis.grid(alpha=0.3)
    with atomic_write(path) as file:
        figure.savefig(file, format='png', dpi=100)


if __name__ == '__main__':
    main()
