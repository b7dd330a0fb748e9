"""The options of train_score.py, its presets, and the configuration that follows from them."""

import json

import click

from dnnlib.cli import FloatRange
from dnnlib.download import fetch
from dnnlib.files import file_digest
from training.augment import AugmentPipe
from training.data import ImageData

from . import fit

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
OF_THE_DATA = ('img_resolution', 'img_channels', 'label_dim')  # arguments of a network that follow from the images
OPTIONS = dict(resolution='--data', img_channels='--data', classes='--cond', model_channels='--channels',
               num_blocks='--blocks', precond='--precond', augment_dim='--augment')  # to fit --transfer
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
    click.option('--decay', help=f'Last fraction of the run, in which the learning rate falls to 0  {fit.BY_PRESET}',
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


def make_config(opts: dict, data: ImageData, source=None) -> dict:
    """The whole configuration of a run: the preset, the options that change it, and the network `source`, if any.

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
    """(preconditioning, arguments of the U-Net) of the network `source`. Raises ValueError unless they fit `asked`."""
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
