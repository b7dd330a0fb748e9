"""Frechet distances (FID, or FD-CIFAR10 with the shipped detector) and KID of folders of samples."""

import json

import click

from commands.machine import blame_machine, start
from dnnlib import demo
from dnnlib.cli import blame
from dnnlib.download import fetch
from dnnlib.files import atomic_write, check_writable, resolve_output
from metrics.compare import compare, table
from metrics.detectors import DETECTORS, load_detector
from metrics.reference import load_reference, make_reference
from metrics.sources import open_source
from torch_utils import distributed as dist
from torch_utils.device import PRECISIONS


@click.command()
@click.option('--images', 'folders',  help='A folder of samples*.npz or of image files, an npz or a zip; photos are '
              'turned as their EXIF orientation says, as for statistics; repeatable',
              metavar='DIR|NPZ|ZIP', type=str, multiple=True, required=True)
@click.option('--ref', 'ref_path',    help='Statistics to compare with; default: the shipped ones of CIFAR-10',
              metavar='NPZ|URL', type=str)
@click.option('--num_samples',        help='Images to use; fewer are refused. Of more the first are taken; of image '
              'files that are not named by seeds random ones, always the same', metavar='INT',
              type=click.IntRange(min=4), default=50000, show_default=True)
@click.option('--blocks',             help='Disjoint blocks of --num_samples images; several give mean and deviation',
              metavar='INT', type=click.IntRange(min=1), default=1, show_default=True)
@click.option('--detector',           help='Feature network; auto: the one that made the statistics',
              type=click.Choice(['auto', *DETECTORS]), default='auto', show_default=True)
@click.option('--detector_ckpt',      help="The detector's weights; default: shipped or published ones", metavar='FILE',
              type=str)
@click.option('--allow_code',         help="Run NVIDIA's detector, whose file is a program", is_flag=True)
@click.option('--batch',              help='Images per forward pass', metavar='INT', type=click.IntRange(min=1),
              default=64, show_default=True)
@click.option('--precision',          help='Arithmetic of the detector; fp32 is comparable with published values',
              type=click.Choice(PRECISIONS), default='fp32', show_default=True)
@click.option('--device',             help='auto, cpu, cuda or cuda:N', metavar='STR', type=str, default='auto',
              show_default=True)
@click.option('--json', 'json_path',  help='Also write the results there', metavar='FILE', type=str)
@click.option('--save_stats',         help='Also write the statistics of the images there', metavar='NPZ', type=str)
@blame_machine('--batch')
def main(folders, ref_path, num_samples, blocks, **opts):
    """Measure the distance between folders of samples and a data set.

    Prints "<folder>, <distance>" for each and, if the statistics hold features (the shipped ones do), a table with KID,
    which unlike the Frechet distance is unbiased for few images.

    Examples:

    \b
    # the shipped demo: FD-CIFAR10 of 500 vanilla and guided samples
    python fid_npzs.py --images=demo/vanilla --images=demo/guided --num_samples=500

    \b
    # FID of 50k samples against EDM's published statistics
    python fid_npzs.py --ref=/stats/cifar10-32x32.npz --num_samples=50000 --images=/samples/cifar_uncond/

    \b
    # on 2 GPUs, three blocks of 10k, results as JSON for plot.py curve
    torchrun --standalone --nproc_per_node=2 fid_npzs.py --images=samples/run --num_samples=10000 --blocks=3 \\
        --json=run.json
    """
    machine = start(opts['device'], opts['precision'])
    if opts['save_stats'] and (len(folders) > 1 or blocks > 1):
        raise click.ClickException('--save_stats: takes one --images and one block')
    for option, path in (('--json', opts['json_path']), ('--save_stats', opts['save_stats'])):
        if path is not None:
            with blame(option):
                check_writable(resolve_output(path))
    with blame('--ref' if ref_path else '--ref (the shipped statistics)'), dist.rank0_first():  # it downloads
        ref = load_reference(fetch(ref_path or demo.DEMO_STATS))
    with blame('--images'):
        sources = [open_source(folder) for folder in folders]
        for source in sources:
            source.choose(num_samples, blocks)
            dist.print0(f'{source.path}: {len(source)} images, {num_samples * blocks} used')
    detector = choose_detector(ref, machine, opts)
    results = []
    for source in sources:
        with blame('--images'):
            result, measured = compare(source, ref, detector, num_samples, blocks, opts['batch'],
                                       keep_features=opts['save_stats'] is not None)
        results.append(result)
        dist.print0(f'{source.name}, {result["distance"]:g}')
        if opts['save_stats'] and dist.get_rank() == 0:
            with blame('--save_stats'):
                make_reference(measured, detector, source=source.name).save(resolve_output(opts['save_stats']))
    if ref.features is not None or blocks > 1:
        dist.print0(table(results, detector.distance))
    if opts['json_path'] and dist.get_rank() == 0:
        report = dict(metric=detector.distance, detector=detector.name, fingerprint=detector.fingerprint,
                      ref=str(ref_path or demo.DEMO_STATS.name), ref_count=ref.count, precision=opts['precision'],
                      num_samples=num_samples, results=results)
        with blame('--json'), atomic_write(resolve_output(opts['json_path'])) as file:
            file.write((json.dumps(report, indent=1) + '\n').encode())
    dist.shutdown()


def choose_detector(ref, machine, opts):
    """The detector that the options name, by default the one that made the statistics; prints a note if they differ."""
    with blame('--detector'):
        name = ref.default_detector() if opts['detector'] == 'auto' else opts['detector']
        with dist.rank0_first():  # it downloads
            detector = load_detector(name, machine.device, machine.dtype, opts['detector_ckpt'], opts['allow_code'])
        note = ref.check(detector)
    if note:
        dist.print0(f'Note: {note}')
    return detector


if __name__ == '__main__':
    main()
