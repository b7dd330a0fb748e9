"""Draws images from a network of reflected diffusion, or measures the likelihood of images under it."""

import click

from commands import options, reflected
from commands.draw import draw, open_folder
from commands.likelihood import LIKELIHOOD, measure
from commands.loading import is_guided, load_guidance, refuse_boosting
from commands.machine import blame_machine, compile_for_sampling, start
from commands.reflected_words import WordsCommand, sampling_arguments
from dnnlib.cli import blame
from dnnlib.files import resolve_output
from sampling import nested, stream


@click.command(cls=WordsCommand, options_metavar='[OPTIONS] [KEY=VALUE]...',
               understand=lambda words, rest: sampling_arguments(words, rest) + rest, sections={
    'Samples': 'network', 'Reflected diffusion': 'label', 'Discriminator guidance': 'dg_weight_1st_order',
    'Likelihood': 'data', 'Machine': 'device'})
@options.with_options(reflected.NETWORK, options.SAMPLES, reflected.REFLECTED, options.guidance(first_weight=0.0),
                      options.DISCRIMINATORS, LIKELIHOOD, options.MACHINE)
@blame_machine('--batch')
def main(**opts):
    """Draw samples from a network of reflected diffusion (Lou and Ermon 2023).

    Writes what generate.py writes, and takes the published KEY=VALUE words beside its options. With --likelihood it
    writes likelihood.json.

    Examples:

    \b
    # 64 images of the demo network, 35 evaluations each
    python generate_reflected.py --outdir=samples/reflected --seeds=0-63

    \b
    # A published command
    python generate_reflected.py load_dir=weights/imagenet64 label=388 w=2.5 sampling.method=ode \\
        eval.batch_size=16 eval.rounds=4

    \b
    # guided by a discriminator of its samples; train.py finds that their noise is reflected
    python train.py --savedir=runs/reflected-disc --gendir=samples/reflected --datadir=data/cifar10-train.zip \\
        --pretrained_classifier_ckpt=checkpoints/demo/classifier.safetensors
    python generate_reflected.py --outdir=samples/reflected-dg --seeds=0-63 --dg_weight_1st_order=1 \\
        --dg_weight_2nd_order=1 --pretrained_classifier_ckpt=checkpoints/demo/classifier.safetensors \\
        --discriminator_ckpt=runs/reflected-disc/best.safetensors

    \b
    # Bits per dimension of 1000 images, with two probes each
    python generate_reflected.py --outdir=samples/bpd --likelihood=data/cifar10-test.zip --max_images=1000 --probes=2
    """
    if opts['label'] is not None:
        opts['class_idx'] = opts['label']
    seeds = options.seeds_of(opts)
    machine = start(opts['device'], opts['precision'], opts['compile_mode'])
    net, origin = reflected.load_network(opts, machine)
    record = origin | dict(w=opts['w'], kind='reflected') | machine.record()
    if opts['data']:
        if opts['w'] or is_guided(opts):
            raise click.ClickException('--likelihood: is that of the network; guided samples have no known density, so '
                                       'leave --w and the --dg_weight options out')
        return measure(opts, net, machine, record)
    refuse_boosting(opts)
    sampler, own, named = reflected.choose_sampler(opts, net, machine)
    log_ratio, guidance, guided = load_guidance(opts, net, machine)
    record |= guided if is_guided(opts) else {}
    guidance = nested(reflected.classifier_free(opts, net), guidance)
    compiled = False  # the adaptive sampler's batches shrink, and each size would be compiled
    if opts['sampler'] != 'ode':
        evaluations = named['steps'] * (2 if opts['sampler'] == 'heun' else 1 + opts['corrector_steps'])
        compiled = compile_for_sampling(machine, net, log_ratio, len(seeds) * evaluations)
    folder = open_folder(resolve_output(opts['outdir']), seeds, opts, record | named | dict(compile=compiled))
    draw(stream(blame('--tolerance')(sampler), net, batch=min(opts['batch'], len(seeds)), device=machine.device,
                class_idx=opts['class_idx'], guidance=guidance, pad=compiled, **own),
         folder, decode=net.decode, overwrite=opts['overwrite'])


if __name__ == '__main__':
    main()
