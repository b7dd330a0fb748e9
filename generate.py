"""Draws images from a score network with the EDM sampler, with or without discriminator guidance (EDM-G++)."""

import click

import classifier_lib
import networks
from commands import options
from commands.machine import blame_machine
from diffusion.schedules import GRIDS, SCALINGS, SCHEDULES, clamp_range, default_range, grid_steps
from dnnlib import demo
from dnnlib.cli import SectionedCommand, blame
from dnnlib.download import fetch
from dnnlib.files import file_digest, resolve_output, resolve_path
from generation import run as runner
from sampling.ablation import SOLVERS, ablation_sampler
from sampling.counted import Counted
from sampling.edm import edm_sampler
from sampling.guidance import DiscriminatorGuidance
from sampling.inputs import check_class, draw_inputs
from torch_utils import distributed as dist

ABLATION = [
    click.option('--solver', help='Ablate ODE solver', metavar='|'.join(SOLVERS), type=click.Choice(SOLVERS)),
    click.option('--disc', 'discretization', help='Ablate time step discretization {t_i}', metavar='|'.join(GRIDS),
                 type=click.Choice(GRIDS)),
    click.option('--schedule', help='Ablate noise schedule sigma(t)', metavar='|'.join(SCHEDULES),
                 type=click.Choice(SCHEDULES)),
    click.option('--scaling', help='Ablate signal scaling s(t)', metavar='|'.join(SCALINGS),
                 type=click.Choice(SCALINGS)),
]
ABLATION_NAMES = ('solver', 'discretization', 'schedule', 'scaling')


@click.command(cls=SectionedCommand, sections={
    'Samples': 'network', 'EDM sampler': 'num_steps', 'Ablations of the sampler': 'solver',
    'Discriminator guidance': 'dg_weight_1st_order', 'Machine': 'device'})
@options.with_options(options.SAMPLES, options.EDM, ABLATION, options.guidance(first_weight=2.0),
                      options.DISCRIMINATORS, options.MACHINE)
@blame_machine('--batch')
def main(**opts):
    """Draw samples from a score network, guided by a discriminator unless both weights are 0.

    Writes samples_<first seed>.npz (uint8 NHWC) or <seed>.png, and options.json. Sample k follows from seed k,
    whatever the number of processes; the size of the batch changes rounding alone. The same command again draws what
    is missing.

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
    seeds, device, dtype = options.start(opts)
    net = load_network(opts, device, dtype)
    guidance, log_ratio, record = load_guidance(opts, net, device, dtype)
    compiled = options.compile_networks(opts, net, log_ratio, device, len(seeds))
    net, batches = Counted(net), 0
    sampler, kwargs = choose_sampler(opts, net, guidance)
    record = kwargs | record | dict(
        network=opts['network'], network_sha256=file_digest(fetch(opts['network'] or demo.DEMO_SCORE)),
        class_idx=opts['class_idx'], device=device.type, precision=str(dtype).removeprefix('torch.'),
        tf32=opts['precision'] == 'tf32', compile=compiled)

    def sample_batch(batch_seeds, tick):
        nonlocal batches
        batches += 1
        rnd, latents, labels = draw_inputs(net, batch_seeds, device, opts['class_idx'])
        with blame('--network'):
            images = sampler(net, latents, labels, randn_like=rnd.randn_like, guidance=guidance, **kwargs,
                             callback=lambda step: tick((step.index + 1) / step.num_steps))
        return runner.Samples(images, labels)

    outdir = resolve_output(opts['outdir'])
    dist.print0(f'Drawing {len(seeds)} images to {outdir}')
    try:
        with blame('--outdir'):
            report = runner.run(sample_batch, seeds, outdir, batch=opts['batch'], options=record,
                                save_type=opts['save_type'], overwrite=opts['overwrite'], pad=compiled)
    except runner.NonFiniteSample as error:
        raise click.ClickException(f'--network: {error}; a lower --dg_weight_1st_order or --precision=fp32 may help, '
                                   f'else the checkpoint is broken') from None
    dist.print0(f'{report.images} images in {outdir}, {report.drawn} of them new, in {report.seconds:.1f} s')
    if batches:
        dist.print0(f'{net.calls / batches:g} evaluations of the score network per image, '
                    f'{log_ratio.calls / batches if log_ratio else 0:g} of the discriminator')
    dist.shutdown()


def load_network(opts, device, dtype):
    """The score network, checked against --class."""
    source = opts['network'] or demo.DEMO_SCORE
    dist.print0(f'Loading network from {source}')
    with blame('--network'):
        with dist.rank0_first():  # it downloads
            net = networks.load_network(source, device=device, dtype=dtype)
    with blame('--class'):
        check_class(net, opts['class_idx'])
    return net


def load_guidance(opts, net, device, dtype):
    """(the guidance or None, its log-ratio or None, what options.json says of them)."""
    if opts['cond'] and not net.label_dim:
        raise click.ClickException('--cond: a conditional discriminator needs a network with labels, and this one is '
                                   'unconditional; use --cond=0')
    weights = {name: opts[name] for name in ('dg_weight_1st_order', 'dg_weight_2nd_order')}
    if not any(weights.values()):
        return None, None, weights
    classifier, discriminator = options.discriminator_files(opts)
    dist.print0(f'Loading discriminator from {discriminator}')
    with blame('--pretrained_classifier_ckpt, --discriminator_ckpt'):
        log_ratio = Counted(classifier_lib.load_log_ratio(classifier, discriminator, net, bool(opts['cond']), device,
                                                          dtype, clip=opts['log_ratio'] == 'clipped'))
    with blame('--time_min'):
        guidance = DiscriminatorGuidance(log_ratio, opts['dg_weight_1st_order'], opts['dg_weight_2nd_order'],
                                         opts['boosting'] > 0, opts['time_min'], opts['time_max'])
    names = ('boosting', 'time_min', 'time_max', 'cond', 'log_ratio', 'pretrained_classifier_ckpt',
             'discriminator_ckpt')
    return guidance, log_ratio, weights | {name: opts[name] for name in names} | dict(
        classifier_sha256=file_digest(resolve_path(classifier)),
        discriminator_sha256=file_digest(resolve_path(discriminator)))


def choose_sampler(opts, net, guidance):
    """(the sampler, its options): EDM's ablation sampler where one of its options is given."""
    kwargs = {name: opts[name] for name in options.EDM_NAMES + ABLATION_NAMES if opts[name] is not None}
    grid = opts['discretization'] or 'edm'
    low, high = default_range(grid)
    with blame('--sigma_min, --sigma_max, --rho'):
        low, high = clamp_range(net, opts['sigma_min'] or low, opts['sigma_max'] or high)
        grid_steps(grid, opts['num_steps'], low, high, opts['rho'])
    if not any(opts[name] for name in ABLATION_NAMES):
        return edm_sampler, kwargs
    if guidance is not None and guidance.boosting:
        raise click.ClickException('--boosting: works with the EDM sampler alone; leave out --solver, --disc, '
                                   '--schedule and --scaling')
    if guidance is not None and guidance.weight_2nd and opts['solver'] == 'euler':
        raise click.ClickException('--dg_weight_2nd_order: Euler\'s steps have no second evaluation; leave it out')
    return ablation_sampler, kwargs


if __name__ == '__main__':
    main()
