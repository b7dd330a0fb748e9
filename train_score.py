"""Trains an EDM score network on a zip, a folder or an npz of images."""

import functools
import time

import click
import torch

import networks
from commands import fit, options
from commands.machine import blame_machine, start
from commands.score import DATA, FILES, NETWORK, PRECONDITIONS, TRAINING, make_config
from diffusion import losses
from dnnlib.cli import SectionedCommand, blame
from dnnlib.files import resolve_output
from torch_utils import distributed as dist
from training.augment import AugmentPipe
from training.data import BatchLoader, ImageData
from training.ema import Ema
from training.run import TrainRun, adam
from training.score import Snapshots, learning_rate, score_step


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
