"""Draws images from a score network with the EDM sampler, with or without discriminator guidance (EDM-G++)."""

import click

from commands import options, samplers
from commands.draw import LOWER_WEIGHT, draw, open_folder
from commands.loading import load_network
from commands.machine import blame_machine, start
from commands.prepare import prepare
from dnnlib.cli import SectionedCommand
from dnnlib.files import resolve_output


@click.command(cls=SectionedCommand, sections={
    'Samples': 'network', 'EDM sampler': 'num_steps', 'Other samplers': 'sampler', 'Restart and particles': 'sigmas',
    'Discriminator guidance': 'dg_weight_1st_order', 'Other guidance': 'guiding_network', 'Machine': 'device'})
@options.with_options(options.NETWORK, options.SAMPLES, options.EDM, options.ABLATION, options.COMPOSED,
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
    network = load_network(opts, machine)
    prepared = prepare(opts, seeds, machine, network)
    folder = open_folder(resolve_output(opts['outdir']), seeds, opts, prepared.record)
    draw(prepared.stream, folder, decode=network.value.decode, overwrite=opts['overwrite'],
         remedy=LOWER_WEIGHT)


if __name__ == '__main__':
    main()
