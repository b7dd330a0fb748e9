"""Denoising MCMC from the command line: its options, presets and noise-level model."""

import functools
import math
from pathlib import Path

import click
import torch

from dnnlib import demo
from dnnlib.cli import FloatRange, blame
from dnnlib.files import file_digest, resolve_path
from generation.chains import ChainFolder, read_features
from networks.noise_level import PUBLISHED, is_published, load_noise_level
from sampling import ClassifierFree, dmcmc_report
from sampling.dmcmc import NoiseLevel, Start
from sampling.integrators import INTEGRATORS
from sampling.interval import ALWAYS
from torch_utils import distributed as dist

from .loading import Loaded
from .machine import Machine
from .options import POSITIVE, given

# Levels and step sizes are those of images in [-1, 1]. The published ones are for [0, 1]: a level there is half as
# large, a step size a quarter.
DEFAULTS = dict(chains=200, eta=2.0, n_skip=10, integrator='kar1', num_steps=9, noise_level='sample', n_init=10,
                eta_init=2.0, n_burn=10, tweedie=None, noise_classifier_is=None)
PRESETS = {  # resolution, and options that are not given; beside published ones, those of this project are "ours"
    # The only setting that the published code shows: eta 0.8 and 20 levels there, 10 + 37 + 1 evaluations.
    'celebahq-kar2-48': (256, dict(chains=20, eta=3.2, n_skip=10, integrator='kar2', num_steps=19, n_init=50,
                                   eta_init=6.4, n_burn=20, noise_level='argmax', tweedie=0.002,
                                   noise_classifier_is='celebahq-256')),
    # n_skip + (2 steps - 1) + 1 evaluations; a small search (docs/results/dmcmc-search.sh), see docs/results/README.md.
    'cifar10-ours-10': (32, dict(n_skip=2, num_steps=4, integrator='kar1', eta=2.0)),
    'cifar10-ours-20': (32, dict(n_skip=10, num_steps=5, integrator='kar1', eta=2.0)),
    'cifar10-ours-40': (32, dict(n_skip=20, num_steps=10, integrator='kar1', eta=2.0)),
}
STEPLESS = 'rk45'  # the integrator that takes no number of steps
COUNT = click.IntRange(min=0)


def _shown(name: str) -> str:
    return f'[default: {DEFAULTS[name]}]'


CHAINS = [
    click.option('--preset', help='Options of a published run; others that are given override it',
                 type=click.Choice([*PRESETS])),
    click.option('--noise_classifier', help='Noise-level model: .safetensors of train_classifier.py --task=noise_level,'
                 ' or a published .pt  [default: the demo\'s, for the demo network]', metavar='PATH', type=str),
    click.option('--noise_classifier_is', help='What a published .pt is, which it does not say itself',
                 type=click.Choice([*PUBLISHED])),
    click.option('--chains', help=f'Parallel chains; --batch of them run together  {_shown("chains")}', metavar='INT',
                 type=click.IntRange(min=1)),
    click.option('--eta', help='Step size of Langevin dynamics, for images in [-1, 1]: 4 times the published one'
                 f'  {_shown("eta")}', metavar='FLOAT', type=POSITIVE),
    click.option('--n_skip', help=f'Steps of a chain between its outputs  {_shown("n_skip")}', metavar='INT',
                 type=click.IntRange(min=1)),
    click.option('--noise_level', help='sample: draw a level given x (Gibbs); argmax: the likeliest, as published'
                 f'  {_shown("noise_level")}', type=click.Choice(['sample', 'argmax'])),
    click.option('--integrator', help=f'What denoises an output  {_shown("integrator")}',
                 type=click.Choice([*INTEGRATORS])),
    click.option('--steps', 'num_steps', help='Steps of the integrator; rk45 has none. Published kar1 and kar2 count '
                 f'one more  {_shown("num_steps")}', metavar='INT', type=click.IntRange(1, 1_000_000)),
    click.option('--tolerance', help='rk45: relative and absolute error of a step', metavar='FLOAT',
                 type=FloatRange(min=1e-12), default=1e-5, show_default=True),
    click.option('--tweedie', help='Noise level that is taken to be left at the end  [default: the least of the '
                 'noise-level model]', metavar='FLOAT', type=POSITIVE),
    click.option('--n_init', help=f'Steps of size --eta_init at the beginning of a chain  {_shown("n_init")}',
                 metavar='INT', type=COUNT),
    click.option('--eta_init', help=f'Their size  {_shown("eta_init")}', metavar='FLOAT', type=POSITIVE),
    click.option('--n_burn', help=f'And then steps of size --eta without output  {_shown("n_burn")}', metavar='INT',
                 type=COUNT),
]
NAMES = ('preset', *(name for name in DEFAULTS if name != 'num_steps'))


def settle(opts: dict, net) -> dict:
    """The options with those of the preset and the defaults in place of what is not given, checked against `net`."""
    chosen = dict(DEFAULTS)
    if opts['preset']:
        resolution, own = PRESETS[opts['preset']]
        if net.img_resolution != resolution:
            raise click.ClickException(f'--preset: {opts["preset"]} is for {resolution}x{resolution} images, --network '
                                       f'for {net.img_resolution}x{net.img_resolution}; leave it out')
        chosen |= own
        if opts['noise_classifier'] and not is_published(resolve_path(opts['noise_classifier'])):
            chosen['noise_classifier_is'] = None  # the preset names the published model
    chosen |= {name: opts[name] for name in chosen if opts[name] is not None}
    if chosen['integrator'] == STEPLESS and opts['num_steps'] is not None:
        raise click.ClickException('--steps: rk45 chooses its steps itself; give --tolerance')
    return opts | chosen


def noise_level_of(opts: dict, net, machine: Machine) -> Loaded:
    """The noise-level model, checked against the network, as a chain uses it, and what options.json says of it."""
    path = find_noise_level(opts, net)
    dist.print0(f'Loading noise-level model from {path}')
    with blame('--noise_classifier' if opts['noise_classifier_is'] else '--noise_classifier, --noise_classifier_is'):
        model = load_noise_level(path, opts['noise_classifier_is'], machine.device)
        check(model, net, path)
    record = dict(noise_classifier=opts['noise_classifier'], noise_classifier_sha256=file_digest(path),
                  noise_levels=[model.sigma_min, model.sigma_max, len(model.sigmas)])
    choice = NoiseLevel(model, model.sigmas, opts['noise_level'], machine.device)
    return Loaded(choice, record | dict(noise_classifier_is=opts['noise_classifier_is']))


def sampler_options(opts: dict, noise_level: NoiseLevel, levels: list):
    """(options of dmcmc_sampler, what options.json says of them, evaluations per image at least).

    opts: as `settle` gives them; levels: the least and the largest of the noise-level model.
    """
    (low, high), name, steps = levels[:2], opts['integrator'], opts['num_steps']
    if name == STEPLESS:
        solver = dict(rtol=opts['tolerance'], atol=2 * opts['tolerance'])  # published for images in [0, 1]
        named, evaluations = dict(tolerance=opts['tolerance']), 14
    else:
        solver = named = dict(num_steps=steps)
        evaluations = 2 * steps - 1 if name.startswith('kar') else steps
    start = Start(high, low, n_init=opts['n_init'], eta_init=opts['eta_init'], n_burn=opts['n_burn'])
    own = dict(noise_level=noise_level, chains=opts['chains'], tweedie=opts['tweedie'] or low, start=start,
               integrator=functools.partial(INTEGRATORS[name], sigma_min=low, **solver), eta=opts['eta'],
               n_skip=opts['n_skip'])
    return own, named | given(opts, *NAMES), evaluations + opts['n_skip'] + 1


def report(folder: ChainFolder, own: dict, guides: list, costs: dict) -> dict:
    """What the report of a run says beside the costs, the initialisation as if guides acted at all of its levels.

    own: options of dmcmc_sampler; guides: the guidances beside the discriminator's.
    """
    sigmas = own['noise_level'].sigmas
    per_step, tweedie = (_evaluations(guides, levels) for levels in (sigmas, torch.tensor([own['tweedie']])))
    langevin = own['n_skip'] * per_step
    split = dict(langevin=langevin, integrator=float(costs['nfe'].mean()) - langevin - tweedie, tweedie=tweedie,
                 initialisation_per_chain=own['start'].nfe * per_step)
    return dmcmc_report.details(read_features(folder.path), costs['start_level'], sigmas.numpy(), own['chains'], split)


def _evaluations(guides: list, sigmas: torch.Tensor) -> int:
    """Evaluations of the score network in a call of a denoiser that knows only that its level is one of `sigmas`."""
    return 1 + sum(isinstance(guide, ClassifierFree) and bool((guide.interval or ALWAYS).contains(sigmas).any())
                   for guide in guides)


def find_noise_level(opts: dict, net) -> Path:
    """Where the noise-level model lies: as given, or the demo's for the demo network."""
    if opts['noise_classifier']:
        return resolve_path(opts['noise_classifier'])
    if opts['network'] is None:
        return demo.DEMO_NOISE_LEVEL
    low, high = net.sigma_min or 0.002, net.sigma_max if math.isfinite(net.sigma_max) else 80
    raise click.ClickException('--noise_classifier: only the demo network has one here; train one for yours: python '
                               'train_classifier.py --outdir=runs/noise_level --task=noise_level '
                               f'--data=TRAINING_IMAGES --sigma_min={low:g} --sigma_max={high:g}')


def check(model, net, path: Path) -> None:
    """Raise ValueError if a noise-level model is for other images or noise levels than a score network."""
    if (model.img_resolution, model.img_channels) != (net.img_resolution, net.img_channels):
        raise ValueError(f'{path} is for {model.img_resolution}x{model.img_resolution}x{model.img_channels} images, '
                         f'--network for {net.img_resolution}x{net.img_resolution}x{net.img_channels}')
    low, high = model.sigmas.min().item(), model.sigmas.max().item()
    if low < net.sigma_min * (1 - 1e-6) or high > net.sigma_max * (1 + 1e-6):
        raise ValueError(f'the levels of {path} are {low:g} to {high:g}, those of --network {net.sigma_min:g} to '
                         f'{net.sigma_max:g}; train one for them: train_classifier.py --task=noise_level --sigma_min '
                         f'--sigma_max')
