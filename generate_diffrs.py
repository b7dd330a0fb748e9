"""Draws images by diffusion rejection sampling (DiffRS, Na et al. 2024)."""

from pathlib import Path

import click
import torch

import classifier_lib
import networks
from commands import options
from commands.machine import blame_machine
from dnnlib import demo
from dnnlib.cli import FloatRange, SectionedCommand, blame
from dnnlib.download import fetch
from dnnlib.files import atomic_write, file_digest, resolve_output, resolve_path
from generation import run as runner
from generation.folder import read_report, write_report
from networks.formats.edm_pickle import read_pickle
from sampling import diffrs, diffrs_report
from sampling import diffrs_rules as rules
from sampling.diffrs_slots import HopelessSample
from sampling.guidance import DiscriminatorGuidance
from sampling.inputs import check_class
from sampling.padding import Padded
from torch_utils import distributed as dist
from torch_utils.progress import progress

THRESHOLDS = 'thresholds.json'
WARMUP_PART = 'thresholds-part-{}.json'  # a batch of the warm-up, by its first trajectory, until all are there
LOW_ACCEPTANCE = 0.02  # of a step; below it a run gets a warning
RULE_NAMES = ('rej_percentile', 'backsteps', 'min_backsteps', 'max_backsteps', 'iter_warmup', 'max_iter', 'no_zero',
              'rule')
ORIGIN = ('network_sha256', 'classifier_sha256', 'discriminator_sha256', 'cond', 'class_idx', 'log_ratio',
          'dg_weight_1st_order', 'dg_weight_2nd_order', 'S_churn')


def none_if_named(ctx, param, value):
    """'None', the published default of these options, means that they are not given."""
    return None if value == 'None' else value


REJECTION = [
    click.option('--rej_percentile', help='Percentile gamma of the warm-up that sets the thresholds', metavar='FLOAT',
                 type=FloatRange(0, 1), default=0., show_default=True),
    click.option('--rule', help='published: test, rewind, test again; exact: one draw for a whole path, see '
                 'docs/equations.md', type=click.Choice([*rules.RULES]), default='published', show_default=True),
    click.option('--backsteps', help='Steps back after a rejection; 0: test the prior alone', metavar='INT',
                 type=click.IntRange(min=0), default=1, show_default=True),
    click.option('--min_backsteps', help='Test states after more than so many steps', metavar='INT',
                 type=click.IntRange(min=0), default=0, show_default=True),
    click.option('--max_backsteps', help='Test states after at most so many steps', metavar='INT',
                 type=click.IntRange(min=1), default=18, show_default=True),
    click.option('--iter_warmup', help='Rounds of the warm-up, of 100 trajectories each', metavar='INT',
                 type=click.IntRange(min=1), default=10, show_default=True),
    click.option('--max_iter', help='A sample that needs more evaluations begins anew', metavar='INT',
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


@click.command(cls=SectionedCommand, sections={
    'Samples': 'network', 'EDM sampler': 'num_steps', 'Rejection': 'rej_percentile',
    'Discriminator guidance': 'dg_weight_1st_order', 'Machine': 'device'})
@options.with_options(options.SAMPLES, options.EDM, REJECTION, options.guidance(first_weight=0.0),
                      options.DISCRIMINATORS, options.MACHINE)
@blame_machine('--batch')
def main(**opts):
    """Draw samples whose every step is accepted or rejected by a discriminator.

    Writes samples_<first seed>.npz (uint8 NHWC) or <seed>.png, each with what its samples cost, thresholds.json
    (the warm-up, reusable) and options.json (with a report in the end). Sample k follows from seed k, whatever the
    number of processes; the size of the batch changes rounding alone. The same command again draws what is missing.

    Examples:

    \b
    # 100 images of the demo network, with a short warm-up
    python generate_diffrs.py --outdir=samples/diffrs-demo --seeds=0-99 --rej_percentile=0.75 --iter_warmup=1

    \b
    # as published
    python generate_diffrs.py --network checkpoints/pretrained_score/edm-cifar10-32x32-uncond-vp.pkl \\
        --outdir=samples/cifar10/diffrs --rej_percentile=0.75 --max_iter=105
    """
    seeds, device, dtype = options.start(opts)
    net, log_ratio, record = load_networks(opts, device, dtype, len(seeds))
    guidance = load_guidance(opts, log_ratio)
    schedule = {name: opts[name] for name in options.EDM_NAMES if opts[name] is not None}
    labels = None if opts['class_idx'] is None else torch.eye(net.label_dim)[opts['class_idx']][None]
    common = dict(batch_size=opts['batch'], device=device, guidance=guidance, **schedule)
    with blame('--sigma_min, --sigma_max, --rho'):
        grid = diffrs.make_grid(net, **schedule)
    with blame('--max_iter'):
        rules.check_cap(opts['max_iter'], grid.num_steps)

    outdir = resolve_output(opts['outdir'])
    machine = dict(device=device.type, precision=str(dtype).removeprefix('torch.'), tf32=opts['precision'] == 'tf32',
                   compile=record['compile'])
    record |= schedule | {name: opts[name] for name in RULE_NAMES} | dict(class_idx=opts['class_idx']) | machine
    origin = origin_of(record)
    calibration = load_thresholds(opts, outdir, grid, origin)
    with blame('--outdir'):  # until the script ends
        click.get_current_context().with_resource(runner.reserve(
            seeds, outdir, batch=opts['batch'], options=record, undecided=['thresholds'],
            save_type=opts['save_type'], overwrite=opts['overwrite']))
    if calibration is None:
        calibration = calibrate(outdir, opts['iter_warmup'], opts['overwrite'], origin, machine, net, log_ratio, labels,
                                grid, **common)
    warn_of_tests(opts, calibration)
    record |= dict(thresholds=rules.digest(calibration))

    def sample_stream(claimed):
        results = diffrs.diffrs_sampler(
            net, log_ratio, claimed, labels, thresholds=calibration, rule=opts['rule'],
            rej_percentile=opts['rej_percentile'], backsteps=opts['backsteps'], min_backsteps=opts['min_backsteps'],
            max_backsteps=opts['max_backsteps'], max_iter=opts['max_iter'], clamp=not opts['no_zero'],
            progress=dist.show_life, **common)
        for result in results:
            yield runner.Samples(result.images, result.labels, dict(
                nfe=result.nfe, discriminator_calls=result.discriminator_calls, cap_hits=result.cap_hits,
                tests=result.tests, rejections=result.rejections))

    dist.print0(f'Drawing {len(seeds)} images to {outdir}')
    try:
        with blame('--outdir'):
            report = runner.run_stream(sample_stream, seeds, outdir, batch=opts['batch'], options=record,
                                       save_type=opts['save_type'], overwrite=opts['overwrite'])
    except runner.NonFiniteSample as error:
        raise click.ClickException(f'--network: {error}; --precision=fp32 may help, '
                                   f'else the checkpoint is broken') from None
    except HopelessSample as error:
        raise click.ClickException(f'--rej_percentile: {error}') from None
    finish(outdir, calibration, report, record['precision'])
    dist.shutdown()


def load_networks(opts, device, dtype, images: int):
    """(score network, log-ratio, what options.json says of them); both see full batches alone, see Padded."""
    source = opts['network'] or demo.DEMO_SCORE
    classifier, discriminator = options.discriminator_files(opts)
    dist.print0(f'Loading network from {source}, discriminator from {discriminator}')
    with blame('--network'), dist.rank0_first():
        net = networks.load_network(source, device=device, dtype=dtype)
    with blame('--class'):
        check_class(net, opts['class_idx'])
    with blame('--pretrained_classifier_ckpt, --discriminator_ckpt'):
        log_ratio = classifier_lib.load_log_ratio(classifier, discriminator, net, bool(opts['cond']), device, dtype,
                                                  clip=opts['log_ratio'] == 'clipped')
    names = ('network', 'pretrained_classifier_ckpt', 'discriminator_ckpt', 'cond', 'log_ratio',
             'dg_weight_1st_order', 'dg_weight_2nd_order', 'time_min', 'time_max')
    record = {name: opts[name] for name in names} | dict(
        network_sha256=file_digest(fetch(source)), classifier_sha256=file_digest(resolve_path(classifier)),
        discriminator_sha256=file_digest(resolve_path(discriminator)))
    compiled = options.compile_networks(opts, net, log_ratio, device, images)
    width = min(opts['batch'], images)
    return Padded(net, width), Padded(log_ratio, width), record | dict(compile=compiled)


def load_guidance(opts, log_ratio):
    """Discriminator guidance, where it has a weight."""
    if not opts['dg_weight_1st_order'] and not opts['dg_weight_2nd_order']:
        return None
    if opts['boosting']:
        raise click.ClickException('--boosting: belongs to a batch whose rows are at the same step; use generate.py')
    with blame('--time_min'):
        return DiscriminatorGuidance(log_ratio, opts['dg_weight_1st_order'], opts['dg_weight_2nd_order'],
                                     time_min=opts['time_min'], time_max=opts['time_max'])


def origin_of(record: dict) -> dict:
    """The entries of options.json on which a warm-up depends, beside its levels."""
    names = [*ORIGIN]
    if record['S_churn']:
        names += ['S_min', 'S_max', 'S_noise']
    if record['dg_weight_1st_order'] or record['dg_weight_2nd_order']:
        names += ['time_min', 'time_max']
    return {name: record[name] for name in names}


def load_thresholds(opts, outdir: Path, grid, origin: dict) -> rules.Calibration | None:
    """The warm-up from a file that is named, or from the folder; None where there is none."""
    if bool(opts['adaptive_pickle']) != bool(opts['adaptive_pickle2']):
        raise click.ClickException('--adaptive_pickle: goes with --adaptive_pickle2; give both')
    if opts['adaptive_pickle'] and opts['thresholds']:
        raise click.ClickException('--thresholds: given together with --adaptive_pickle; use one of the two')
    if opts['adaptive_pickle']:
        with blame('--adaptive_pickle'):
            return rules.calibration_from_lists(grid.t_steps, *(
                read_pickle(resolve_path(opts[name])) for name in ('adaptive_pickle', 'adaptive_pickle2')))
    with blame('--thresholds'):
        if opts['thresholds']:
            text = resolve_path(opts['thresholds']).read_text()
        else:  # one rank looks: the file may appear meanwhile
            path = outdir / THRESHOLDS
            found = dist.get_rank() == 0 and path.is_file() and not opts['overwrite']
            text = dist.broadcast_object(path.read_text() if found else None)
        if text is None:
            return None
        calibration = rules.thresholds_from_json(text, origin)
        calibration.check(grid.t_steps)
        return calibration


def calibrate(outdir: Path, rounds: int, anew: bool, origin: dict, machine: dict, net, log_ratio, labels, grid, *,
              batch_size: int, **common) -> rules.Calibration:
    """The warm-up, each rank drawing its share of the batches, and its file; the same for any number of ranks.

    Each batch is kept in `outdir` until all are there, so that after a kill a run of the same `origin` and `machine`
    draws only what is missing, unless it is to begin `anew`.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    seeds = range(diffrs.WARMUP_SEED, diffrs.WARMUP_SEED + diffrs.WARMUP_ROUND * rounds)
    made_with = origin | machine | dict(trajectories=len(seeds), batch=batch_size)
    batches = [slice(first, first + batch_size) for first in range(rank * batch_size, len(seeds), ranks * batch_size)]
    paths = [outdir / WARMUP_PART.format(batch.start) for batch in batches]
    parts = [None if anew else read_part(path, grid, made_with) for path in paths]
    there = ranks * sum(part.log_ratio.shape[1] for part in parts if part)
    log_ratios = torch.zeros([grid.num_steps + 1, len(seeds)], dtype=torch.float64)
    with progress(total=len(seeds), initial=min(there, len(seeds)), desc='warm-up') as bar:
        def step_taken(ended):
            dist.show_life()
            bar.update(min(ranks * ended, bar.total - bar.n))

        for batch, path, part in zip(batches, paths, parts):
            if part is None:
                with blame('--network, --discriminator_ckpt'):
                    part = diffrs.calibrate(net, log_ratio, seeds[batch], labels, batch_size=batch_size,
                                            progress=step_taken, **common)
                with blame('--outdir'), atomic_write(path) as file:
                    file.write(rules.thresholds_to_json(part, made_with).encode())
            log_ratios[:, batch] = torch.from_numpy(part.log_ratio)
        dist.wait_for_all('warm-up')
        dist.all_reduce_(log_ratios)
    calibration = rules.Calibration(grid.t_steps, log_ratios.numpy())
    if rank == 0:
        with blame('--outdir'):
            with atomic_write(outdir / THRESHOLDS) as file:
                file.write(rules.thresholds_to_json(calibration, origin).encode())
            for first in range(0, len(seeds), batch_size):
                (outdir / WARMUP_PART.format(first)).unlink(missing_ok=True)
    return calibration


def read_part(path: Path, grid, origin: dict) -> rules.Calibration | None:
    """A batch of the warm-up that a run of the same `origin` has left, if any."""
    try:
        part = rules.thresholds_from_json(path.read_text(), origin)
        part.check(grid.t_steps)
    except (OSError, ValueError):
        return None
    return part


def warn_of_tests(opts, calibration) -> None:
    """Say so where levels go untested, or where the warm-up predicts that nearly all steps into one are rejected."""
    rule = rules.RULES[opts['rule']]
    steps = len(calibration.sigmas) - 1
    last = rules.last_level(steps, opts['backsteps'], opts['max_backsteps'])
    if 0 < last < steps:
        dist.print0(f'States after the last {steps - last} of {steps} steps are not tested; '
                    f'--max_backsteps={steps} tests them too')
    limits = rules.thresholds(calibration, opts['rej_percentile'], rule, clamp=not opts['no_zero'], last_level=last)
    rates = rules.step_acceptance(calibration, limits, rule)[opts['min_backsteps']:last]
    if opts['min_backsteps'] and not len(rates):
        dist.print0('Warning: --min_backsteps leaves nothing to test, so these will be samples of EDM')
    if len(rates) and rates.min() < LOW_ACCEPTANCE:
        level = opts['min_backsteps'] + int(rates.argmin()) + 1
        dist.print0(f'Warning: the warm-up predicts that {rates.min():.2%} of the steps to sigma '
                    f'{calibration.sigmas[level]:.3g} are accepted, so this may take very long. Do network and '
                    f'discriminator belong together? --no_zero=1 or a lower --rej_percentile accept more.')


def finish(outdir, calibration, result, precision) -> None:
    """Write the report into options.json, and show it."""
    if dist.get_rank() != 0:
        return
    print(f'{result.images} images in {outdir}, {result.drawn} of them new, in {result.seconds:.1f} s')
    with blame('--outdir'):
        earlier = read_report(outdir)
        report = diffrs_report.make_report(
            diffrs_report.collect(outdir), calibration.sigmas, precision, calibration.log_ratio.shape[1],
            wall_sec=earlier.get('wall_sec', 0.0) + (result.seconds if result.drawn else 0.0),
            timed_images=earlier.get('timed_images', 0) + result.drawn)
        if report != earlier:
            write_report(outdir, report)
    print(diffrs_report.format_report(report))


if __name__ == '__main__':
    main()
