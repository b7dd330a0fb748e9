"""Train an EDM score network on a zip, a folder or an npz of images."""

import functools
import json
import sys
import time

import click
import torch

import networks
from commands.machine import blame_machine
from diffusion import losses
from dnnlib.cli import FloatRange, blame
from dnnlib.files import resolve_output
from torch_utils import distributed as dist
from torch_utils.device import select_device, select_precision
from training.augment import AugmentPipe
from training.data import BatchLoader, ImageData
from training.ema import Ema
from training.loop import share_of_batch, train
from training.run import NonFiniteLoss, TrainRun, adam
from training.score import Snapshots, learning_rate, score_step

# What the presets give is stated in the README, with the commands that measured it.
PRESETS = {
    # DDPM++ with 64 channels, 5.0 million weights: coarse but recognisable images from 2 CPU cores in 3 to 4 hours.
    'cifar10-demo': dict(
        network=dict(model_channels=64, channel_mult=[1, 2, 2], num_blocks=1, attn_resolutions=[16]),
        precond='edm', kimg=400, batch=64, lr=1e-3, rampup_kimg=20, decay=0.5, betas=[0.9, 0.99],
        ema_kimg=500, ema_rampup=0.05, dropout=0.0, augment=0.0, xflip=True),
    # As published (Karras et al. 2022, table 7): FID 1.97 unconditional, 1.79 conditional; 2 days on 8 V100.
    'cifar10-edm': dict(
        network=dict(model_channels=128, channel_mult=[2, 2, 2], num_blocks=4, attn_resolutions=[16]),
        precond='edm', kimg=200_000, batch=512, lr=1e-3, rampup_kimg=10_000, decay=0.0, betas=[0.9, 0.999],
        ema_kimg=500, ema_rampup=0.05, dropout=0.13, augment=0.12, xflip=False),
}
PRECONDITIONS = {'edm': ('EDMPrecond', 'EDMLoss'), 'vp': ('VPPrecond', 'VPLoss'), 've': ('VEPrecond', 'VELoss')}


def make_config(preset, data, cond, max_images, seed, precision, channels, blocks, **given) -> dict:
    """The whole configuration of a run: the preset, and what the options change of it."""
    config = json.loads(json.dumps(PRESETS[preset]))
    config.update({name: value for name, value in given.items() if value is not None})
    network = config['network']
    network.update(model_type='SongUNet', dropout=config.pop('dropout'),
                   augment_dim=AugmentPipe.label_dim if config['augment'] > 0 else 0)
    if channels is not None:
        network['model_channels'] = channels
    if blocks is not None:
        network['num_blocks'] = blocks
    return config | dict(preset=preset, data=data.name, images=len(data), data_sha256=data.digest(), cond=cond,
                         seed=seed, precision=precision, max_images=max_images, resolution=data.resolution,
                         img_channels=data.channels, classes=data.num_classes)


def make_network(config, device, dtype):
    """The network in training, and its loss."""
    precond, loss = PRECONDITIONS[config['precond']]
    torch.manual_seed(config['seed'])  # the initial weights
    kwargs = dict(img_resolution=config['resolution'], img_channels=config['img_channels'], label_dim=config['classes'])
    net = networks.construct(precond, kwargs | config['network']).to(device)
    networks.set_precision(net, dtype, training=True)
    return net, getattr(losses, loss)()


def make_run(config, data, outdir, device, dtype, options, started):
    """The training run that `config` describes."""
    net, loss = make_network(config, device, dtype)
    total = config['kimg'] * 1000
    metadata = {name: config[name] for name in ('preset', 'data', 'images', 'kimg', 'batch', 'seed')}
    return TrainRun(
        outdir=outdir, config=config, module=net, seed=config['seed'],
        batches=BatchLoader(data.images, data.labels, config['batch'], config['seed'], device),
        step_loss=score_step(net, loss, config['xflip'], AugmentPipe(config['augment']) if config['augment'] else None),
        batch_size=config['batch'], batch_gpu=options['batch_gpu'], total_nimg=total,
        lr=learning_rate(config['lr'], config['rampup_kimg'] * 1000, total, config['decay']),
        optimizer=functools.partial(adam, betas=tuple(config['betas'])),
        ema=Ema(net, config['ema_kimg'] * 1000, config['ema_rampup']),
        tick_nimg=options['tick'] * 1000, snap_nimg=options['snap'] * 1000,
        on_snapshot=Snapshots(outdir, networks.save_network, options['keep'], metadata),
        state_sec=options['save_minutes'] * 60, max_minutes=options['max_minutes'], started=started,
        compile=options['compile'], overwrite=options['overwrite'], desc='train_score')


POSITIVE = click.IntRange(min=1)
FRACTION = FloatRange(min=0, max=1)
BY_PRESET = '[default: by preset]'


@click.command()
# What to train on what.
@click.option('--outdir',       help='Folder of the run', metavar='DIR', type=str, required=True)
@click.option('--data',         help='Training images: EDM-style zip, folder, npz',
              metavar='ZIP|DIR|NPZ', type=str, required=True)
@click.option('--preset',       help='Network and hyperparameters to start from',
              type=click.Choice(list(PRESETS)), default='cifar10-demo', show_default=True)
@click.option('--cond',         help='Train a class-conditional network',
              metavar='BOOL', type=bool, default=False, show_default=True)
@click.option('--max_images',   help='Use a subset of so many images', metavar='INT', type=POSITIVE)
# Hyperparameters.
@click.option('--precond',      help=f'Preconditioning and loss  {BY_PRESET}', type=click.Choice(list(PRECONDITIONS)))
@click.option('--channels',     help=f'Channels of the first level  {BY_PRESET}',
              metavar='INT', type=click.IntRange(min=8))
@click.option('--blocks',       help=f'Residual blocks per level  {BY_PRESET}', metavar='INT', type=POSITIVE)
@click.option('--kimg',         help=f'Thousands of images to train on  {BY_PRESET}', metavar='KIMG', type=POSITIVE)
@click.option('--batch',        help=f'Images per step, over all processes  {BY_PRESET}',
              metavar='INT', type=POSITIVE)
@click.option('--lr',           help=f'Learning rate  {BY_PRESET}',
              metavar='FLOAT', type=FloatRange(min=0, min_open=True))
@click.option('--decay',        help=f'Last part of the run in which the learning rate falls to 0  {BY_PRESET}',
              metavar='FLOAT', type=FRACTION)
@click.option('--ema', 'ema_kimg', help=f'Half-life of the weight average  {BY_PRESET}',
              metavar='KIMG', type=FloatRange(min=0))
@click.option('--dropout',      help=f'Dropout probability  {BY_PRESET}', metavar='FLOAT', type=FRACTION)
@click.option('--augment',      help=f'Probability of each augmentation, 0 for none  {BY_PRESET}',
              metavar='FLOAT', type=FRACTION)
@click.option('--xflip',        help=f'Mirror half of the images  {BY_PRESET}', metavar='BOOL', type=bool)
@click.option('--seed',         help='Seed of weights, data order and noise',
              metavar='INT', type=click.IntRange(min=0), default=0, show_default=True)
# Machine.
@click.option('--device',       help='auto, cpu, cuda or cuda:0',
              metavar='STR', type=str, default='auto', show_default=True)
@click.option('--precision',    help='Arithmetic of the U-Net; weights stay in float32',
              type=click.Choice(['auto', 'fp32', 'tf32', 'bf16']), default='auto', show_default=True)
@click.option('--compile',      help='torch.compile; auto: on GPUs, for runs that are long enough',
              type=click.Choice(['auto', 'on', 'off']), default='auto', show_default=True)
@click.option('--batch_gpu',    help='Images per forward pass; less memory, and the same result but for rounding '
              "and, with --dropout, its masks, which follow from how a batch is divided  [default: the whole share]",
              metavar='INT', type=POSITIVE)
# Progress and files.
@click.option('--max_minutes',  help='Stop in good order after so long; the same command resumes',
              metavar='FLOAT', type=FloatRange(min=0, min_open=True))
@click.option('--tick',         help='Interval of progress lines',
              metavar='KIMG', type=POSITIVE, default=10, show_default=True)
@click.option('--snap',         help='Interval of network files',
              metavar='KIMG', type=POSITIVE, default=100, show_default=True)
@click.option('--keep',         help='Keep network files at multiples of this, 0: the newest alone',
              metavar='KIMG', type=click.IntRange(min=0), default=0, show_default=True)
@click.option('--save_minutes', help='Interval of the training state',
              metavar='FLOAT', type=FloatRange(min=0), default=5, show_default=True)
@click.option('--overwrite',    help='Start anew in a folder that holds another run', is_flag=True)
@click.option('-n', '--dry_run', '--dry-run', help='Print the configuration and exit', is_flag=True)
@blame_machine('--batch_gpu')
def main(outdir, data, preset, cond, max_images, device, precision, dry_run, **options):
    """Train an EDM score network (Karras et al. 2022) that generate.py can sample from.

    The same command run again resumes; other options in the same folder are refused. Writes
    network-<kimg>.safetensors (averaged weights), stats.jsonl, options.json and training-state.pt.

    Examples:

    \b
    # The small network of the demo, on a CPU, 3 to 4 hours on 2 cores with bfloat16
    python train_score.py --outdir=runs/demo --data=data/cifar10-train.zip

    \b
    # The same on a GPU, longer
    python train_score.py --outdir=runs/demo-gpu --data=data/cifar10-train.zip --kimg=10000 --batch=512

    \b
    # The published class-conditional CIFAR-10 configuration on 8 GPUs
    torchrun --standalone --nproc_per_node=8 train_score.py --outdir=runs/edm \\
        --data=data/cifar10-train.zip --preset=cifar10-edm --cond=1
    """
    started = time.monotonic()
    dist.init()
    outdir = resolve_output(outdir)
    with blame('--device'):
        device = select_device(device)
    with blame('--precision'):
        dtype = select_precision(precision, device)
    with blame('--data'):
        images = ImageData(data, max_images=max_images)
        if cond and images.labels is None:
            raise ValueError(f'{data} has no labels; train without --cond, or add labels (see dataset_tool.py)')
        if not cond:
            images.labels = None
    hyper = {name: options.pop(name) for name in ('precond', 'channels', 'blocks', 'kimg', 'batch', 'lr', 'decay',
                                                  'ema_kimg', 'dropout', 'augment', 'xflip', 'seed')}
    config = make_config(preset, images, cond, max_images, precision=precision, **hyper)
    dist.print0(json.dumps(config, indent=2))
    if dry_run:
        return
    torch.backends.cudnn.benchmark = True
    with blame('--batch'):
        share_of_batch(config['batch'])
    with blame('--preset/--channels'):
        run = make_run(config, images, outdir, device, dtype, options, started)
    try:
        with blame('--outdir'):
            result = train(run)
    except NonFiniteLoss as error:
        raise click.ClickException(f'--lr: {error}') from None
    dist.print0(f'{outdir}: {result.nimg / 1000:g} kimg, {result.reason}' +
                ('' if result.complete else '; the same command resumes'))
    dist.shutdown()
    sys.exit(143 if result.reason == 'signal' else 0)


if __name__ == '__main__':
    main()
