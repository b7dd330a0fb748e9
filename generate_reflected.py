"""Draws images from a network of reflected diffusion, or measures the likelihood of images under it."""

import json
import sys

import click
import torch

from commands import options
from commands.draw import draw, open_folder
from commands.likelihood import likelihood
from commands.loading import Loaded
from commands.machine import blame_machine, compile_for_sampling, start
from commands.reflected_words import WordsCommand, sampling_arguments
from dnnlib import demo
from dnnlib.cli import FloatRange, blame
from dnnlib.download import fetch
from dnnlib.files import atomic_write, file_digest, resolve_output
from networks.reflected import load_reflected
from sampling import stream
from sampling.classifier_free import ClassifierFree
from sampling.reflected import reflected_heun, reflected_levels, reflected_ode, reflected_pc
from sampling.samples import check_class
from torch_utils import distributed as dist
from training.data import ImageData

DEFAULT_STEPS = dict(heun=18, pc=1000)
DENOISER_SIGMA = 1e-5  # the noise level that a trained denoiser is told, as published

NETWORK = [
    click.option('--network', help='.safetensors of train_reflected.py, or a run folder of the published code  '
                 '[default: the demo that ships]', metavar='PATH|DIR|URL', type=str),
    click.option('--checkpoint', help='Of a run folder: the number of its checkpoint  [default: the newest]',
                 metavar='INT', type=int, default=-1),
]
REFLECTED = [
    click.option('--label', help='As --class', metavar='INT', type=click.IntRange(min=0)),
    click.option('--w', help='Weight of classifier-free guidance', metavar='FLOAT', type=FloatRange(min=0), default=0,
                 show_default=True),
    click.option('--sampler', help='heun: probability flow at fixed levels; ode: at adaptive ones, for each image; '
                 'pc: predictor-corrector', type=click.Choice(['heun', 'ode', 'pc']), default='heun',
                 show_default=True),
    click.option('--steps', help='Steps of heun and pc  [default: 18, 1000]', metavar='INT',
                 type=click.IntRange(1, 1_000_000)),
    click.option('--corrector_steps', help='pc: Langevin steps before each predictor step', metavar='INT',
                 type=click.IntRange(min=0), default=0, show_default=True),
    click.option('--snr', help='pc: signal-to-noise ratio of Langevin steps', metavar='FLOAT', type=options.POSITIVE,
                 default=0.01, show_default=True),
    click.option('--denoiser', help='pc: what takes off the last noise; mean: x + sigma^2 score; DIR: the run folder '
                 'of a trained denoiser', metavar='none|mean|DIR', type=str, default='mean', show_default=True),
    click.option('--tolerance', help='ode: relative and absolute error of a step', metavar='FLOAT',
                 type=FloatRange(min=1e-12), default=1e-5, show_default=True),
    click.option('--moll', help='ode: slow the flow down near the walls; 0: do not', metavar='FLOAT',
                 type=FloatRange(min=0), default=200, show_default=True),
    click.option('--side', help='ode: start this far from the walls', metavar='FLOAT', type=FloatRange(0, 0.4),
                 default=0.01, show_default=True),
    click.option('--published_sampler', help='pc as published: one step fewer, steps of equal time, Langevin norms of '
                 'the whole batch, no denoiser, class 0 as the empty label', is_flag=True),
]
LIKELIHOOD = [
    click.option('--likelihood', 'data', help='Instead of drawing: bits per dimension of these images',
                 metavar='ZIP|DIR|NPZ', type=str),
    click.option('--max_images', help='Use a subset of this many images', metavar='INT', type=click.IntRange(min=1)),
    click.option('--probes', help='Random probes of the divergence for each image', metavar='INT',
                 type=click.IntRange(min=1), default=1, show_default=True),
]


@click.command(cls=WordsCommand, options_metavar='[OPTIONS] [KEY=VALUE]...',
               understand=lambda words, rest: sampling_arguments(words, rest) + rest, sections={
    'Samples': 'network', 'Reflected diffusion': 'label', 'Likelihood': 'data', 'Machine': 'device'})
@options.with_options(NETWORK, options.SAMPLES, REFLECTED, LIKELIHOOD, options.MACHINE)
@blame_machine('--batch')
def main(**opts):
    """Draw samples from a network of reflected diffusion (Lou and Ermon 2023).

    Writes what generate.py writes, and takes the published KEY=VALUE words beside its options. With --likelihood it
    writes likelihood.json.

    Examples:

    \b
    # 64 images of a network of your own, 35 evaluations each
    python generate_reflected.py --network=runs/reflected-demo/network-000400.safetensors \\
        --outdir=samples/reflected --seeds=0-63

    \b
    # A published command
    python generate_reflected.py load_dir=weights/imagenet64 label=388 w=2.5 sampling.method=ode \\
        eval.batch_size=16 eval.rounds=4

    \b
    # Bits per dimension of 1000 images, with two probes each
    python generate_reflected.py --network=runs/reflected-demo/network-000400.safetensors \\
        --outdir=samples/bpd --likelihood=data/cifar10-test.zip --max_images=1000 --probes=2
    """
    if opts['label'] is not None:
        opts['class_idx'] = opts['label']
    seeds = options.seeds_of(opts)
    machine = start(opts['device'], opts['precision'], opts['compile_mode'])
    net, origin = load_network(opts, machine)
    record = origin | dict(w=opts['w'], kind='reflected') | machine.record()
    if opts['data']:
        return measure(opts, net, machine, record)
    guidance = load_guidance(opts, net)
    sampler, own, named = choose_sampler(opts, net, machine)
    compiled = False  # the adaptive sampler's batches shrink, and each size would be compiled
    if opts['sampler'] != 'ode':
        evaluations = named['steps'] * (2 if opts['sampler'] == 'heun' else 1 + opts['corrector_steps'])
        compiled = compile_for_sampling(machine, net, None, len(seeds) * evaluations)
    folder = open_folder(resolve_output(opts['outdir']), seeds, opts, record | named | dict(compile=compiled))
    draw(stream(blame('--tolerance')(sampler), net, batch=min(opts['batch'], len(seeds)), device=machine.device,
                class_idx=opts['class_idx'], guidance=guidance, pad=compiled, **own),
         folder, decode=net.decode, overwrite=opts['overwrite'])


def load_network(opts: dict, machine) -> Loaded:
    """The network, checked against --class, and what options.json says of it."""
    source = opts['network'] or demo.DEMO_REFLECTED
    dist.print0(f'Loading network from {source}')
    with blame('--network'):
        with dist.rank0_first():  # it downloads
            net = load_reflected(source, machine.device, machine.dtype,
                                 number=None if opts['checkpoint'] < 0 else opts['checkpoint'])
    with blame('--class'):
        check_class(net, opts['class_idx'])
    digest = net.metadata.get('sha256') or file_digest(fetch(source))  # a run folder's is that of its checkpoint
    return Loaded(net, dict(network=opts['network'], network_sha256=digest, class_idx=opts['class_idx']))


def load_guidance(opts: dict, net) -> ClassifierFree | None:
    """Classifier-free guidance, if it is asked for."""
    if not opts['w']:
        return None
    if not net.label_dim:
        raise click.ClickException('--w: guidance needs a network with classes, and this one is unconditional')
    empty = torch.eye(net.label_dim)[0] if opts['published_sampler'] else None
    return ClassifierFree(opts['w'], empty)


def choose_sampler(opts: dict, net, machine):
    """(the sampler, its options, what options.json says of them)."""
    if opts['published_sampler'] and opts['sampler'] != 'pc':
        raise click.ClickException('--published_sampler: is a predictor-corrector; use --sampler=pc')
    steps = opts['steps'] or DEFAULT_STEPS.get(opts['sampler'])
    if opts['sampler'] == 'heun':
        with blame('--steps'):
            return reflected_heun, dict(levels=reflected_levels(net, steps)), dict(sampler='heun', steps=steps)
    if opts['sampler'] == 'ode':
        named = options.given(opts, 'tolerance', 'moll', 'side')
        own = dict(rtol=opts['tolerance'], atol=opts['tolerance'], moll=opts['moll'], side=opts['side'])
        return reflected_ode, own, named | dict(sampler='ode')
    named = options.given(opts, 'corrector_steps', 'snr', 'denoiser', 'published_sampler') | dict(
        sampler='pc', steps=steps)
    own = dict(num_steps=steps, corrector_steps=opts['corrector_steps'], snr=opts['snr'],
               published=opts['published_sampler'])
    return reflected_pc, own | dict(denoiser=load_denoiser(opts, net, machine)), named


def load_denoiser(opts: dict, net, machine):
    """What --denoiser names: None, 'mean', or a function of states."""
    if opts['denoiser'] in ('none', 'mean'):
        return None if opts['denoiser'] == 'none' else 'mean'
    with blame('--denoiser'):
        trained = load_reflected(opts['denoiser'], machine.device, machine.dtype, raw=True)
        if (trained.img_channels, trained.img_resolution) != (net.img_channels, net.img_resolution):
            raise ValueError(f'{opts["denoiser"]} is for images of another size')
    sigma = torch.tensor(DENOISER_SIGMA, device=machine.device)
    return torch.no_grad()(lambda x: x - trained.raw(x, sigma))


def measure(opts: dict, net, machine, record: dict) -> None:
    """Write likelihood.json, and show what is in it."""
    with blame('--likelihood'):
        data = ImageData(opts['data'], max_images=opts['max_images'], resolution=net.img_resolution,
                         channels=net.img_channels, quiet=dist.get_rank() != 0)
        if net.label_dim and (data.labels is None or data.num_classes > net.label_dim):
            raise ValueError(f'the network has {net.label_dim} classes, the images {data.num_classes or "none"}')
    with blame('--tolerance'):
        found = likelihood(net, data, probes=opts['probes'], batch=opts['batch'], device=machine.device,
                           moll=opts['moll'], rtol=opts['tolerance'], atol=opts['tolerance'])
    if dist.get_rank() == 0:
        outdir = resolve_output(opts['outdir'])
        found = record | dict(data=data.name, data_sha256=data.digest(), moll=opts['moll'],
                              tolerance=opts['tolerance']) | found
        with blame('--outdir'), atomic_write(outdir / 'likelihood.json') as file:
            file.write((json.dumps(found, indent=1) + '\n').encode())
        error = '' if found['standard_error'] is None else f' +- {found["standard_error"]:.4f}'
        spread = '' if found['probe_spread'] is None else f', {found["probe_spread"]:.4f} between probes'
        print(f'{found["bits_per_dim"]:.4f}{error} bits per dimension of {len(data)} images{spread}', flush=True)
    dist.shutdown()
    sys.exit(0)


if __name__ == '__main__':
    main()
