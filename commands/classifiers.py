"""The options of train_classifier.py and its kinds of classifier: the network, loss and files of each."""

import functools

import click
import torch

from diffusion.vpsde import VPSDE
from dnnlib.cli import FloatRange
from dnnlib.files import only_a_picture
from metrics.feature_net import FeatureNet, save_feature_net
from networks.classifiers import new_classifier, time_convention
from networks.noise_level import NoiseLevelNet, save_noise_level
from torch_utils import checkpoint
from training.classifier import CleanClassifierLoss, NoisyClassifierLoss
from training.noise_level import NoiseLevelLoss, calibration

from . import fit, options

FILES = dict(adm=('classifier.safetensors', 'classifier.pt'), features=('features.safetensors',),
             noise_level=('noise_level.safetensors', 'calibration.png'))  # by model

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
    click.option('--test_data', help='Labelled images to measure on; without them a part of --data is held out',
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
    click.option('--time', 'time_convention', help='VP time that adm reads; auto: cosine at 64x64, else linear',
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


def make_config(opts: dict) -> dict:
    """All that decides the result, except the images: the preset with the given options in place of its own."""
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


def build(config: dict, data, classes: int, machine, held_out):
    """(fields of TrainRun that a kind of network decides, a function that writes its files). Raises ValueError."""
    builders = dict(adm=_build_adm, features=_build_features, noise_level=_build_noise_level)
    return builders[config['model']](config, data, classes, machine, held_out)


def _build_adm(config, data, classes, machine, held_out):
    """ADM's classifier at VP noise."""
    convention, sde = config['time_convention'], VPSDE()
    if convention == 'auto':
        convention = time_convention(data.resolution)
    kwargs = dict(image_size=data.resolution, in_channels=data.channels, out_channels=classes,
                  classifier_width=config['width'], classifier_depth=config['depth'],
                  classifier_attention_resolutions=config['attention'])
    net = new_classifier(kwargs, machine.dtype, machine.device)
    loss = NoisyClassifierLoss(net, sde, sde.t_cos if convention == 'cosine' else None, config['xflip'],
                               config['shift'])
    optimizer = functools.partial(torch.optim.AdamW, lr=0.0, weight_decay=config['weight_decay'], fused=True)
    described = dict(kind='classifier', width=config['width'], depth=config['depth'], channels=data.channels,
                     resolution=data.resolution, classes=classes, time=convention)

    def save(outdir, net, metadata):
        described_file, plain_file = FILES['adm']
        checkpoint.save_network(outdir / described_file, net, 'create_classifier', kwargs, metadata | described)
        checkpoint.save_state_dict(outdir / plain_file, net)

    return dict(module=net, step_loss=loss, optimizer=optimizer, max_grad_norm=1.0), save


def _build_features(config, data, classes, machine, held_out):
    """The network behind FD-CIFAR10."""
    net = FeatureNet(num_classes=classes, img_channels=data.channels, img_resolution=data.resolution)
    net.to(machine.device)

    def forward(x):
        with torch.autocast(machine.device.type, dtype=machine.dtype, enabled=machine.dtype != torch.float32):
            return net(x)

    loss = CleanClassifierLoss(forward, config['xflip'], config['shift'])
    optimizer = functools.partial(torch.optim.SGD, lr=0.0, momentum=0.9, nesterov=True,
                                  weight_decay=config['weight_decay'])
    return dict(module=net, step_loss=loss, optimizer=optimizer), lambda outdir, net, metadata: save_feature_net(
        outdir / FILES['features'][0], net, metadata)


def _build_noise_level(config, data, levels, machine, held_out):
    net = NoiseLevelNet(data.resolution, data.channels, config['sigma_min'], config['sigma_max'], levels)
    net.to(machine.device)

    def forward(x):
        with torch.autocast(machine.device.type, dtype=machine.dtype, enabled=machine.dtype != torch.float32):
            return net(x)

    def write(outdir, net, metadata):
        network_file, picture = FILES['noise_level']
        save_noise_level(outdir / network_file, net, metadata)
        if held_out is not None:
            found = calibration(net, net.sigmas, held_out[0])
            with only_a_picture(outdir):
                from figures.calibration import calibration_curve  # here: matplotlib is slow to import, or broken
                from figures.canvas import save

                save(calibration_curve(found), outdir / picture)

    optimizer = functools.partial(torch.optim.Adam, lr=0.0, weight_decay=config['weight_decay'], fused=True)
    loss = NoiseLevelLoss(forward, net.sigmas, config['xflip'], config['shift'])
    return dict(module=net, step_loss=loss, optimizer=optimizer), write
