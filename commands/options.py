"""The command-line options that the sampling scripts share, grouped as their help shows them."""

import functools

import click
import torch

from dnnlib import demo
from dnnlib.cli import FloatRange, IntList, blame
from generation.run import choose_seeds
from torch_utils import distributed as dist
from torch_utils.compiler import compiled_or_plain, prepare_compiler, select_compile
from torch_utils.device import PRECISIONS, select_device, select_precision

CLASSIFIER = '/checkpoints/ADM_classifier/32x32_classifier.pt'
DISCRIMINATOR = '/checkpoints/discriminator/cifar_uncond/discriminator_60.pt'
POSITIVE = FloatRange(min=0, min_open=True)

SAMPLES = [
    click.option('--network', help='Score network: EDM pickle or .safetensors  [default: the demo that ships]',
                 metavar='PATH|URL', type=str),
    click.option('--outdir', help='Where to save the samples', metavar='DIR', type=str, required=True),
    click.option('--seeds', help='One sample per seed, e.g. 1,2,5-10', metavar='LIST', type=IntList()),
    click.option('--num_samples', help='Instead of --seeds: so many, from --seed on  [default: 50000]', metavar='INT',
                 type=click.IntRange(min=1)),
    click.option('--seed', help='Instead of --seeds: the first one  [default: 0]', metavar='INT',
                 type=click.IntRange(min=0)),
    click.option('--do_seed', help='Accepted from published commands; samples always follow their seeds',
                 metavar='INT', type=click.IntRange(min=0), default=0, show_default=True),
    click.option('--class', 'class_idx', help='Class label  [default: by the seed]', metavar='INT',
                 type=click.IntRange(min=0)),
    click.option('--batch', help='Images per batch and file', metavar='INT', type=click.IntRange(min=1),
                 default=100, show_default=True),
    click.option('--save_type', help='Shards of --batch images, or a picture per seed', metavar='png|npz',
                 type=click.Choice(['png', 'npz']), default='npz', show_default=True),
    click.option('--overwrite', help='Replace the samples in --outdir', is_flag=True),
]

EDM = [
    click.option('--steps', 'num_steps', help='Number of sampling steps', metavar='INT',
                 type=click.IntRange(1, 1_000_000), default=18, show_default=True),
    click.option('--sigma_min', help='Lowest noise level  [default: varies]', metavar='FLOAT', type=POSITIVE),
    click.option('--sigma_max', help='Highest noise level  [default: varies]', metavar='FLOAT', type=POSITIVE),
    click.option('--rho', help='Time step exponent', metavar='FLOAT', type=POSITIVE, default=7, show_default=True),
    click.option('--S_churn', 'S_churn', help='Stochasticity strength', metavar='FLOAT', type=FloatRange(min=0),
                 default=0, show_default=True),
    click.option('--S_min', 'S_min', help='Stoch. min noise level', metavar='FLOAT', type=FloatRange(min=0),
                 default=0, show_default=True),
    click.option('--S_max', 'S_max', help='Stoch. max noise level', metavar='FLOAT', type=FloatRange(min=0),
                 default='inf', show_default=True),
    click.option('--S_noise', 'S_noise', help='Stoch. noise inflation', metavar='FLOAT', type=FloatRange(min=0),
                 default=1, show_default=True),
]
EDM_NAMES = ('num_steps', 'sigma_min', 'sigma_max', 'rho', 'S_churn', 'S_min', 'S_max', 'S_noise')


def guidance(first_weight: float) -> list:
    """Options of discriminator guidance, `first_weight` being the default of the first-order weight."""
    return [
        click.option('--dg_weight_1st_order', help='Weight in the first evaluation of a step; both 0: no guidance',
                     metavar='FLOAT', type=FloatRange(min=0), default=first_weight, show_default=True),
        click.option('--dg_weight_2nd_order', help='Weight in the second one', metavar='FLOAT',
                     type=FloatRange(min=0), default=0., show_default=True),
        click.option('--time_min', help='Least VP time to guide at', metavar='FLOAT', type=FloatRange(0, 1),
                     default=0.01, show_default=True),
        click.option('--time_max', help='Largest VP time to guide at', metavar='FLOAT', type=FloatRange(0, 1),
                     default=1.0, show_default=True),
        click.option('--boosting', help='1: guide samples with a negative log-ratio harder', metavar='INT',
                     type=click.IntRange(min=0), default=0, show_default=True),
    ]


DISCRIMINATORS = [
    click.option('--pretrained_classifier_ckpt', metavar='PATH', type=str,
                 help=f'ADM classifier  [default: the demo\'s; with --network {CLASSIFIER}]'),
    click.option('--discriminator_ckpt', metavar='PATH', type=str,
                 help=f'Discriminator  [default: the demo\'s; with --network {DISCRIMINATOR}]'),
    click.option('--cond', help='1: the discriminator is conditional on the class', metavar='INT',
                 type=click.IntRange(0, 1), default=0, show_default=True),
    click.option('--log_ratio', type=click.Choice(['raw', 'clipped']), default='raw', show_default=True,
                 help='raw: the discriminator\'s logit; clipped: as DG published, see docs/equations.md'),
]

MACHINE = [
    click.option('--device', help='auto, cpu, cuda or cuda:N', metavar='STR', type=str, default='auto',
                 show_default=True),
    click.option('--precision', help='Arithmetic of the networks; auto: bf16 where the hardware is fast at it',
                 type=click.Choice(PRECISIONS), default='auto', show_default=True),
    click.option('--compile', 'compile_mode', help='torch.compile; auto: for runs that are long enough',
                 type=click.Choice(['auto', 'on', 'off']), default='auto', show_default=True),
]


def with_options(*groups):
    """A decorator that gives a function all options of `groups`, in this order."""
    def decorate(function):
        for option in reversed([option for group in groups for option in group]):
            function = option(function)
        return function
    return decorate


def start(opts: dict):
    """Join the process group; (seeds, device, dtype of the networks' bodies) as the options ask for."""
    dist.init()
    with blame('--seeds'):
        seeds = choose_seeds(opts['seeds'], opts['num_samples'], opts['seed'])
    if opts['S_churn'] and opts['S_min'] > opts['S_max']:
        raise click.ClickException(f'--S_min: {opts["S_min"]:g} is above --S_max, so that --S_churn would never act')
    with blame('--device'):
        device = select_device(opts['device'])
    with blame('--precision'):
        dtype = select_precision(opts['precision'], device)
        first = dist.broadcast_object(str(dtype))
        if first != str(dtype):  # ranks on unlike machines
            raise ValueError(f'{opts["precision"]} is {dtype} here and {first} in the first process; name one')
    return seeds, device, dtype


def discriminator_files(opts: dict):
    """(classifier, discriminator): as given, the demo's for the demo network, else DG's default places."""
    places = (demo.DEMO_CLASSIFIER, demo.DEMO_DISCRIMINATOR) if opts['network'] is None else (CLASSIFIER, DISCRIMINATOR)
    return opts['pretrained_classifier_ckpt'] or places[0], opts['discriminator_ckpt'] or places[1]


def compile_networks(opts: dict, net, log_ratio, device, images: int) -> bool:
    """Compile where that pays for a run of so many images; whether it does, alike on all ranks.

    On CUDA that is the score network and the log-ratio (or None), on a CPU the score network alone: there the log-ratio
    gets no faster (benchmarks/README.md). The number of ranks plays no part, so that others can resume the run.
    """
    def evaluate():
        x = torch.zeros([1, net.img_channels, net.img_resolution, net.img_resolution], device=device)
        net(x, torch.ones([1], device=device))

    mode = opts['compile_mode']
    evaluations = opts['num_steps'] if opts.get('solver') == 'euler' else 2 * opts['num_steps'] - 1
    if not dist.broadcast_object(select_compile(mode, device, evaluate, images * evaluations)):
        return False
    dist.print0('The first batch compiles the networks, which takes one to two and a half minutes')
    prepare_compiler(reproducible=device.type == 'cuda')
    choose = functools.partial(compiled_or_plain, mode)
    net.compile(dynamic=False)
    net._compiled_call_impl = choose(net._compiled_call_impl, net._call_impl)
    if log_ratio is not None and device.type == 'cuda':
        log_ratio.compile(choose)
    return True
