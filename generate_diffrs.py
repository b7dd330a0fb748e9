"""Draws images by diffusion rejection sampling (DiffRS, Na et al. 2024)."""

import functools

import click
import numpy as np

from commands import options
from commands.draw import draw, open_folder
from commands.loading import (
    check_value,
    guidance_of,
    is_guided,
    load_discriminator,
    load_guides,
    load_network,
    load_warmup,
    refuse_boosting,
)
from commands.machine import blame_machine, compile_for_sampling, start
from dnnlib.cli import SectionedCommand, blame
from dnnlib.files import resolve_output
from generation.diffrs_warmup import draw_warmup
from generation.run import reserve
from sampling import calibrate, diffrs_report, diffrs_sampler, nested, stream
from sampling import diffrs_rules as rules
from sampling.diffrs import warmup_seeds
from sampling.diffrs_slots import HopelessSample
from sampling.padding import Padded
from torch_utils import distributed as dist

LOW_ACCEPTANCE = 0.02  # of a step; below it a run gets a warning
ORIGIN = ('network_sha256', 'classifier_sha256', 'discriminator_sha256', 'cond', 'class_idx', 'log_ratio',
          'dg_weight_1st_order', 'dg_weight_2nd_order', 'S_churn')
LATER = ('guiding_network_sha256', 'guiding_weight', 'w', 'guiding_classifier_sha256', 'classifier_weight',
          'guidance_interval', 'network_preset', 'network_preset_sha256')


@click.command(cls=SectionedCommand, sections={
    'Samples': 'network', 'EDM sampler': 'num_steps', 'Rejection': 'rej_percentile',
    'Discriminator guidance': 'dg_weight_1st_order', 'Other guidance': 'guiding_network', 'Machine': 'device'})
@options.with_options(options.NETWORK, options.SAMPLES, options.EDM, options.REJECTION,
                      options.guidance(first_weight=0.0), options.DISCRIMINATORS, options.GUIDES, options.MACHINE)
@blame_machine('--batch')
def main(**opts):
    """Draw samples whose every step is accepted or rejected by a discriminator.

    Writes samples_<first seed>.npz (uint8 NHWC) or <seed>.png, each with what its samples cost, thresholds.json
    (the warm-up, reusable) and options.json (with a report at the end). Sample k follows from seed k, whatever the
    number of processes; the size of the batch changes only rounding. The same command again draws what is missing;
    with more seeds it continues.

    Examples:

    \b
    # 100 images of the demo network, with a short warm-up
    python generate_diffrs.py --outdir=samples/diffrs-demo --seeds=0-99 --rej_percentile=0.75 --iter_warmup=1

    \b
    # as published
    python generate_diffrs.py --network checkpoints/pretrained_score/edm-cifar10-32x32-uncond-vp.pkl \\
        --outdir=samples/cifar10/diffrs --rej_percentile=0.75 --max_iter=105
    """
    seeds = options.seeds_of(opts)
    machine = start(opts['device'], opts['precision'], opts['compile_mode'])
    net, origin = load_network(opts, machine)
    log_ratio, files = load_discriminator(opts, net, machine)
    check_value(log_ratio, '--discriminator_ckpt')
    refuse_boosting(opts)
    guides, guided_by = load_guides(opts, net, machine)
    levels = options.levels_of(opts, net)
    with blame('--max_iter'):
        rules.check_cap(opts['max_iter'], levels.num_steps)
    compiled = compile_for_sampling(machine, net, log_ratio, len(seeds) * (2 * levels.num_steps - 1))
    width = min(opts['batch'], len(seeds))
    net, log_ratio = Padded(net, width), Padded(log_ratio, width)
    guidance = nested(*guides, guidance_of(opts, log_ratio))

    record = options.given(opts, *options.LEVEL_NAMES) | origin | files | guided_by | machine.record()
    record |= dict(compile=compiled)
    record |= {name: opts[name] for name in (*options.RULE_NAMES, *options.DG_NAMES)}
    outdir = resolve_output(opts['outdir'])
    made_with = origin_of(record)
    calibration = load_warmup(opts, outdir, levels, made_with)
    with blame('--outdir'):  # until the script ends
        click.get_current_context().with_resource(reserve(
            open_folder(outdir, seeds, opts, record), undecided=['thresholds'], overwrite=opts['overwrite']))
    common = dict(levels=levels, class_idx=opts['class_idx'], guidance=guidance, batch=opts['batch'],
                  device=machine.device)
    if calibration is None:
        calibration = warm_up(opts, outdir, made_with, machine.record() | dict(compile=compiled),
                              functools.partial(calibrate, net, log_ratio, **common))
    warn_of_tests(opts, calibration)
    draws = stream(diffrs_sampler, net, **common, log_ratio=log_ratio, thresholds=calibration, rule=opts['rule'],
                   rej_percentile=opts['rej_percentile'], backsteps=opts['backsteps'],
                   min_backsteps=opts['min_backsteps'], max_backsteps=opts['max_backsteps'],
                   max_iter=opts['max_iter'], clamp=not opts['no_zero'])
    folder = open_folder(outdir, seeds, opts, record | dict(thresholds=rules.digest(calibration)))
    try:
        draw(draws, folder, decode=net.decode, overwrite=opts['overwrite'], describe=diffrs_report.describe,
             details=lambda costs: diffrs_report.details(costs, calibration.sigmas, calibration.log_ratio.shape[1]))
    except HopelessSample as error:
        raise click.ClickException(f'--rej_percentile: {error}') from None


def origin_of(record: dict) -> dict:
    """The entries of options.json on which a warm-up depends, beside its levels."""
    names = [*ORIGIN, *(['lora_sha256'] if 'lora_sha256' in record else [])]
    if record['S_churn']:
        names += ['S_min', 'S_max', 'S_noise']
    if is_guided(record):
        names += ['time_min', 'time_max']
    return {name: record[name] for name in names} | {name: record.get(name) for name in LATER}


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


if __name__ == '__main__':
    main()
