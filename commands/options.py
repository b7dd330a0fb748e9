"""The options that the sampling scripts share, grouped as their help shows them, and the values that follow."""

import inspect
import re
from pathlib import Path

import click

from diffusion.schedules import DISCRETIZATIONS, SCALINGS, SCHEDULES
from dnnlib.cli import FloatRange, IntList, blame
from dnnlib.files import resolve_path
from generation.run import choose_seeds
from sampling import SAMPLERS
from sampling.ablation import SOLVERS
from sampling.guidance import BOOSTINGS
from sampling.levels import Churn, Levels, edm_levels, listed_levels
from sampling.multistep import MULTISTEP
from sampling.particles import RESAMPLING
from torch_utils.device import PRECISIONS

from .loading import CLASSIFIER, DISCRIMINATOR

POSITIVE = FloatRange(min=0, min_open=True)

NETWORK_PRESET = click.option(
    '--network_preset', help='Configuration of a score_sde or Soft-Truncation checkpoint: the name of a published one, '
    'or its YAML  [default: the name of its folder]', metavar='NAME|YAML', type=str)
NETWORK = [
    click.option('--network', help='Score network: EDM pickle, .safetensors, or .pth of score_sde or Soft-Truncation  '
                 '[default: the demo that ships]', metavar='PATH|URL', type=str),
    NETWORK_PRESET,
]
CLASS = click.option('--class', 'class_idx', help='Class label  [default: by the seed]', metavar='INT',
                     type=click.IntRange(min=0))
SAMPLES = [
    click.option('--outdir', help='Where to save the samples', metavar='DIR', type=str, required=True),
    click.option('--seeds', help='One sample per seed, e.g. 1,2,5-10', metavar='LIST', type=IntList()),
    click.option('--num_samples', help='Instead of --seeds: how many, from --seed on  [default: 50000]', metavar='INT',
                 type=click.IntRange(min=1)),
    click.option('--seed', help='Instead of --seeds: the first one  [default: 0]', metavar='INT',
                 type=click.IntRange(min=0)),
    click.option('--do_seed', help='Accepted from published commands; samples always follow their seeds',
                 metavar='INT', type=click.IntRange(min=0), default=0, show_default=True),
    CLASS,
    click.option('--batch', help='Images per batch and file', metavar='INT', type=click.IntRange(min=1),
                 default=100, show_default=True),
    click.option('--save_type', '--save_format', help='Shards of --batch images, or a picture per seed',
                 metavar='png|npz', type=click.Choice(['png', 'npz']), default='npz', show_default=True),
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
LEVEL_NAMES = ('num_steps', 'sigma_min', 'sigma_max', 'rho', 'S_churn', 'S_min', 'S_max', 'S_noise')

ABLATION = [
    click.option('--sampler', help='Sampler', type=click.Choice([*SAMPLERS]), default='edm', show_default=True),
    click.option('--set', 'sampler_options', help="An option of --sampler's own, repeatable", metavar='NAME=VALUE',
                 type=str, multiple=True),
    click.option('--solver', help='Ablate ODE solver (euler, heun), or one evaluation per step',
                 metavar='|'.join((*SOLVERS, *MULTISTEP)), type=click.Choice([*SOLVERS, *MULTISTEP])),
    click.option('--disc', 'discretization', help='Ablate time step discretization {t_i}',
                 metavar='|'.join(DISCRETIZATIONS), type=click.Choice(DISCRETIZATIONS)),
    click.option('--schedule', help='Ablate noise schedule sigma(t)', metavar='|'.join(SCHEDULES),
                 type=click.Choice(SCHEDULES)),
    click.option('--scaling', help='Ablate signal scaling s(t)', metavar='|'.join(SCALINGS),
                 type=click.Choice(SCALINGS)),
]
ABLATION_NAMES = ('solver', 'discretization', 'schedule', 'scaling')

COMPOSED = [
    click.option('--sigmas', help='Noise levels from a file of decreasing numbers, instead of --steps and --sigma_*',
                 metavar='FILE', type=str),
    click.option('--restart', '--restart_info', 'restart', help='Where --sampler=restart walks again: steps; '
                 '[levels,repetitions,t_min,t_max] for each interval, or a name such as cifar10-43 or imagenet64-99 '
                 '(the evaluations it costs)', metavar='TEXT|NAME', type=str),
    click.option('--restart_gamma', help='Churn within restarts', metavar='FLOAT', type=FloatRange(min=0),
                 default=0.05, show_default=True),
    click.option('--num_particles', help='Samples that a discriminator resamples as a group', metavar='INT',
                 type=click.IntRange(min=1), default=1, show_default=True),
    click.option('--method', help='pf: resample; dg: guide; none: neither, for --select  [default: pf if there are '
                 'particles]', metavar='pf|dg|none', type=click.Choice(['pf', 'dg', 'none'])),
    click.option('--resample_inds', help='Steps before which to resample; restarts resample at each of them',
                 metavar='LIST', type=str),
    click.option('--resampling', type=click.Choice([*RESAMPLING]), default='systematic', show_default=True,
                 help='How indices are drawn; multinomial: as published'),
    click.option('--ess', help='Resample a group if its effective sample size is below this part of it '
                 '[default: always]', metavar='FLOAT', type=FloatRange(0, 1)),
    click.option('--select', help='Keep the best of each group: one image per seed', is_flag=True),
]

GUIDES = [
    click.option('--guiding_network', help='Autoguidance: a weaker score network of the same images',
                 metavar='PATH|URL', type=str),
    click.option('--guiding_weight', help='Its weight; 1: none; the weaker the guide, the nearer to 1', metavar='FLOAT',
                 type=FloatRange(min=0), default=2., show_default=True),
    click.option('--w', help='Classifier-free guidance: (1 + w) D - w D without a label', metavar='FLOAT',
                 type=FloatRange(min=0), default=0., show_default=True),
    click.option('--guiding_classifier', help='Classifier guidance: an ADM classifier of noisy images',
                 metavar='PATH', type=str),
    click.option('--classifier_weight', help='Its weight', metavar='FLOAT', type=FloatRange(min=0), default=1.,
                 show_default=True),
    click.option('--guidance_interval', help='Where these three act: noise levels LOW,HIGH or steps [FIRST, LAST]',
                 metavar='INTERVAL', type=str),
]


def guidance(first_weight: float) -> list:
    """Options of discriminator guidance, `first_weight` being the default of the first-order weight."""
    return [
        click.option('--dg_weight_1st_order', '--w_dg_1', metavar='FLOAT', type=FloatRange(min=0),
                     help='Weight in the first evaluation of a step; both 0: no guidance', default=first_weight,
                     show_default=True),
        click.option('--dg_weight_2nd_order', '--w_dg_2', help='Weight in the second evaluation', metavar='FLOAT',
                     type=FloatRange(min=0), default=0., show_default=True),
        click.option('--time_min', '--time_mid', help='Least VP time to guide at', metavar='FLOAT',
                     type=FloatRange(0, 1), default=0.01, show_default=True),
        click.option('--time_max', help='Largest VP time to guide at', metavar='FLOAT', type=FloatRange(0, 1),
                     default=1.0, show_default=True),
        click.option('--boosting', help='1: guide samples with a negative log-ratio harder', metavar='INT',
                     type=click.IntRange(min=0), default=0, show_default=True),
    ]


BOOSTING = [
    click.option('--boosting_schedule', help='Steps in which boosting acts, see docs/equations.md  [default: dg]',
                 type=click.Choice([*BOOSTINGS])),
    click.option('--adaptive_weight', help='1: boosting by the schedule of the reproduction', metavar='INT',
                 type=click.IntRange(min=0), default=0, show_default=True),
    click.option('--S_churn_manual', 'S_churn_manual', help='Churn of boosted samples', metavar='FLOAT',
                 type=FloatRange(min=0), default=4, show_default=True),
]


def none_if_named(ctx, param, value):
    """'None', the published default of these options, means that they are not given."""
    return None if value == 'None' else value


DISCRIMINATORS = [
    click.option('--pretrained_classifier_ckpt', metavar='PATH', type=str,
                 help=f'ADM classifier  [default: the demo\'s; with --network {CLASSIFIER}]'),
    click.option('--discriminator_ckpt', '--discriminator_checkpoint', metavar='PATH', type=str, multiple=True,
                 help=f'Discriminator; of several, the mean  [default: the demo\'s; with --network {DISCRIMINATOR}]'),
    click.option('--lora_checkpoint', metavar='PATH', type=str, callback=none_if_named,
                 help='LoRA adapters of the classifier that the discriminator was trained with'),
    click.option('--lora_rank', help='Their rank, which is checked  [default: as the file says]', metavar='INT',
                 type=click.IntRange(min=-1)),
    click.option('--cond', '--conditional', help='1: the discriminator is conditional on the class', metavar='INT',
                 type=click.IntRange(0, 1), default=0, show_default=True),
    click.option('--log_ratio', type=click.Choice(['raw', 'clipped']), default='raw', show_default=True,
                 help='raw: the discriminator\'s logit; clipped: as DG published, see docs/equations.md'),
]

MACHINE = [
    click.option('--device', help='auto, cpu, cuda or cuda:N', metavar='STR', type=str, default='auto',
                 show_default=True),
    click.option('--precision', help='Arithmetic of the networks; auto: bf16 if the hardware is fast at it',
                 type=click.Choice(PRECISIONS), default='auto', show_default=True),
    click.option('--compile', 'compile_mode', help='torch.compile; auto: for runs that are long enough',
                 type=click.Choice(['auto', 'on', 'off']), default='auto', show_default=True),
]

DG_NAMES = ('dg_weight_1st_order', 'dg_weight_2nd_order', 'time_min', 'time_max')


def with_options(*groups):
    """A decorator that gives a function all options of `groups`, in this order."""
    def decorate(function):
        for option in reversed([option for group in groups for option in group]):
            function = option(function)
        return function
    return decorate


def seeds_of(opts: dict):
    """The seeds that --seeds, or --num_samples and --seed, name."""
    with blame('--seeds'):
        return choose_seeds(opts['seeds'], opts['num_samples'], opts['seed'])


def levels_of(opts: dict, net) -> Levels:
    """The noise levels that the options ask for, as far as the network supports them."""
    if opts['S_churn'] and opts['S_min'] > opts['S_max']:
        raise click.ClickException(f'--S_min: {opts["S_min"]:g} is above --S_max, so that --S_churn would never act')
    if opts.get('sigmas'):
        with blame('--sigmas'):
            churn = Churn(*(opts[name] for name in ('S_churn', 'S_min', 'S_max', 'S_noise')))
            return listed_levels(net, read_numbers(resolve_path(opts['sigmas'])), churn)
    with blame('--sigma_min, --sigma_max, --rho'):
        return edm_levels(net, **{name: opts[name] for name in LEVEL_NAMES},
                          discretization=opts.get('discretization') or 'edm')


def read_numbers(path) -> list[float]:
    """The numbers of a text file, separated by blanks, commas or brackets. Raises ValueError or OSError."""
    return [float(word) for word in re.split(r'[\s,;\[\]()]+', Path(path).read_text()) if word]


def given(opts: dict, *names: str) -> dict:
    """The options of these names that have a value, as options.json records them."""
    return {name: opts[name] for name in names if opts[name] is not None}


def sampler_options(sampler, pairs) -> dict:
    """The options NAME=VALUE of a sampler's own; values become the type of the option's default."""
    known = {name: parameter.default for name, parameter in inspect.signature(sampler).parameters.items()
             if parameter.kind is parameter.KEYWORD_ONLY
             and name not in ('levels', 'restarts', 'randn_like', 'callback')}
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition('=')
        if not equals or name not in known:
            raise click.ClickException(f'--set: {pair!r} is not NAME=VALUE with a NAME that this sampler has '
                                       f'({", ".join(known) or "it has none"})')
        try:
            kind = type(known[name])
            found[name] = {'1': True, '0': False}[value] if kind is bool else kind(value)
        except (KeyError, TypeError, ValueError):
            raise click.ClickException(f'--set: {value!r} is not a value for {name}, whose default is '
                                       f'{known[name]!r}') from None
    return found


def record_of_sampler(opts: dict) -> dict:
    """What options.json says of --sampler and --set; nothing for EDM's, so that older folders can be finished."""
    sampler = {} if opts['sampler'] == 'edm' else dict(sampler=opts['sampler'])
    return sampler | (dict(sampler_options=sorted(opts['sampler_options'])) if opts['sampler_options'] else {})
