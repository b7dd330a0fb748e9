"""Draws images by denoising MCMC (Kim and Ye, ICML 2023)."""

import functools

import click

from commands import dmcmc, options
from commands.draw import draw
from commands.loading import load_guidance, load_guides, load_network, refuse_boosting
from commands.machine import blame_machine, compile_for_sampling, start
from dnnlib.cli import SectionedCommand, blame
from dnnlib.files import resolve_output
from generation.chains import ChainFolder
from sampling import dmcmc_report, nested, stream
from sampling.dmcmc import Diverged, dmcmc_sampler
from torch_utils import distributed as dist


@click.command(cls=SectionedCommand, sections={
    'Samples': 'network', 'Chains': 'preset', 'Discriminator guidance': 'dg_weight_1st_order',
    'Other guidance': 'guiding_network', 'Machine': 'device'})
@options.with_options(options.NETWORK, options.SAMPLES, dmcmc.CHAINS, options.guidance(first_weight=0.0),
                      options.DISCRIMINATORS, options.GUIDES, options.MACHINE)
@blame_machine('--batch')
def main(**opts):
    """Draw samples as denoised states of Markov chains over images and noise levels.

    Writes samples_<number>.npz (uint8 NHWC) or <number>.png, chains_<number>.npz (what continues the chains) and
    options.json. Sample k is output k div --chains of chain k mod --chains, and chain c follows from seed c, whatever
    the number of processes; the size of the batch changes only rounding. The same command again draws what is missing;
    with a larger --num_samples it continues. Under guidance a weight of 1 is exact in both evaluations of a step.

    Examples:

    \b
    # 400 images of the demo network from 100 chains
    python generate_dmcmc.py --outdir=samples/dmcmc --num_samples=400 --chains=100

    \b
    # of a network of your own, with a noise-level model for it
    python train_classifier.py --outdir=runs/noise_level --task=noise_level --data=data/cifar10-train.zip
    python generate_dmcmc.py --outdir=samples/dmcmc-own --network=runs/score/network-000400.safetensors \\
        --noise_classifier=runs/noise_level/noise_level.safetensors

    \b
    # the published setting for CelebA-HQ, 48 evaluations per image; classifier: logs/CELEBAHQ/100.pt of the
    # published code; network: checkpoint_48.pth of ve/celebahq_256_ncsnpp_continuous
    python generate_dmcmc.py --outdir=samples/celebahq --preset=celebahq-kar2-48 --num_samples=10000 \\
        --network=ve/celebahq_256_ncsnpp_continuous/checkpoint_48.pth --noise_classifier=100.pt

    \b
    # guided by the demo's discriminator, in Langevin steps and in Heun's
    python generate_dmcmc.py --outdir=samples/dmcmc-dg --num_samples=400 --chains=100 --dg_weight_1st_order=1 \\
        --dg_weight_2nd_order=1
    """
    numbers = options.seeds_of(opts)
    machine = start(opts['device'], opts['precision'], opts['compile_mode'])
    net, origin = load_network(opts, machine)
    opts = dmcmc.settle(opts, net)
    noise_level, model = dmcmc.noise_level_of(opts, net, machine)
    refuse_boosting(opts)
    log_ratio, guidance, guided = load_guidance(opts, net, machine)
    guides, guided_by = load_guides(opts, net, machine)
    own, named, evaluations = dmcmc.sampler_options(opts, noise_level, model['noise_levels'])
    compiled = False  # rk45's batches shrink, and each size would be compiled
    if opts['integrator'] != dmcmc.STEPLESS:
        compiled = compile_for_sampling(machine, net, log_ratio, len(numbers) * evaluations)
    record = origin | model | guided | guided_by | named | machine.record() | dict(kind='dmcmc', compile=compiled)
    batch = min(opts['batch'], opts['chains'])
    with blame('--chains, --batch, --num_samples'):
        folder = ChainFolder(resolve_output(opts['outdir']), numbers, opts['chains'], batch, record, opts['save_type'])
    if folder.groups < dist.get_world_size():
        dist.print0(f'Note: {opts["chains"]} chains in groups of {batch} keep {folder.groups} of '
                    f'{dist.get_world_size()} processes at work; a smaller --batch makes more groups')
    draws = stream(dmcmc_sampler, net, **own, class_idx=opts['class_idx'], guidance=nested(*guides, guidance),
                   batch=batch, device=machine.device, keep_state=True,
                   find_state=None if opts['overwrite'] else folder.find_state)
    try:
        draw(draws, folder, decode=net.decode, overwrite=opts['overwrite'], describe=dmcmc_report.describe,
             details=functools.partial(dmcmc.report, folder, own, guides), remedy='a lower --eta or --precision=fp32')
    except Diverged as error:
        raise click.ClickException(f'--eta: {error}; use a smaller one') from None


if __name__ == '__main__':
    main()
