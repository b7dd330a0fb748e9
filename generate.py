"""Draws images from a score network with the EDM sampler, with or without discriminator guidance (EDM-G++)."""

import click

from commands import options, samplers
from commands.draw import draw, open_folder
from commands.loading import (
    check_conditional,
    check_value,
    guidance_of,
    load_discriminator,
    load_guides,
    load_network,
    record_of_boosting,
)
from commands.machine import blame_machine, compile_for_sampling, start
from dnnlib.cli import SectionedCommand, blame
from dnnlib.files import resolve_output
from sampling import nested, stream


@click.command(cls=SectionedCommand, sections={
    'Samples': 'network', 'EDM sampler': 'num_steps', 'Other samplers': 'sampler', 'Restart and particles': 'sigmas',
    'Discriminator guidance': 'dg_weight_1st_order', 'Other guidance': 'guiding_network', 'Machine': 'device'})
@options.with_options(options.SAMPLES, options.EDM, options.ABLATION, options.COMPOSED,
                      options.guidance(first_weight=2.0), options.BOOSTING, options.DISCRIMINATORS, options.GUIDES,
                      options.MACHINE)
@blame_machine('--batch')
def main(**opts):
    """Draw samples from a score network, guided by a discriminator unless both weights are 0.

    Writes samples_<first seed>.npz (uint8 NHWC) or <seed>.png, and options.json. Each sample follows from its seed, for
    any number of processes; the batch size changes only rounding. The same command again draws what is missing; with
    more seeds it continues.

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
    # Restart, with a published string as it is; and four particles at each restart, of which the best is kept
    python generate.py --outdir=samples/restart --seeds=0-499 --dg_weight_1st_order=0 --sampler=restart \\
        --restart='18; [3,2,0.06,0.30]'
    python generate.py --outdir=samples/particles --seeds=0-499 --sampler=restart --restart=cifar10-43 \\
        --num_particles=4 --select

    \b
    # ten evaluations per image
    python generate.py --outdir=samples/unipc --seeds=0-499 --dg_weight_1st_order=0 --solver=unipc --steps=10

    \b
    # on two GPUs
    torchrun --standalone --nproc_per_node=2 generate.py --outdir=samples/demo-50k --seeds=0-49999
    """
    opts = samplers.settle(opts)
    seeds = options.seeds_of(opts)
    machine = start(opts['device'], opts['precision'], opts['compile_mode'])
    net, origin = load_network(opts['network'], machine, opts['class_idx'])
    log_ratio, guidance, guided = load_guidance(opts, net, machine)
    guides, guided_by = load_guides(opts, net, machine)
    levels = options.levels_of(opts, net)
    sampler, own, record, evaluations = samplers.choose_sampler(opts, net, levels, guidance, log_ratio)
    compiled = compile_for_sampling(machine, net, log_ratio, len(seeds) * evaluations)
    record |= guided | guided_by | origin | machine.record() | dict(compile=compiled)
    folder = open_folder(resolve_output(opts['outdir']), seeds, opts, record)
    draw(stream(blame('--network')(sampler), net, batch=min(opts['batch'], len(seeds)), device=machine.device,
                class_idx=opts['class_idx'], guidance=nested(*guides, guidance), pad=compiled, levels=levels, **own),
         folder, decode=net.decode, overwrite=opts['overwrite'],
         remedy='a lower --dg_weight_1st_order or --precision=fp32')


def load_guidance(opts, net, machine):
    """(the log-ratio or None, discriminator guidance or None if both weights are 0, their entries of options.json)."""
    weights = {name: opts[name] for name in ('dg_weight_1st_order', 'dg_weight_2nd_order')}
    if not any(weights.values()) and opts['num_particles'] == 1:
        check_conditional(opts, net)
        return None, None, weights
    log_ratio, files = load_discriminator(opts, net, machine)
    if opts['num_particles'] > 1:
        check_value(log_ratio, '--num_particles')
    if not any(weights.values()):
        return log_ratio, None, weights | files
    record = weights | files | record_of_boosting(opts) | {name: opts[name] for name in ('time_min', 'time_max')}
    return log_ratio, guidance_of(opts, log_ratio), record


if __name__ == '__main__':
    main()
