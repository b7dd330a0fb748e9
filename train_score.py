"""Trains an EDM score network on a zip, a folder or an npz of images."""

import functools
import json
import time

import click
import torch

import networks
from commands import fit, options
from commands.machine import blame_machine, start
from diffusion import losses
from dnnlib.cli import FloatRange, SectionedCommand, blame
from dnnlib.download import fetch
from dnnlib.files import file_digest, resolve_output
from torch_utils import distributed as dist
from training.augment import AugmentPipe
from training.data import BatchLoader, ImageData
from training.ema import Ema
from training.run import TrainRun, adam
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
OF_THE_DATA = ('img_resolution', 'img_channels', 'label_dim')  # arguments of a network that the images decide
OPTIONS = dict(resolution='--data', img_channels='--data', classes='--cond', model_channels='--channels',
               num_blocks='--blocks', precond='--precond', augment_dim='--augment')  # what a network has to fit
FRACTION = FloatRange(min=0, max=1)


def refuse_resume(context, parameter, value):
    if value is not None:
        raise click.ClickException('--resume: a training state of EDM holds code, which is never run here; name the '
                                   'network-snapshot-*.pkl beside it by --transfer (the same command resumes a run)')


DATA = [
    click.option('--outdir', help='Folder of the run', metavar='DIR', type=str, required=True),
    click.option('--data', help='Training images: EDM-style zip, folder, npz', metavar='ZIP|DIR|NPZ', type=str,
                 required=True),
    click.option('--cond', help='Train a class-conditional network', metavar='BOOL', type=bool, default=False,
                 show_default=True),
    click.option('--max_images', help='Use a subset of this many images', metavar='INT', type=fit.POSITIVE),
]
NETWORK = [
    click.option('--preset', help='Network and hyperparameters to start from', type=click.Choice(list(PRESETS)),
                 default='cifar10-demo', show_default=True),
    click.option('--transfer', help='Start from the weights and the architecture of this score network',
                 metavar='PATH|URL', type=str),
    click.option('--resume', hidden=True, type=str, callback=refuse_resume, expose_value=False),
    click.option('--precond', help=f'Preconditioning and loss  {fit.BY_PRESET}',
                 type=click.Choice(list(PRECONDITIONS))),
    click.option('--channels', help=f'Channels of the first level  {fit.BY_PRESET}', metavar='INT',
                 type=click.IntRange(min=8)),
    click.option('--blocks', help=f'Residual blocks per level  {fit.BY_PRESET}', metavar='INT', type=fit.POSITIVE),
    click.option('--dropout', help=f'Dropout probability  {fit.BY_PRESET}', metavar='FLOAT', type=FRACTION),
]
TRAINING = [
    click.option('--kimg', help=f'Thousands of images to train on  {fit.BY_PRESET}', metavar='KIMG',
                 type=fit.POSITIVE),
    click.option('--lr', help=f'Learning rate  {fit.BY_PRESET}', metavar='FLOAT',
                 type=FloatRange(min=0, min_open=True)),
    click.option('--decay', help=f'Last part of the run in which the learning rate falls to 0  {fit.BY_PRESET}',
                 metavar='FLOAT', type=FRACTION),
    click.option('--ema', 'ema_kimg', help=f'Half-life of the weight average  {fit.BY_PRESET}', metavar='KIMG',
                 type=FloatRange(min=0)),
    click.option('--augment', help=f'Probability of each augmentation, 0 for none  {fit.BY_PRESET}',
                 metavar='FLOAT', type=FRACTION),
    click.option('--xflip', help=f'Mirror half of the images  {fit.BY_PRESET}', metavar='BOOL', type=bool),
]
FILES = [
    click.option('--tick', help='Interval of progress lines', metavar='KIMG', type=fit.POSITIVE, default=10,
                 show_default=True),
    click.option('--snap', help='Interval of network files', metavar='KIMG', type=fit.POSITIVE, default=100,
                 show_default=True),
    click.option('--keep', help='Keep network files at multiples of this; 0: only the newest', metavar='KIMG',
                 type=click.IntRange(min=0), default=0, show_default=True),
    click.option('--save_minutes', help='Interval of the training state', metavar='FLOAT', type=FloatRange(min=0),
                 default=5, show_default=True),
]


@click.command(cls=SectionedCommand, sections={
    'Images and folder': 'outdir', 'Network': 'preset', 'Training': 'kimg', 'Machine': 'device',
    'Progress and files': 'tick'})
@options.with_options(DATA, NETWORK, TRAINING, fit.hyperparameters(), fit.machine_options(
    'the U-Net; weights stay in float32', except_for=' and, with --dropout, its masks'), FILES, fit.PROGRESS)
@blame_machine('--batch_gpu')
def main(**opts):
    """Train an EDM score network (Karras et al. 2022) that generate.py can sample from.

    The same command again resumes; other options in the same folder are refused. Writes
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

    \b
    # Fine-tune the network that ships with the repository on other images
    python train_score.py --outdir=runs/tuned --data=data/my-images-32x32.zip --lr=1e-4 \\
        --transfer=checkpoints/demo/score.safetensors
    """
    started = time.monotonic()
    machine = start(opts['device'], opts['precision'], opts['compile'])
    with blame('--data'):
        images = ImageData(opts['data'], max_images=opts['max_images'], quiet=dist.get_rank() != 0)
        if opts['cond'] and images.labels is None:
            raise ValueError(f'{opts["data"]} has no labels; train without --cond, or add labels (see '
                             f'dataset_tool.py)')
        if not opts['cond']:
            images.labels = None
    with blame('--transfer'):
        with dist.rank0_first():  # it downloads
            source = opts['transfer'] and networks.load_network(opts['transfer'])
        config = make_config(opts, images, source)
    fit.show_config(config, opts['dry_run'])
    with blame('--preset/--channels'):
        net = make_network(config, machine, source)
    fit.fit(make_run(config, net, images, resolve_output(opts['outdir']), machine.device, opts['snap'], opts['keep'],
                     dict(tick_nimg=opts['tick'] * 1000, state_sec=opts['save_minutes'] * 60)
                     | fit.run_options(opts, started)))


def make_config(opts: dict, data: ImageData, source=None) -> dict:
    """The whole configuration of a run: the preset, what the options change of it, and the network `source` if any.

    Raises ValueError if `source` does not fit the images or the options.
    """
    config = json.loads(json.dumps(PRESETS[opts['preset']]))
    config.update({name: opts[name] for name in config if opts.get(name) is not None})
    asked = {name: opts[option] for name, option in (('model_channels', 'channels'), ('num_blocks', 'blocks'))
             if opts[option] is not None}
    network = config['network'] | dict(model_type='SongUNet') | asked
    network['augment_dim'] = AugmentPipe.label_dim if config['augment'] > 0 else 0
    config |= {name: opts[name] for name in ('preset', 'cond', 'seed', 'precision', 'max_images')} | dict(
        data=data.name, images=len(data), data_sha256=data.digest(), resolution=data.resolution,
        img_channels=data.channels, classes=data.num_classes)
    if opts['cond']:
        config['class_names'] = data.classes
    if source is not None:
        config['precond'], network = _adopt(source, config, asked, opts['precond'])
        config['transfer_sha256'] = file_digest(fetch(opts['transfer']))
    return config | dict(network=network | dict(dropout=config.pop('dropout')))


def _adopt(source, config: dict, asked: dict, precond: str | None) -> tuple[str, dict]:
    """(preconditioning, arguments of the U-Net) of the network `source`. Raises ValueError if they are not `asked`."""
    found = next((name for name, (made_by, _) in PRECONDITIONS.items() if made_by == source.constructor), None)
    if found is None:
        raise ValueError(f'{source.constructor} cannot be trained here, only {", ".join(PRECONDITIONS)}')
    kwargs = {name: value for name, value in source.init_kwargs.items() if name not in OF_THE_DATA}
    theirs = dict(kwargs, resolution=source.img_resolution, img_channels=source.img_channels,
                  classes=source.label_dim, precond=found, augment_dim=kwargs.get('augment_dim', 0))
    wanted = {name: config[name] for name in ('resolution', 'img_channels', 'classes')} | asked
    wanted |= {} if precond is None else dict(precond=precond)
    wanted |= dict(augment_dim=AugmentPipe.label_dim) if config['augment'] > 0 else {}
    differences = [f'{name} {theirs.get(name)}, not {value} ({OPTIONS[name]})' for name, value in wanted.items()
                   if theirs.get(name) != value]
    if differences:
        raise ValueError(f'the network does not fit the other options: it has {"; ".join(differences)}')
    return found, kwargs


def make_network(config: dict, machine, source=None):
    """The network in training, with the weights of `source` if there is one."""
    torch.manual_seed(config['seed'])  # the initial weights
    kwargs = dict(img_resolution=config['resolution'], img_channels=config['img_channels'], label_dim=config['classes'])
    net = networks.construct(PRECONDITIONS[config['precond']][0], kwargs | config['network'])
    if source is not None:
        net.load_state_dict(source.state_dict())
    return networks.set_precision(net.to(machine.device), machine.dtype, training=True)


def make_run(config: dict, net, data: ImageData, outdir, device, snap: int, keep: int, how: dict) -> TrainRun:
    """The training run that `config` describes; a network file every `snap` kimg, kept every `keep`."""
    total = config['kimg'] * 1000
    metadata = {name: config[name] for name in ('preset', 'data', 'images', 'kimg', 'batch', 'seed')}
    loss = getattr(losses, PRECONDITIONS[config['precond']][1])()
    return TrainRun(
        outdir=outdir, config=config, module=net, seed=config['seed'], batch_size=config['batch'], total_nimg=total,
        batches=BatchLoader(data.images, data.labels, config['batch'], config['seed'], device),
        step_loss=score_step(net, loss, config['xflip'], AugmentPipe(config['augment']) if config['augment'] else None),
        lr=learning_rate(config['lr'], config['rampup_kimg'] * 1000, total, config['decay']),
        optimizer=functools.partial(adam, betas=tuple(config['betas'])),
        ema=Ema(net, config['ema_kimg'] * 1000, config['ema_rampup']), snap_nimg=snap * 1000,
        on_snapshot=Snapshots(outdir, networks.save_network, keep, metadata), desc='train_score', **how)


if __name__ == '__main__':
    main()
