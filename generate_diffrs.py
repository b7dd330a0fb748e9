"""Draws images by diffusion rejection sampling (DiffRS, Na et al. 2024)."""

import functools

import click

from commands import diffrs, options
from commands.draw import draw, open_folder
from commands.loading import (
    check_value,
    guidance_of,
    load_discriminator,
    load_guides,
    load_network,
    refuse_boosting,
)
from commands.machine import blame_machine, compile_for_sampling, start
from dnnlib.cli import SectionedCommand, blame
from dnnlib.files import resolve_output
from generation.run import reserve
from sampling import calibrate, diffrs_report, diffrs_sampler, nested, stream
from sampling import diffrs_rules as rules
from sampling.diffrs_slots import HopelessSample
from sampling.padding import Padded


@click.command(cls=SectionedCommand, sections={
    'Samples': 'network', 'EDM sampler': 'num_steps', 'Rejection': 'rej_percentile',
    'Discriminator guidance': 'dg_weight_1st_order', 'Other guidance': 'guiding_network', 'Machine': 'device'})
@options.with_options(options.NETWORK, options.SAMPLES, options.EDM, diffrs.REJECTION, diffrs.REFUSED,
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
    record |= {name: opts[name] for name in (*diffrs.RULE_NAMES, *options.DG_NAMES)}
    outdir = resolve_output(opts['outdir'])
    made_with = diffrs.origin_of(record)
    calibration = diffrs.load_warmup(opts, outdir, levels, made_with)
    with blame('--outdir'):  # until the script ends
        click.get_current_context().with_resource(reserve(
            open_folder(outdir, seeds, opts, record), undecided=['thresholds'], overwrite=opts['overwrite']))
    common = dict(levels=levels, class_idx=opts['class_idx'], guidance=guidance, batch=opts['batch'],
                  device=machine.device)
    if calibration is None:
        calibration = diffrs.warm_up(opts, outdir, made_with, machine.record() | dict(compile=compiled),
                                     functools.partial(calibrate, net, log_ratio, **common))
    diffrs.warn_of_tests(opts, calibration)
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


if __name__ == '__main__':
    main()
