"""Trains the discriminator of discriminator guidance: real images against generated ones, at all noise levels."""

import functools
import time

import click
import torch

from commands import discriminator, fit, options
from commands.loading import find_classifier, load_network
from commands.machine import blame_machine, start
from commands.reflected_words import WordsCommand
from dnnlib.cli import blame
from dnnlib.files import resolve_path
from networks.classifiers import load_classifier
from torch_utils import distributed as dist
from torch_utils.device import PRECISIONS
from training.discriminator import epoch_length, split_pairs


def refuse_words(words, rest):
    raise ValueError(f'{words[0]} is a setting of reflected diffusion, but train.py trains discriminators; '
                     f'use python train_reflected.py {" ".join(words)}')


@click.command(cls=WordsCommand, understand=refuse_words, sections={
    'Images and folder': 'savedir', 'Training': 'width', 'Machine': 'device', 'Progress and files': 'save_every'})
@options.with_options(
    discriminator.DATA, discriminator.TRAINING, fit.hyperparameters(default_batch=128), fit.machine_options(
        'the frozen feature extractor; the discriminator stays in float32, on GPUs in TF32 with any but fp32',
        PRECISIONS), discriminator.FILES, fit.PROGRESS)
@blame_machine('--batch_gpu')
def main(**opts):
    """Train a discriminator to tell real from generated images; the same command again resumes.

    Writes discriminator_<epoch>.pt (state dicts as DG's), best.pt and best.safetensors (least held-out loss),
    stats.jsonl and training.png. More epochs do not mean better FID: use `best`. With --lora_rank it also writes the
    adapters of each, lora_adm_<epoch>.pt and lora_best; lora_adm_final are the last ones. Discriminators of samples of
    generate_reflected.py are trained at its noise, and are .safetensors.

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
    opts['lora_rank'] = max(opts['lora_rank'], 0)
    opts['pretrained_classifier_ckpt'] = find_classifier(opts['pretrained_classifier_ckpt'])
    if opts['cond'] and opts['datadir'] == discriminator.REAL and resolve_path(discriminator.REAL_LABELLED).is_file():
        opts['datadir'] = discriminator.REAL_LABELLED
    discriminator.check_options(opts)
    discriminator.settle_process(opts)
    machine = start(opts['device'], opts['precision'], opts['compile'], tf32_beside_half=True)
    with blame('--pretrained_classifier_ckpt'):
        extractor = load_classifier(opts['pretrained_classifier_ckpt'], opts['img_resolution'], machine.device,
                                    dtype=machine.dtype)
    if (opts['lora_rank'] or opts['loss'] == 'score') and machine.dtype == torch.float16:
        raise click.ClickException('--precision: gradients of the classifier would vanish in fp16; use bf16 or fp32')
    net, origin = load_network(opts, machine) if opts['network'] else (None, {})
    if net is not None and bool(net.label_dim) != bool(opts['cond']):
        raise click.ClickException(f'--network: it has {net.label_dim or "no"} classes; use '
                                   f'--cond={int(not opts["cond"])}')
    real, generated = discriminator.load_images(opts, extractor.in_channels)
    config = discriminator.make_config(opts, real, generated, origin)
    fit.show_config(config, opts['dry_run'])
    with blame('--gendir'):
        pairs, held_out = split_pairs(real, generated, config['val_fraction'], config['seed'])
    if config.get('loss') == 'score':
        pairs = pairs.only_real()
    dist.print0(f'{len(held_out)} of {len(real)} real and {len(generated)} generated images are held out')
    if config['patience'] and not len(held_out):
        raise click.ClickException('--patience: needs held-out images; raise --val_fraction, or leave it out')
    with blame('--batch'):
        epoch_nimg = epoch_length(len(pairs), config['batch_size'])
    with blame('--width'):
        run = discriminator.make_run(config, opts, extractor, net, pairs, held_out, epoch_nimg, real.num_classes,
                                     machine.device, fit.run_options(opts, started))
    fit.fit(run, '--savedir', functools.partial(discriminator.summary, epoch_nimg))


if __name__ == '__main__':
    main()
