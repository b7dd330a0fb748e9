"""Draws images from a score network with the EDM sampler, with or without discriminator guidance (EDM-G++)."""

import click

from commands import options
from commands.draw import draw, open_folder
from commands.loading import check_conditional, guidance_of, load_discriminator, load_network, record_of_boosting
from commands.machine import blame_machine, compile_for_sampling, start
from diffusion.schedules import time_schedule
from dnnlib.cli import SectionedCommand, blame
from dnnlib.files import resolve_output
from sampling import SAMPLERS, ablation_sampler, stream
from sampling.levels import level_range


@click.command(cls=SectionedCommand, sections={
    'Samples': 'network', 'EDM sampler': 'num_steps', 'Other samplers': 'sampler',
    'Discriminator guidance': 'dg_weight_1st_order', 'Machine': 'device'})
@options.with_options(options.SAMPLES, options.EDM, options.ABLATION, options.guidance(first_weight=2.0),
                      options.BOOSTING, options.DISCRIMINATORS, options.MACHINE)
@blame_machine('--batch')
def main(**opts):
    """Draw samples from a score network, guided by a discriminator unless both weights are 0.

    Writes samples_<first seed>.npz (uint8 NHWC) or <seed>.png, and options.json. Sample k follows from seed k,
    whatever the number of processes; the size of the batch changes only rounding. The same command again draws what
    is missing; with more seeds it continues.

    Examples:

    \b
    # 500 guided images of the demo network
    python generate.py --outdir=samples/demo --seeds=0-499

    \b
    # 50000 images without guidance, then with it
    python generate.py --network checkpoints/pretrained_score/edm-cifar10-32x32-uncond-vp.pkl \\
        --outdir=samples/cifar_uncond_vanilla --dg_weight_1st_order=0
    python generate.py --network checkpoints/pretrained_score/edm-cifar10-32x32-uncond-vp.pkl \\
        --outdir=samples/cifar_uncond

    \b
    # on two GPUs
    torchrun --standalone --nproc_per_node=2 generate.py --outdir=samples/demo-50k --seeds=0-49999
    """
    seeds = options.seeds_of(opts)
    machine = start(opts['device'], opts['precision'], opts['compile_mode'])
    net, origin = load_network(opts['network'], machine, opts['class_idx'])
    log_ratio, guidance, guided = load_guidance(opts, net, machine)
    levels = options.levels_of(opts, net)
    sampler, own = choose_sampler(opts, net, guidance)
    evaluations = levels.num_steps if opts['solver'] == 'euler' else 2 * levels.num_steps - 1
    compiled = compile_for_sampling(machine, net, log_ratio, len(seeds) * evaluations)

    record = options.given(opts, *options.LEVEL_NAMES, *options.ABLATION_NAMES) | options.record_of_sampler(opts)
    record |= guided | origin | machine.record() | dict(compile=compiled)
    folder = open_folder(resolve_output(opts['outdir']), seeds, opts, record)
    draw(stream(blame('--network')(sampler), net, batch=min(opts['batch'], len(seeds)), device=machine.device,
                class_idx=opts['class_idx'], guidance=guidance, pad=compiled, levels=levels, **own),
         folder, decode=net.decode, overwrite=opts['overwrite'],
         remedy='a lower --dg_weight_1st_order or --precision=fp32')


def load_guidance(opts, net, machine):
    """(the log-ratio, the guidance, what options.json says of them); (None, None, ...) if both weights are 0."""
    weights = {name: opts[name] for name in ('dg_weight_1st_order', 'dg_weight_2nd_order')}
    if not any(weights.values()):
        check_conditional(opts, net)
        return None, None, weights
    log_ratio, files = load_discriminator(opts, net, machine)
    record = weights | files | record_of_boosting(opts) | {name: opts[name] for name in ('time_min', 'time_max')}
    return log_ratio, guidance_of(opts, log_ratio), record


def choose_sampler(opts, net, guidance):
    """(the sampler, its own options): EDM's ablation sampler if one of its options is given."""
    if not any(opts[name] for name in options.ABLATION_NAMES):
        sampler = SAMPLERS[opts['sampler']]
        return sampler, options.sampler_options(sampler, opts['sampler_options'])
    if opts['sampler'] != 'edm':
        raise click.ClickException('--sampler: leave it out with --solver, --disc, --schedule and --scaling')
    if guidance is not None and guidance.boosting:
        raise click.ClickException('--boosting: works only with the EDM sampler; leave out --solver, --disc, '
                                   '--schedule and --scaling')
    if guidance is not None and guidance.weight_2nd and opts['solver'] == 'euler':
        raise click.ClickException('--dg_weight_2nd_order: Euler\'s steps have no second evaluation; leave it out')
    low, high = level_range(net, opts['sigma_min'], opts['sigma_max'], opts['discretization'] or 'edm')
    time = time_schedule(opts['schedule'] or 'linear', opts['scaling'] or 'none', low, high)
    return ablation_sampler, dict(time=time, solver=opts['solver'] or 'heun')


if __name__ == '__main__':
    main()
