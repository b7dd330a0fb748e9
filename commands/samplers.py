"""Which sampler generate.py runs, from its options: what the options imply, what they exclude, what is recorded."""

from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

import click
from click.core import ParameterSource

from diffusion.schedules import time_schedule
from dnnlib.cli import blame
from dnnlib.int_lists import parse_int_list
from sampling import SAMPLERS, Levels, ablation_sampler, multistep_sampler, particle_sampler, restart_sampler
from sampling.levels import level_range
from sampling.multistep import MULTISTEP
from sampling.particles import edm_path
from sampling.restart import PRESETS, parse_restarts, restart_path

from . import options
from .loading import WEIGHTS


class Chosen(NamedTuple):
    """A sampler with its own options, the entries of options.json, and evaluations of the score network per image."""

    sampler: Callable
    options: dict
    record: dict
    evaluations: int


def settle(opts: dict) -> dict:
    """The options with what others of them imply; options from the command line stay as they are.

    --restart brings its number of steps, a preset its churn. --method=pf or none leaves discriminator guidance out;
    together with its weight pf is refused, because the ratio would count twice.
    """
    opts = opts | dict(restarts=None)
    if opts['restart']:
        opts |= _settled_restarts(opts)
    elif opts['sampler'] == 'restart':
        opts |= _settled_restarts(opts | dict(restart='cifar10-43'))
    if opts['method'] is None and opts['num_particles'] > 1:
        opts['method'] = 'pf'
    if opts['method'] in ('pf', 'none'):
        if any(_is_given(name) and opts[name] for name in WEIGHTS):
            reason = 'resampling by the ratio that already guides would count it twice' if opts['method'] == 'pf' else (
                'none is no guidance')
            raise click.ClickException(f'--method: {reason}; use --dg_weight_1st_order=0, or --method=dg')
        opts |= dict.fromkeys(WEIGHTS, 0.0)
    return opts


def _settled_restarts(opts: dict) -> dict:
    """The options that a string or preset of restarts decides."""
    if opts['sampler'] != 'restart':
        raise click.ClickException('--restart: belongs to --sampler=restart')
    preset = PRESETS.get(opts['restart'])
    with blame('--restart'):
        restarts = parse_restarts(preset.text if preset else opts['restart'], opts['restart_gamma'])
    settled = dict(restarts=restarts)
    if restarts.num_steps and not opts['sigmas']:
        settled['num_steps'] = restarts.num_steps
    if preset:
        settled |= {name: value for name, value in asdict(preset.churn).items() if not _is_given(name)}
    return settled


def _is_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def choose_sampler(opts: dict, net, levels: Levels, guidance, log_ratio) -> Chosen:
    """The sampler that the settled options ask for; `guidance`: discriminator guidance, or None."""
    heun = 2 * levels.num_steps - 1
    record = options.given(opts, *options.LEVEL_NAMES, *options.ABLATION_NAMES) | options.record_of_sampler(opts)
    if opts['sigmas']:
        record |= dict(num_steps=levels.num_steps, sigmas=levels.sigmas.tolist())
    if any(opts[name] for name in options.ABLATION_NAMES):
        return _of_solver(opts, net, levels, guidance, record)
    if opts['restarts'] is not None:
        with blame('--restart'):
            restart_path(net, levels, opts['restarts'])
        record |= dict(restart=[list(interval) for interval in opts['restarts'].intervals],
                       restart_gamma=opts['restart_gamma'])
        heun = opts['restarts'].nfe(levels.num_steps)
    if opts['num_particles'] > 1:
        return _of_particles(opts, net, levels, log_ratio, record, heun)
    if opts['select'] or opts['resample_inds'] not in (None, '-1', ''):
        raise click.ClickException('--num_particles: a group of 1 is neither resampled nor selected from; use 2')
    if opts['restarts'] is not None:
        return Chosen(restart_sampler, dict(restarts=opts['restarts']), record, heun)
    if opts['sampler'] == 'predictor_corrector' and guidance is not None and guidance.weight_2nd:
        raise click.ClickException('--dg_weight_2nd_order: a step of predictor_corrector has no second evaluation; '
                                   'leave it out')
    sampler = SAMPLERS[opts['sampler']]
    return Chosen(sampler, options.sampler_options(sampler, opts['sampler_options']), record, heun)


def _of_solver(opts: dict, net, levels: Levels, guidance, record: dict) -> Chosen:
    """EDM's generalised sampler, or a solver that reuses evaluations."""
    multistep = opts['solver'] in MULTISTEP
    if opts['sampler'] != 'edm':
        raise click.ClickException('--sampler: leave it out with --solver, --disc, --schedule and --scaling')
    if opts['num_particles'] > 1:
        raise click.ClickException('--num_particles: copies part by the noise of EDM\'s or Restart\'s steps; leave out '
                                   '--solver, --disc, --schedule and --scaling')
    if guidance is not None and guidance.boosting:
        raise click.ClickException('--boosting: works only with the EDM sampler; leave out --solver, --disc, '
                                   '--schedule and --scaling')
    if guidance is not None and guidance.weight_2nd and (multistep or opts['solver'] == 'euler'):
        raise click.ClickException('--dg_weight_2nd_order: the steps of this --solver have no second evaluation; '
                                   'leave it out')
    if not multistep:
        low, high = level_range(net, opts['sigma_min'], opts['sigma_max'], opts['discretization'] or 'edm')
        time = time_schedule(opts['schedule'] or 'linear', opts['scaling'] or 'none', low, high)
        evaluations = levels.num_steps if opts['solver'] == 'euler' else 2 * levels.num_steps - 1
        return Chosen(ablation_sampler, dict(time=time, solver=opts['solver'] or 'heun'), record, evaluations)
    if opts['schedule'] or opts['scaling']:
        raise click.ClickException(f'--solver: {opts["solver"]} is written for sigma(t) = t and s(t) = 1; leave out '
                                   '--schedule and --scaling')
    if levels.noise.any():
        raise click.ClickException(f'--S_churn: {opts["solver"]} reuses earlier evaluations, which noise would make '
                                   'worthless; leave it out')
    return Chosen(multistep_sampler, dict(solver=opts['solver']), record, levels.num_steps)


def _of_particles(opts: dict, net, levels: Levels, log_ratio, record: dict, evaluations: int) -> Chosen:
    """Particles on EDM's levels or at restarts."""
    if opts['sampler_options']:
        raise click.ClickException('--set: particles have options of their own names; leave it out')
    resample_at, count = _steps(opts['resample_inds']), opts['num_particles']
    if opts['restarts'] is not None and resample_at:
        raise click.ClickException('--resample_inds: restarts are resampled at each of them; leave it out')
    if opts['method'] == 'pf' and opts['restarts'] is None:
        if not resample_at:
            raise click.ClickException('--resample_inds: name the steps to resample at, or use --sampler=restart')
        with blame('--resample_inds'):
            edm_path(net, levels, resample_at)
    if not opts['select'] and opts['batch'] % count:
        raise click.ClickException(f'--batch: {opts["batch"]} images are not whole groups of {count}; use a multiple')
    if not opts['select'] and len(options.seeds_of(opts)) % count:
        raise click.ClickException(f'--seeds: their number must be a multiple of {count}, the particles of a group')
    named = dict(num_particles=count, method=opts['method'], select=opts['select'])
    own = dict(log_ratio=log_ratio, num_particles=count, restarts=opts['restarts'], resampling=None,
               select=opts['select'])
    if opts['method'] == 'pf':
        own |= dict(resample_at=resample_at, resampling=opts['resampling'])
        own |= {} if opts['ess'] is None else dict(threshold=opts['ess'])
        named |= dict(resample_inds=resample_at, resampling=opts['resampling'], ess=opts['ess'])
    return Chosen(particle_sampler, own, record | named, evaluations * (count if opts['select'] else 1))


def _steps(text: str | None) -> list[int]:
    """The steps of --resample_inds; published commands write -1 for none."""
    if text in (None, '', '-1'):
        return []
    with blame('--resample_inds'):
        return list(parse_int_list(text))
