"""Every metric of folders of samples in one pass, with errors and verdicts; reference statistics."""

import click

from commands.machine import blame_machine, start
from commands.measure import DETECTOR_OPTIONS, load_space, load_weights, read_weights
from commands.options import with_options
from dnnlib import demo
from dnnlib.cli import blame
from dnnlib.files import check_writable, resolve_output
from figures.results import short_names
from metrics.compare import run_options
from metrics.detectors import DETECTORS
from metrics.evaluate import METRICS, choose_metrics, evaluate, possible
from metrics.measure import measure
from metrics.reference import make_reference, provenance
from metrics.results import Results, as_text, block_key, summarise
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
    # statistics with features, which kid, pr, dc and mind need
    python calc_metrics.py ref --images=data/cifar10-train.zip --detector=inception --dest=stats/cifar10-inception.npz
    """


@main.command()
@click.option('--images', 'folders', help=f'{FOLDER}. Repeatable: every later one is compared with the first',
              metavar='DIR|NPZ|ZIP', type=str, multiple=True, required=True)
@click.option('--ref', 'refs', help='Statistics, each of another detector; default: the shipped ones. Repeatable',
              metavar='NPZ|URL', type=str, multiple=True)
@click.option('--metrics', 'names', help=f'Comma-separated: {", ".join(METRICS)}, or fid, fid_inf, fd_DETECTOR for one '
              'detector; default: all that the statistics allow', metavar='LIST', type=str)
@click.option('--num', '--num_samples', 'num', help='Images of a block; fewer are refused',
              metavar='INT', type=click.IntRange(min=20), default=50000, show_default=True)
@click.option('--blocks', help='Disjoint blocks of --num images; several give a deviation', metavar='INT',
              type=click.IntRange(min=1), default=1, show_default=True)
@click.option('--json', 'json_path', help='Write the results there, after each pass; the same command again measures '
              'only what is missing', metavar='FILE', type=str)
@with_options(DETECTOR_OPTIONS)
@blame_machine('--batch')
def calc(folders, refs, names, num, blocks, json_path, weights, allow_code, batch, precision, device):
    """Measure samples: values with standard errors, and differences between runs with a verdict.

    Every later run is compared with the first, image by image if both have the same seeds. A difference below two
    standard errors or below 1.3 % is inconclusive. Values depend on the number of images. Works under torchrun.
    """
    machine = start(device, precision)
    results = Results(None if json_path is None else resolve_output(json_path))
    if json_path is not None:
        with blame('--json'):
            check_writable(results.path)
            results.load()
    refs, weights = dict.fromkeys(refs or [str(demo.DEMO_STATS)]), read_weights(weights)
    spaces = {ref: load_space(ref, machine, weights, allow_code) for ref in refs}
    with blame('--metrics'):
        choose_metrics(names.split(',') if names else possible(spaces.values()), spaces.values())
    with blame('--images'):
        sources = [open_source(folder) for folder in folders]
        for source in sources:
            source.choose(num, blocks)

    def key(source, ref, block):
        return block_key(source, spaces[ref], ref, block * num, num, precision)

    for source in sources:
        for block in range(blocks):
            left = {ref: results.missing(key(source, ref, block), space) for ref, space in spaces.items()}
            left = {ref: missing for ref, missing in dist.broadcast_object(left).items() if missing}
            if not left:
                continue
            with blame('--images'):
                found = evaluate(source, [spaces[ref].only(missing) for ref, missing in left.items()], block * num,
                                 num, batch=batch, desc=f'{source.name} {block + 1}/{blocks}')
            for ref, values in zip(left, found, strict=True):
                results.blocks.setdefault(key(source, ref, block), {}).update(values)
            with blame('--json'):
                dist.on_rank0(results.save)
    if dist.get_rank() == 0:
        options = [run_options(source.path) for source in sources]
        for ref, space in spaces.items():
            runs = {name: [results.found(key(source, ref, block), space) for block in range(blocks)]
                    for name, source in zip(short_names([source.path for source in sources]), sources, strict=True)}
            shown = demo.DEMO_STATS.name if ref == str(demo.DEMO_STATS) else ref
            results.summaries.append(summarise(space, shown, runs, options, num))
            click.echo(as_text(results.summaries[-1]) + '\n')
        with blame('--json'):
            results.save()
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
