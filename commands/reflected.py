"""Reflected diffusion from the command line: its options, networks and samplers."""

import click
import torch

from dnnlib import demo
from dnnlib.cli import FloatRange, blame
from dnnlib.download import fetch
from dnnlib.files import file_digest
from networks.reflected import load_reflected
from sampling.classifier_free import ClassifierFree
from sampling.reflected import reflected_heun, reflected_levels, reflected_ode, reflected_pc
from sampling.samples import check_class
from torch_utils import distributed as dist

from .loading import Loaded
from .options import POSITIVE, given

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
    click.option('--snr', help='pc: signal-to-noise ratio of Langevin steps', metavar='FLOAT', type=POSITIVE,
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


def classifier_free(opts: dict, net) -> ClassifierFree | None:
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
    if opts['dg_weight_2nd_order'] and opts['sampler'] != 'heun':
        raise click.ClickException('--dg_weight_2nd_order: the steps of this --sampler have no second evaluation; '
                                   'leave it out')
    steps = opts['steps'] or DEFAULT_STEPS.get(opts['sampler'])
    if opts['sampler'] == 'heun':
        with blame('--steps'):
            return reflected_heun, dict(levels=reflected_levels(net, steps)), dict(sampler='heun', steps=steps)
    if opts['sampler'] == 'ode':
        named = given(opts, 'tolerance', 'moll', 'side')
        own = dict(rtol=opts['tolerance'], atol=opts['tolerance'], moll=opts['moll'], side=opts['side'])
        return reflected_ode, own, named | dict(sampler='ode')
    denoiser, origin = load_denoiser(opts, net, machine)
    named = given(opts, 'corrector_steps', 'snr', 'published_sampler') | origin | dict(sampler='pc', steps=steps)
    return reflected_pc, dict(num_steps=steps, corrector_steps=opts['corrector_steps'], snr=opts['snr'],
                              published=opts['published_sampler'], denoiser=denoiser), named


def load_denoiser(opts: dict, net, machine) -> Loaded:
    """What --denoiser names (None, 'mean', or a function of states), and what options.json says of it."""
    record = given(opts, 'denoiser')
    if opts['denoiser'] in ('none', 'mean'):
        return Loaded(None if opts['denoiser'] == 'none' else 'mean', record)
    with blame('--denoiser'):
        trained = load_reflected(opts['denoiser'], machine.device, machine.dtype, raw=True)
        if (trained.img_channels, trained.img_resolution) != (net.img_channels, net.img_resolution):
            raise ValueError(f'{opts["denoiser"]} is for images of another size')
    sigma = torch.tensor(DENOISER_SIGMA, device=machine.device)
    digest = trained.metadata.get('sha256') or file_digest(fetch(opts['denoiser']))
    return Loaded(torch.no_grad()(lambda x: x - trained.raw(x, sigma)), record | dict(denoiser_sha256=digest))
