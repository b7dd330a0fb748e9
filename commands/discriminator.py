"""The options of train.py, and the discriminator that they describe: images, configuration, loss, files."""

import functools
from pathlib import Path

import click
import torch
import torch.nn.functional as F

from diffusion.reflected_sde import ReflectedVP
from diffusion.vpsde import VPSDE
from dnnlib.cli import FloatRange, blame
from dnnlib.files import file_digest, resolve_output, resolve_path
from dnnlib.run_folder import OPTIONS_FILE, read_options
from figures.training import draw_training
from networks import lora
from networks.classifiers import create_classifier, time_convention
from torch_utils import checkpoint
from torch_utils import distributed as dist
from training.augment import AugmentPipe
from training.data import BatchLoader, ImageData
from training.discriminator import CorrectionLoss, DiscriminatorLoss, WithAdapters
from training.held_out import PICTURE, EpochHooks, owns
from training.run import TrainResult, TrainRun, adam

from .fit import POSITIVE
from .loading import preset_of
from .options import NETWORK_PRESET

EMBEDDED_CLASSES = 1000  # rows of the label table in DG's conditional discriminators
REAL, REAL_LABELLED = '/data/true_data.npz', '/data/true_data_label.npz'  # DG's
FRACTION = FloatRange(min=0, max=1)
# Options that were added later: the configuration has them only if they are changed.
LATER = dict(wd=1e-7, dropout=0.0, augment=0.0, loss='bce', lora_rank=0, process='gaussian')
DG_CACHE = 'gen_data_for_discriminator_training.npz'  # DG's own concatenation of the shards

DATA = [
    click.option('--savedir', '--save_dir', help='Folder of the run', metavar='DIR', type=str,
                 default='/checkpoints/discriminator/cifar_uncond', show_default=True),
    click.option('--gendir', '--sample_dir', help='Generated images: folder of samples*.npz (without any, DG\'s '
                 f'{DG_CACHE} in it), of images, a zip or an npz', metavar='DIR', type=str,
                 default='/samples/cifar_uncond_vanilla', show_default=True),
    click.option('--datadir', help=f'Real images: npz, zip or folder; with --cond=1 and without this one, '
                 f'{REAL_LABELLED} if it exists', metavar='NPZ|ZIP|DIR', type=str, default=REAL, show_default=True),
    click.option('--img_resolution', help='Image resolution', metavar='INT', type=POSITIVE, default=32,
                 show_default=True),
    click.option('--cond', help='1: conditional on the class', metavar='INT', type=click.IntRange(min=0, max=1),
                 default=0, show_default=True),
    click.option('--pretrained_classifier_ckpt', help='ADM classifier whose features are used', metavar='PATH',
                 type=str, default='/checkpoints/ADM_classifier/32x32_classifier.pt', show_default=True),
    click.option('--network', help='Score network that drew --gendir; with it, `best` corrects its score best '
                 'on held-out images', metavar='PATH|URL', type=str),
    NETWORK_PRESET,
    click.option('--num_data', help='Use at most this many real and this many generated images', metavar='INT',
                 type=POSITIVE, default=50000, show_default=True),
    click.option('--val_fraction', help='Share of the images to hold out and measure on; DG: 0', metavar='FLOAT',
                 type=FloatRange(min=0, max=0.5), default=0.1, show_default=True),
]
TRAINING = [
    click.option('--width', help='Channels of the discriminator; a multiple of 64', metavar='INT',
                 type=click.IntRange(min=64), default=128, show_default=True),
    click.option('--depth', help='Residual blocks of the discriminator', metavar='INT', type=POSITIVE, default=2,
                 show_default=True),
    click.option('--dropout', help='Dropout of the discriminator', metavar='FLOAT', type=FRACTION, default=0.0,
                 show_default=True),
    click.option('--lora_rank', help='Rank of LoRA adapters of the classifier, trained too; 0: none', metavar='INT',
                 type=click.IntRange(min=-1), default=0, show_default=True),
    click.option('--loss', help='bce: tell real from generated; score: correct the score of --network on real images',
                 type=click.Choice(['bce', 'score']), default='bce', show_default=True),
    click.option('--process', help='Noise of the images; reflected: for generate_reflected.py; auto: as the '
                 'options.json in --gendir says', type=click.Choice(['auto', 'gaussian', 'reflected']), default='auto',
                 show_default=True),
    click.option('--time', 'time_convention', help='VP time that the networks read; auto: as the classifier says, else '
                 'cosine at 64x64 and linear otherwise', type=click.Choice(['auto', 'linear', 'cosine']),
                 default='auto', show_default=True),
    click.option('--epoch', '--n_epochs', help='Passes over the images', metavar='INT', type=POSITIVE, default=50,
                 show_default=True),
    click.option('--lr', help='Learning rate', metavar='FLOAT', type=FloatRange(min=0), default=3e-4,
                 show_default=True),
    click.option('--wd', help='Weight decay', metavar='FLOAT', type=FloatRange(min=0), default=1e-7,
                 show_default=True),
    click.option('--augment', help='Probability of each of EDM\'s augmentations, of real and generated images',
                 metavar='FLOAT', type=FRACTION, default=0.0, show_default=True),
    click.option('--xflip', help='Mirror half of the images', metavar='BOOL', type=bool, default=False,
                 show_default=True),
    click.option('--patience', help='Stop after this many epochs without a better held-out loss; 0 = never',
                 metavar='INT', type=click.IntRange(min=0), default=0, show_default=True),
]
FILES = [
    click.option('--save_every', help='Epochs between discriminator_<epoch>.pt', metavar='INT', type=POSITIVE,
                 default=1, show_default=True),
]


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
        dist.print0('the two counts differ: the log-ratio will be off by the logarithm of their ratio')
    return real, generated


def check_options(opts) -> None:
    """Refuse a preset of no network, and options that do not go with --loss=score."""
    if opts['network_preset'] and not opts['network']:
        raise click.ClickException('--network_preset: is the configuration of --network; give that too, or leave it '
                                   'out')
    if opts['loss'] == 'bce':
        return
    if not opts['network']:
        raise click.ClickException('--loss: score corrects the score of a network; name it with --network')
    if opts['augment']:
        raise click.ClickException('--augment: the score network does not know augmented images; use --loss=bce')
    if opts['compile'] == 'on':
        raise click.ClickException('--compile: --loss=score takes second derivatives, which torch cannot compile')
    opts['compile'] = 'off'


def settle_process(opts) -> None:
    """Replace --process=auto by what drew the generated images; refuse what reflected noise cannot have."""
    if opts['process'] == 'auto':
        with blame('--gendir'):
            drawn = read_options(resolve_path(opts['gendir']) / OPTIONS_FILE)
        opts['process'] = 'reflected' if drawn.get('kind') == 'reflected' else 'gaussian'
    if opts['process'] == 'reflected' and opts['network']:
        raise click.ClickException('--network: measures a correction of Gaussian noise, and this noise is reflected; '
                                   'leave it out')


def make_config(opts, real, generated, origin: dict) -> dict:
    """What decides the result, not how and where the run goes; files are known by their contents.

    `origin`: what options.json would say of the score network; {} if there is none.
    """
    names = ('img_resolution', 'cond', 'num_data', 'epoch', 'lr', 'val_fraction', 'patience', 'xflip', 'width',
             'depth', 'time_convention', 'seed', 'precision')
    later = {name: opts[name] for name, before in LATER.items() if opts[name] != before}
    named = dict(network_sha256=origin.get('network_sha256')) | preset_of(origin)
    later |= {name: value for name, value in named.items() if value}
    later |= dict(class_names=real.classes) if opts['cond'] else {}
    return dict(batch_size=opts['batch']) | {name: opts[name] for name in names} | dict(
        num_real=len(real), num_generated=len(generated), real_sha256=real.digest(),
        generated_sha256=generated.digest(),
        classifier_sha256=file_digest(resolve_path(opts['pretrained_classifier_ckpt']))) | later


def make_run(config, opts, extractor, score_net, pairs, held_out, epoch_nimg, classes, device, how) -> TrainRun:
    """The training run that `config` describes: a new discriminator on the extractor's features, and its adapters.

    `classes` are those of all of --datadir; the last one may be missing in the part that is trained on.
    """
    config_or_default, outdir = LATER | config, resolve_output(opts['savedir'])
    rank, dropout = config_or_default['lora_rank'], config_or_default['dropout']
    torch.manual_seed(config['seed'])  # the initial weights
    architecture = dict(
        image_size=config['img_resolution'] // extractor.downsampling, in_channels=extractor.feature_channels,
        out_channels=1, classifier_width=config['width'], classifier_depth=config['depth'],
        num_classes=max(classes, EMBEDDED_CLASSES) if config['cond'] else 0)
    architecture |= dict(dropout=dropout) if dropout else {}
    net = create_classifier(**architecture).to(device)
    if rank:
        net = WithAdapters(net, lora.adapters_of(lora.add_adapters(extractor, rank)).values())
    convention = config['time_convention']
    if convention == 'auto':
        convention = extractor.metadata.get('time', time_convention(config['img_resolution']))
    loss = make_loss(config_or_default, net, extractor, score_net, convention)
    metadata = dict(kind='discriminator', width=config['width'], depth=config['depth'],
                    channels=architecture['in_channels'], resolution=config['img_resolution'], classes=classes,
                    time=convention, classifier=Path(opts['pretrained_classifier_ckpt']).name)
    metadata |= {name: config[name] for name in ('lora_rank', 'loss', 'process') if name in config}
    hooks = EpochHooks(loss, held_out, config['batch_size'], config['seed'], epoch_nimg, config['epoch'],
                       config['patience'], opts['save_every'],
                       functools.partial(save_network, outdir, architecture, metadata, extractor if rank else None))
    return TrainRun(
        outdir=outdir, config=config, module=net, step_loss=loss, batch_size=config['batch_size'],
        batches=BatchLoader(pairs.images, pairs.targets, config['batch_size'], config['seed'], device),
        total_nimg=config['epoch'] * epoch_nimg, tick_nimg=epoch_nimg, snap_nimg=epoch_nimg,
        lr=lambda nimg: config['lr'], optimizer=functools.partial(adam, weight_decay=config_or_default['wd']),
        seed=config['seed'], on_tick=hooks.on_tick, on_snapshot=hooks.on_snapshot,
        draw=lambda lines: draw_training(lines, outdir / PICTURE), frozen=(extractor,), owns=owns,
        desc='discriminator', **how)


def make_loss(config, net, extractor, score_net, convention) -> DiscriminatorLoss:
    """The loss that `config` names, of images perturbed in the time of the VP-SDE."""
    def denoise(x, sigma, classes):
        return score_net(x, sigma, None if classes is None else F.one_hot(classes, score_net.label_dim).float())

    sde = ReflectedVP() if config['process'] == 'reflected' else VPSDE()
    kind = CorrectionLoss if config['loss'] == 'score' else DiscriminatorLoss
    return kind(net, functools.partial(extractor, feature=True), sde, xflip=config['xflip'],
                augment=AugmentPipe(config['augment']) if config['augment'] else None,
                denoise=None if score_net is None else denoise,
                time_map=sde.t_cos if convention == 'cosine' else None)


def save_network(outdir: Path, architecture: dict, metadata: dict, adapted, name: str, net, **measured) -> None:
    """name.pt: a plain state dict that DG reads; name.safetensors: the same with its description.

    The adapters of the extractor `adapted` (or None) are written beside it, those of numbered files also as the final
    ones. At reflected noise, which DG does not know and a state dict does not tell, all are safetensors.
    """
    finals = ['lora_adm_final.pt', 'lora_adm_final.safetensors']
    if 'process' in metadata:
        if name == 'best.pt':  # best.safetensors is written too
            return
        name, finals = name.replace('.pt', '.safetensors'), finals[1:]
    if adapted is not None:
        net, beside = net.discriminator, f'lora_{name.replace("discriminator_", "adm_")}'
        for file in [beside, *(finals if name.startswith('discriminator_') else [])]:
            if file.endswith('.safetensors'):
                lora.save_adapters(outdir / file, adapted, dict(classifier=metadata['classifier']) | measured)
            else:
                checkpoint.save_state(outdir / file, {key: value.detach().cpu().contiguous()
                                                      for key, value in lora.adapters_of(adapted).items()})
    if name.endswith('.safetensors'):
        checkpoint.save_network(outdir / name, net, 'create_classifier', architecture, metadata | measured)
    else:
        checkpoint.save_state_dict(outdir / name, net)


def summary(epoch_nimg: int, result: TrainResult) -> str:
    """How the run ended and which file to use."""
    ended, memory = f'{result.reason} after {result.nimg / epoch_nimg:g} epochs', result.memory
    if 'best_epoch' not in memory:
        return f'{ended}; discriminator_*'
    measure = memory.get('best_measure', 'loss')
    return f'{ended}; best.safetensors is epoch {memory["best_epoch"]}, held-out {measure} {memory["best_loss"]:.3g}'
