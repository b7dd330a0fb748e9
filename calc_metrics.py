"""Every metric of folders of samples in one pass, with errors and verdicts; reference statistics."""

import click

from commands.in_memory import Drawn, block_length, run_in_memory, sampling_context
from commands.machine import blame_machine, start
from commands.measure import (
    DETECTOR_OPTIONS,
    JSON_OPTION,
    SPACE_OPTIONS,
    WEIGHT_OPTIONS,
    load_results,
    load_spaces,
    load_weights,
    measure_blocks,
    read_weights,
    refuse_tf32,
    show_results,
)
from commands.options import with_options
from dnnlib.cli import blame
from dnnlib.files import check_writable, resolve_output
from figures.results import short_names
from metrics.compare import run_options
from metrics.detectors import DETECTORS
from metrics.measure import measure
from metrics.reference import make_reference, provenance
from metrics.sources import open_source
from torch_utils import distributed as dist

FOLDER = ('A folder of samples*.npz or of PNG files, an npz or a zip, turned as their EXIF orientation says, as for '
          'statistics')


@click.group()
def main():
    """Measure samples by every metric in one pass, or make the statistics that they are compared with.

    Examples:

    \b
    # the shipped demo: every metric in the features of the shipped detector, guided against vanilla
    python calc_metrics.py calc --images=demo/vanilla --images=demo/guided --num=500

    \b
    # FID, precision and recall of 50k samples, and FD-CIFAR10 beside them, from one pass on 2 GPUs
    torchrun --standalone --nproc_per_node=2 calc_metrics.py calc --images=samples/run --metrics=fid,pr,fd_cifar10 \\
        --ref=stats/cifar10-inception.npz --ref=stats/cifar10-demo.npz

    \b
    # 500 images as a sampler draws them, nothing saved
    python calc_metrics.py gen -- generate.py --steps=9 --seeds=0-499

    \b
    # statistics with features, which kid, pr, dc and mind need
    python calc_metrics.py ref --images=data/cifar10-train.zip --detector=inception --dest=stats/cifar10-inception.npz
    """


@main.command()
@click.option('--images', 'folders', help=f'{FOLDER}. Repeatable: every later one is compared with the first',
              metavar='DIR|NPZ|ZIP', type=str, multiple=True, required=True)
@with_options(SPACE_OPTIONS)
@click.option('--num', '--num_samples', 'num', help='Images of a block; fewer are refused',
              metavar='INT', type=click.IntRange(min=20), default=50000, show_default=True)
@click.option('--blocks', help='Disjoint blocks of --num images; several give a deviation', metavar='INT',
              type=click.IntRange(min=1), default=1, show_default=True)
@JSON_OPTION
@with_options(DETECTOR_OPTIONS)
@blame_machine('--batch')
def calc(folders, refs, names, num, blocks, json_path, weights, allow_code, batch, precision, device):
    """Measure samples: values with standard errors, and differences between runs with a verdict.

    Every later run is compared with the first, image by image if both have the same seeds. A difference below two
    standard errors or below 1.3 % is inconclusive. Values depend on the number of images. Works under torchrun.
    """
    machine = start(device, precision)
    results = load_results(json_path)
    spaces = load_spaces(refs, names, machine, weights, allow_code)
    with blame('--images'):
        sources = [open_source(folder) for folder in folders]
        for source in sources:
            source.choose(num, blocks)
    found = [measure_blocks(source, spaces, results, num, blocks, batch=batch, precision=precision, option='--images')
             for source in sources]
    show_results(results, spaces, dict(zip(short_names([source.path for source in sources]), found, strict=True)),
                 [run_options(source.path) for source in sources], num)
    dist.shutdown()


@main.command(context_settings=dict(ignore_unknown_options=True))
@with_options(SPACE_OPTIONS)
@click.option('--blocks', help='Measure the images in this many blocks of equal length; several give a deviation',
              metavar='INT', type=click.IntRange(min=1), default=1, show_default=True)
@JSON_OPTION
@with_options(WEIGHT_OPTIONS)
@click.argument('words', nargs=-1, required=True, metavar='-- COMMAND', type=click.UNPROCESSED)
def gen(refs, names, blocks, json_path, weights, allow_code, words):
    """Measure images while they are drawn; nothing is saved but the results.

    COMMAND is a sampling script with its options, which give the number of images, the images at a time and the
    device. The detectors run in float32. Works under torchrun.
    """
    def take(drawn: Drawn) -> None:
        num = block_length(drawn, blocks)
        found = measure_blocks(drawn, spaces, results, num, blocks, batch=drawn.batch, precision='fp32',
                               option='--network')
        costs = results.keep_report(drawn.identity, drawn.report())
        show_results(results, spaces, {drawn.name: found}, [drawn.options | costs], num)

    with sampling_context(words, take) as command:
        refuse_tf32(command.params['precision'])
        machine = start(command.params['device'], 'fp32')
        results = load_results(json_path)
        spaces = load_spaces(refs, names, machine, weights, allow_code)
        run_in_memory(command)
    dist.shutdown()


@main.command()
@click.option('--images', help=FOLDER, metavar='DIR|NPZ|ZIP', type=str, required=True)
@click.option('--dest', help='The statistics to write', metavar='NPZ', type=str, required=True)
@click.option('--detector', 'name', help='Feature network', type=click.Choice(list(DETECTORS)), default='cifar10',
              show_default=True)
@click.option('--num', '--num_samples', 'num', help='Images to use; default: all', metavar='INT',
              type=click.IntRange(min=2))
@click.option('--features', help='Images whose features are kept, for kid, pr, dc and mind', metavar='INT',
              type=click.IntRange(min=0), default=10000, show_default=True)
@with_options(DETECTOR_OPTIONS)
@blame_machine('--batch')
def ref(images, dest, name, num, features, weights, allow_code, batch, precision, device):
    """Make statistics of a data set: mu, sigma, a sample of features, and what made them. Works under torchrun."""
    machine = start(device, precision)
    with blame('--dest'):
        check_writable(resolve_output(dest))
    detector = load_weights(name, machine, read_weights(weights), allow_code)
    with blame('--images'):
        source = open_source(images)
        num = num or len(source)
        source.choose(num)
        measured = measure(source, detector, 0, num, batch=batch, max_features=features)
        found = make_reference(measured, detector, source.name, provenance(source, num, precision))
    if dist.get_rank() == 0:
        with blame('--dest'):
            found.save(resolve_output(dest))
        click.echo(f'{resolve_output(dest)}: {found.dim} features of {found.count} images, detector {name}')
    dist.shutdown()


if __name__ == '__main__':
    main()
