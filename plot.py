"""Pictures: grids side by side, distances against an option, training curves, rejection profiles."""

import click

from commands.report import add_neighbours, first_images, nhwc, read_inputs
from dnnlib.cli import blame
from dnnlib.files import atomic_write, resolve_output
from figures.canvas import save
from figures.curves import distance_curve, training_curves
from figures.grids import side_by_side
from figures.rejections import profile_curves
from figures.report import report_page
from figures.results import number, option, read_profiles, read_results, read_training
from metrics.sources import open_source
from torch_utils.images import image_grid

out_option = click.option('--out', help='The picture to write; .png, .svg or .pdf', metavar='FILE', type=str,
                          required=True)


@click.group()
def main():
    """Draw pictures of samples and results.

    Examples:

    \b
    # the first 64 samples of two folders, side by side, the same seeds in the same places
    python plot.py grid demo/vanilla demo/guided --out=demo/grids.png

    \b
    # FD-CIFAR10 against the weight of the guidance; each JSON comes from fid_npzs.py --json
    python plot.py curve results/*.json --x=dg_weight_1st_order --out=docs/weights.png

    \b
    # loss and accuracy of a training run
    python plot.py training runs/score --out=score.png

    \b
    # where diffusion rejection sampling rejects, and what it costs
    python plot.py profile samples/diffrs --out=profile.png

    \b
    # one page about an experiment, for a browser
    python plot.py report demo/vanilla demo/guided demo/metrics.json runs/score --out=demo/report.html
    """


@main.command()
@click.argument('folders', nargs=-1, required=True)
@out_option
@click.option('--num', help='Samples of each folder', metavar='INT', type=click.IntRange(min=1), default=64,
              show_default=True)
@click.option('--columns', help='Samples in a row; default: a square', metavar='INT', type=click.IntRange(min=1))
@click.option('--titles', help='Titles, separated by commas; default: the names of the folders', metavar='LIST',
              type=str)
@click.option('--zoom', help='Pixels per pixel', metavar='INT', type=click.IntRange(min=1, max=16), default=2,
              show_default=True)
def grid(folders, out, num, columns, titles, zoom):
    """The first samples of each folder, in the order of seeds, side by side."""
    titles = titles.split(',') if titles else [None] * len(folders)
    if len(titles) != len(folders):
        raise click.ClickException(f'--titles: {len(titles)} titles for {len(folders)} folders')
    with blame('FOLDERS'):
        sources = [open_source(folder) for folder in folders]
        grids = [image_grid(nhwc(first_images(source, num)), columns) for source in sources]
    titles = [title or source.name for title, source in zip(titles, sources, strict=True)]
    write(side_by_side(grids, titles, zoom), out)


@main.command()
@click.argument('files', nargs=-1, required=True)
@out_option
@click.option('--x', 'x_name', help="An entry of the samples' options.json, such as num_steps or report.nfe.mean",
              metavar='NAME', type=str)
@click.option('--values', help='Or the values themselves, one for each result in order', metavar='LIST', type=str)
@click.option('--y', 'y_name', help='What to show: distance, kid, or a metric of calc_metrics.py', metavar='NAME',
              type=str, default='distance', show_default=True)
@click.option('--by', help='One line for each value of this option', metavar='NAME', type=str)
@click.option('--lines', help='Or the names of the lines, one for each result in order', metavar='LIST', type=str)
@click.option('--xlabel', help='Label of the axis; default: --x', metavar='STR', type=str)
def curve(files, out, x_name, values, y_name, by, lines, xlabel):
    """A metric against an option of the samples, with errors; FILES are JSON of fid_npzs.py or calc_metrics.py."""
    if (x_name is None) == (values is None):
        raise click.ClickException('--x: give either --x or --values')
    with blame('FILES'):
        results, ylabel = read_results(files, y_name)
    if values is not None:
        with blame('--values'):
            x = [float(value) for value in values.split(',')]
            if len(x) != len(results):
                raise ValueError(f'{len(x)} values for {len(results)} results')
    else:
        with blame('--x'):
            x = [number(result, x_name) for result in results]
    if lines is None:
        with blame('--by'):
            names = ['' if by is None else f'{by} = {option(result, by)}' for result in results]
    else:
        names = lines.split(',')
        if by is not None or len(names) != len(results):
            raise click.ClickException(f'--lines: give one name for each of the {len(results)} results, and no --by')
    figure = distance_curve(x, results, names)
    figure.axes[0].set(xlabel=xlabel or x_name or '', ylabel=ylabel)
    write(figure, out)


@main.command()
@click.argument('runs', nargs=-1, required=True)
@out_option
@click.option('--log', 'log_scale', help='Logarithmic loss', is_flag=True)
def training(runs, out, log_scale):
    """Loss and accuracy of training RUNS (folders with a stats.jsonl, or such files) against thousands of images."""
    with blame('RUNS'):
        lines = read_training(runs)
    write(training_curves(lines, log_scale), out)


@main.command()
@click.argument('runs', nargs=-1, required=True)
@out_option
def profile(runs, out):
    """Acceptance and rejections by step, what an image costs: from the options.json of each folder."""
    with blame('RUNS'):
        reports = read_profiles(runs)
    write(profile_curves(reports), out)


@main.command()
@click.argument('inputs', nargs=-1, required=True)
@click.option('--out', help='The page to write', metavar='HTML', type=str, required=True)
@click.option('--num', help='Samples of each run in its grid', metavar='INT', type=click.IntRange(min=1), default=64,
              show_default=True)
@click.option('--neighbours', help='Show the training images nearest to some samples, in the features of the shipped '
              'detector', metavar='DIR|ZIP', type=str)
@click.option('--title', help='Heading of the page', metavar='STR', type=str, default='Results', show_default=True)
def report(inputs, out, num, neighbours, title):
    """One page about an experiment, with everything inside: tables, grids, costs, curves, options.

    INPUTS: folders of samples, folders of training runs (with a stats.jsonl), and JSON of calc_metrics.py or
    fid_npzs.py.
    """
    with blame('INPUTS'):
        summaries, runs, training = read_inputs(inputs, num)
    if neighbours:
        add_neighbours(runs, inputs, neighbours)
    page = report_page(title, summaries, runs, training)
    with blame('--out'), atomic_write(resolve_output(out)) as file:
        file.write(page.encode())
    click.echo(f'{resolve_output(out)}')


def write(figure, out: str) -> None:
    """The last thing that each command does: save the picture, say where."""
    with blame('--out'):
        path = resolve_output(out)
        save(figure, path)
    click.echo(f'{path}')


if __name__ == '__main__':
    main()
