"""Rejection sampling from the command line: its options, its warm-up, and what a user is warned of."""

from pathlib import Path

import click
import numpy as np

from dnnlib.cli import FloatRange, blame
from dnnlib.files import resolve_path
from generation.diffrs_warmup import draw_warmup, find_thresholds
from networks.formats.edm_pickle import read_pickle
from sampling import Levels
from sampling import diffrs_rules as rules
from sampling.diffrs import warmup_seeds
from torch_utils import distributed as dist

from .loading import is_guided, preset_of
from .options import none_if_named

LOW_ACCEPTANCE = 0.02  # of a step; below it a run gets a warning
ORIGIN = ('network_sha256', 'classifier_sha256', 'discriminator_sha256', 'cond', 'class_idx', 'log_ratio',
          'dg_weight_1st_order', 'dg_weight_2nd_order', 'S_churn')
LATER = ('guiding_network_sha256', 'guiding_weight', 'w', 'guiding_classifier_sha256', 'classifier_weight',
          'guidance_interval')

REJECTION = [
    click.option('--rej_percentile', help='Percentile gamma of the warm-up that sets the thresholds', metavar='FLOAT',
                 type=FloatRange(0, 1), default=0., show_default=True),
    click.option('--rule', help='published: test, rewind, test again; exact: one draw for a whole path, see '
                 'docs/equations.md', type=click.Choice([*rules.RULES]), default='published', show_default=True),
    click.option('--backsteps', help='Steps back after a rejection; 0: test only the prior', metavar='INT',
                 type=click.IntRange(min=0), default=1, show_default=True),
    click.option('--min_backsteps', help='Test only states after more than this many steps', metavar='INT',
                 type=click.IntRange(min=0), default=0, show_default=True),
    click.option('--max_backsteps', help='Test only states after at most this many steps', metavar='INT',
                 type=click.IntRange(min=1), default=18, show_default=True),
    click.option('--iter_warmup', help='Rounds of the warm-up, of 100 trajectories each', metavar='INT',
                 type=click.IntRange(min=1), default=10, show_default=True),
    click.option('--max_iter', help='A sample that needs more evaluations starts again', metavar='INT',
                 type=click.IntRange(min=0), default=999999, show_default=True),
    click.option('--no_zero', help='1: thresholds below 0 stay as they are', metavar='INT',
                 type=click.IntRange(0, 1), default=0, show_default=True),
    click.option('--thresholds', help='Reuse the warm-up of another run  [default: the one in --outdir, if any]',
                 metavar='JSON', type=str),
    click.option('--adaptive_pickle', help='Reuse a published warm-up: log-ratios', metavar='PATH', type=str,
                 callback=none_if_named),
    click.option('--adaptive_pickle2', help='Reuse a published warm-up: increments', metavar='PATH', type=str,
                 callback=none_if_named),
    click.option('--mode', help='Accepted from published commands; the report is always written',
                 type=click.Choice(['default', 'debug']), default='default', show_default=True),
]
RULE_NAMES = ('rej_percentile', 'backsteps', 'min_backsteps', 'max_backsteps', 'iter_warmup', 'max_iter', 'no_zero',
              'rule')


def _refused(reason: str, *names: str, **attributes):
    """An option of generate.py that generate_diffrs.py knows only to say why it cannot have it."""
    def refuse(ctx, param, value):
        if value:
            raise click.ClickException(f'{names[0]}: {reason}; leave it out, or use generate.py')

    return click.option(*names, hidden=True, expose_value=False, callback=refuse, **attributes)


_BACK = ('a rejected step goes back one level, and a restart goes back itself, to states whose thresholds the warm-up '
         'has not seen')
_TWICE = 'rejection draws from the ratio already, and particles would count it twice'
_EARLIER = 'a step that depends on earlier ones cannot be drawn again, as rejection must'
REFUSED = [
    _refused(_BACK, '--restart', '--restart_info'), _refused(_BACK, '--sampler'), _refused(_EARLIER, '--solver'),
    _refused(_TWICE, '--num_particles'), _refused(_TWICE, '--resample_inds'), _refused(_TWICE, '--method'),
    _refused(_TWICE, '--select', is_flag=True),
]


def origin_of(record: dict) -> dict:
    """The entries of options.json on which a warm-up depends, beside its levels."""
    names = [*ORIGIN, *(['lora_sha256'] if 'lora_sha256' in record else [])]
    if record['S_churn']:
        names += ['S_min', 'S_max', 'S_noise']
    if is_guided(record):
        names += ['time_min', 'time_max']
    return {name: record[name] for name in names} | {name: record.get(name) for name in LATER} | preset_of(record)


def warm_up(opts, outdir, origin: dict, machine: dict, draw_part) -> rules.Calibration:
    """The warm-up and its file; parts of it are good only for a run on the same kind of machine."""
    seeds = warmup_seeds(opts['iter_warmup'])
    made_with = origin | machine | dict(trajectories=len(seeds), batch=opts['batch'])
    sigmas = draw_part.keywords['levels'].sigmas.numpy()

    def part(seeds, progress):
        with blame('--network, --discriminator_ckpt'):
            return draw_part(seeds, progress=progress).log_ratio

    def encode(log_ratio: np.ndarray, part: bool) -> str:
        return rules.thresholds_to_json(rules.Calibration(sigmas, log_ratio), made_with if part else origin)

    def decode(text: str) -> np.ndarray:
        found = rules.thresholds_from_json(text, made_with)
        found.check(sigmas)
        return found.log_ratio

    with blame('--outdir'):
        return rules.Calibration(sigmas, draw_warmup(outdir, seeds, opts['batch'], part, encode=encode, decode=decode,
                                                     overwrite=opts['overwrite']))


def warn_of_tests(opts, calibration: rules.Calibration) -> None:
    """Say so if levels go untested, or if the warm-up predicts that nearly all steps into one are rejected."""
    rule, steps = rules.RULES[opts['rule']], len(calibration.sigmas) - 1
    last = rules.last_level(steps, opts['backsteps'], opts['max_backsteps'])
    if 0 < last < steps:
        dist.print0(f'States after the last {steps - last} of {steps} steps are not tested; '
                    f'--max_backsteps={steps} tests them too')
    limits = rules.make_thresholds(calibration, opts['rej_percentile'], rule, clamp=not opts['no_zero'],
                                   last_level=last)
    rates = rules.step_acceptance(calibration, limits, rule)[opts['min_backsteps']:last]
    if opts['min_backsteps'] and not len(rates):
        dist.print0('Warning: --min_backsteps leaves nothing to test, so these will be samples of EDM')
    if len(rates) and rates.min() < LOW_ACCEPTANCE:
        level = opts['min_backsteps'] + int(rates.argmin()) + 1
        dist.print0(f'Warning: the warm-up predicts that {rates.min():.2%} of the steps to sigma '
                    f'{calibration.sigmas[level]:.3g} are accepted, so this may take very long. Do network and '
                    f'discriminator belong together? --no_zero=1 or a lower --rej_percentile accept more.')


def load_warmup(opts: dict, outdir: Path, levels: Levels, origin: dict) -> rules.Calibration | None:
    """A DiffRS warm-up from the files that are named, or from the folder; None if there is none."""
    if bool(opts['adaptive_pickle']) != bool(opts['adaptive_pickle2']):
        raise click.ClickException('--adaptive_pickle: goes with --adaptive_pickle2; give both')
    if opts['adaptive_pickle'] and opts['thresholds']:
        raise click.ClickException('--thresholds: given together with --adaptive_pickle; use one of the two')
    sigmas = levels.sigmas.numpy()
    if opts['adaptive_pickle']:
        with blame('--adaptive_pickle'):
            return rules.calibration_from_lists(sigmas, *(
                read_pickle(resolve_path(opts[name])) for name in ('adaptive_pickle', 'adaptive_pickle2')))
    with blame('--thresholds'):
        if opts['thresholds']:
            text = resolve_path(opts['thresholds']).read_text()
        else:
            text = find_thresholds(outdir, opts['overwrite'])
        if text is None:
            return None
        calibration = rules.thresholds_from_json(text, origin)
        calibration.check(sigmas)
        return calibration
