"""Pictures: sample grids side by side, distances against an option, training curves, rejection profiles."""

import json
import math
from pathlib import Path

import click
import matplotlib
import numpy as np

from dnnlib.cli import blame
from dnnlib.files import atomic_write, resolve_output, resolve_path
from metrics.sources import open_source
from torch_utils.images import image_grid
from torch_utils.stats import JsonLines

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of a back end without a screen)

DPI = 100
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
    pictures = []
    with blame('FOLDERS'):
        for folder in folders:
            source = open_source(folder)
            images = next(source.batches(0, min(num, len(source)), num)).permute(0, 2, 3, 1).numpy()
            pictures.append(image_grid(images, columns))  # [H, W, 3]
            if titles[len(pictures) - 1] is None:
                titles[len(pictures) - 1] = source.name
    with blame('--out'):
        save(side_by_side(pictures, titles, zoom), out)


@main.command()
@click.argument('files', nargs=-1, required=True)
@out_option
@click.option('--x', 'x_name', help="An entry of the samples' options.json, such as num_steps or report.nfe.mean",
              metavar='NAME', type=str)
@click.option('--values', help='Or the values themselves, one for each result in order', metavar='LIST', type=str)
@click.option('--y', 'y_name', help='What to show', type=click.Choice(['distance', 'kid']), default='distance',
              show_default=True)
@click.option('--by', help='One line for each value of this option', metavar='NAME', type=str)
@click.option('--lines', help='Or the names of the lines, one for each result in order', metavar='LIST', type=str)
@click.option('--xlabel', help='Label of the axis; default: --x', metavar='STR', type=str)
def curve(files, out, x_name, values, y_name, by, lines, xlabel):
    """A distance, from fid_npzs.py --json FILES, against an option of the samples, with deviations over blocks."""
    if (x_name is None) == (values is None):
        raise click.ClickException('--x: give either --x or --values')
    with blame('FILES'):
        reports = [read_report(file) for file in files]
        results = [result for report in reports for result in report['results']]
        metrics = {report['metric'] for report in reports}
        if len(metrics) > 1:
            raise ValueError(f'one picture for different metrics ({", ".join(sorted(metrics))})')
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
    metric = metrics.pop() if y_name == 'distance' else 'KID'
    counts = sorted({result['num_samples'] for result in results})
    with blame('--y'):
        figure = distance_curve(x, results, names, y_name)
    figure.axes[0].set(xlabel=xlabel or x_name or '',
                       ylabel=f'{metric} ({" and ".join(f"{count:,}" for count in counts)} samples)')
    with blame('--out'):
        save(figure, out)


@main.command()
@click.argument('runs', nargs=-1, required=True)
@out_option
@click.option('--log', 'log_scale', help='Logarithmic loss', is_flag=True)
def training(runs, out, log_scale):
    """Loss and accuracy of training RUNS (folders with a stats.jsonl, or such files) against thousands of images."""
    lines = {}
    with blame('RUNS'):
        paths = [path / 'stats.jsonl' if path.is_dir() else path for path in map(resolve_path, runs)]
        for name, path in zip(short_names([path.parent for path in paths]), paths, strict=True):
            lines[name] = found = JsonLines(path).read()
            if not any('nimg' in line for line in found):
                raise ValueError(f'{path} has no training statistics')
    with blame('--out'):
        save(training_curves(lines, log_scale), out)


@main.command()
@click.argument('runs', nargs=-1, required=True)
@out_option
def profile(runs, out):
    """Acceptance and rejections by step, what an image costs: from the options.json of each folder."""
    reports = {}
    for name, run in zip(short_names([Path(run) for run in runs]), runs, strict=True):
        with blame('RUNS'):
            path = resolve_path(run) / 'options.json'
            found = reports[name] = read_report(path, ('seeds',), 'generate_diffrs.py').get('report', {})
            if 'levels' not in found:
                raise ValueError(f'{path} has no report of generate_diffrs.py; the same command again writes it')
    with blame('--out'):
        save(profile_curves(reports), out)


def profile_curves(reports: dict[str, dict]):
    """Three panels: acceptance rate and rejections per image against the step, evaluations per image."""
    figure, (rate, count, cost) = plt.subplots(1, 3, figsize=(13, 3.6), layout='constrained')
    names = list(reports)
    for name in names:
        levels = [level for level in reports[name]['levels'] if level['tests']]
        steps = [level['level'] for level in levels]
        rate.plot(steps, [level['acceptance'] for level in levels], 'o-', ms=3, label=name)
        count.plot(steps, [level['rejections'] / reports[name]['images'] for level in levels], 'o-', ms=3, label=name)
    for offset, kind in ((-0.2, 'nfe'), (0.2, 'discriminator_calls')):
        rows = [reports[name][kind] for name in names]
        error = [[row['median'] - row['q05'] for row in rows], [row['q95'] - row['median'] for row in rows]]
        cost.bar(np.arange(len(names)) + offset, [row['median'] for row in rows], 0.4, yerr=error,
                 label=kind.replace('_', ' '))
    cost.set_xticks(range(len(names)), [_cost_label(name, reports[name]) for name in names])
    for axes, title, xlabel in ((rate, 'acceptance rate', 'step'), (count, 'rejections per image', 'step'),
                                (cost, 'per image: median, 5 to 95 %', '')):
        axes.set(title=title, xlabel=xlabel)
        axes.legend()
        axes.grid(alpha=0.3)
    return figure


def _cost_label(name: str, report: dict) -> str:
    """Name, seconds and restarts of a run."""
    timed = f'\n{report["wall_sec"] / report["timed_images"]:.3g} s each' if report['timed_images'] else ''
    return f'{name}{timed}\n{report["samples_at_cap"]} hit the cap'


def side_by_side(pictures, titles, zoom: int):
    """A figure in which each pixel of the pictures [H, W, 3] is zoom x zoom pixels, with titles above."""
    gap, head = 10, 26
    height = zoom * max(picture.shape[0] for picture in pictures) + head + gap
    width = zoom * sum(picture.shape[1] for picture in pictures) + gap * (len(pictures) + 1)
    figure = plt.figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    left = gap
    for picture, title in zip(pictures, titles, strict=True):
        h, w = zoom * picture.shape[0], zoom * picture.shape[1]
        axes = figure.add_axes([left / width, 1 - (head + h) / height, w / width, h / height])
        axes.imshow(picture, interpolation='nearest')
        axes.set_axis_off()
        axes.set_title(title, fontsize=11, pad=4)
        left += w + gap
    return figure


def distance_curve(x, results, names, y_name: str):
    """One line per name through (x, results[y_name]), with error bars where there are deviations.

    Raises ValueError where a result lacks the quantity.
    """
    figure, axes = plt.subplots(figsize=(6, 4), dpi=2 * DPI, layout='constrained')
    for name in dict.fromkeys(names):
        points = []
        for value, result, other in zip(x, results, names, strict=True):
            if other == name:
                if result.get(y_name) is None:
                    raise ValueError(f'{result["name"]} was measured without {y_name}')
                points.append((value, result[y_name], result.get(f'{y_name}_deviation') or 0.0))
        px, py, error = np.array(sorted(points)).T
        axes.errorbar(px, py, yerror_or_none(error), marker='o', markersize=4, capsize=3, label=name or None)
    if any(names):
        axes.legend()
    axes.grid(alpha=0.3)
    return figure


def yerror_or_none(error):
    """Error bars, or None where all are zero."""
    return error if error.any() else None


def training_curves(runs: dict[str, list[dict]], log_scale: bool):
    """Panels of every loss and accuracy that the runs recorded, against thousands of images."""
    keys = list(dict.fromkeys(key for lines in runs.values() for line in lines for key, value in line.items()
                              if isinstance(value, int | float) and _panel(key)))
    panels = list(dict.fromkeys(_panel(key) for key in keys))
    figure, axes = plt.subplots(1, max(len(panels), 1), figsize=(5 * max(len(panels), 1), 3.6), dpi=1.5 * DPI,
                                layout='constrained', squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=False):
        for run, lines in runs.items():
            for key in (key for key in keys if _panel(key) == panel):
                points = [(line['nimg'] / 1000, line[key]) for line in lines
                          if 'nimg' in line and isinstance(line.get(key), int | float) and math.isfinite(line[key])]
                if points:
                    axis.plot(*zip(*points, strict=True), label=key if len(runs) == 1 else f'{run} {key}')
        axis.set(xlabel='thousands of images', title=panel)
        if panel == 'loss' and log_scale:
            axis.set_yscale('log')
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure


def _panel(key: str) -> str:
    """The panel that a statistic belongs to, '' for none."""
    return next((panel for panel in ('loss', 'accuracy', 'auc') if panel in key.lower()), '')


def read_report(file, keys=('metric', 'results'), writer='fid_npzs.py --json') -> dict:
    """The JSON object that `writer` wrote, which has `keys`. Raises ValueError for anything else."""
    path = resolve_path(file)
    try:
        report = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError):
        report = None
    if not isinstance(report, dict) or not set(keys) <= report.keys():
        raise ValueError(f'{path} was not written by {writer}')
    return report


def option(result: dict, name: str):
    """The value of an option of the samples, that of a group as `report.nfe.mean`. Raises ValueError for none."""
    options = value = result.get('options') or {}
    for part in name.split('.'):
        value = value.get(part) if isinstance(value, dict) else None
    if value is not None:
        return value
    known = ', '.join(options) or 'no options.json was beside the samples'
    raise ValueError(f'{result["name"]} has no option {name} ({known})')


def number(result: dict, name: str) -> float:
    """As `option`, for one that is a number. Raises ValueError for another."""
    value = option(result, name)
    try:
        return float(value)
    except (TypeError, ValueError):
        of = f'; it has {", ".join(value)}' if isinstance(value, dict) else ''
        raise ValueError(f'{name} of {result["name"]} is not a number{of}') from None


def short_names(folders: list[Path]) -> list[str]:
    """The last part of each path, or the whole path where several end alike."""
    names = [folder.name for folder in folders]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]


def save(figure, out: str) -> None:
    """Writes a figure, whole or not at all, in the format of the file's ending, and closes it."""
    path = resolve_output(out)
    kind = Path(path).suffix.removeprefix('.') or 'png'
    if kind not in ('png', 'svg', 'pdf'):
        raise ValueError(f'{path.name}: the ending says {kind}; use png, svg or pdf')
    with atomic_write(path) as file:
        figure.savefig(file, format=kind)
    plt.close(figure)
    click.echo(f'{path}')


if __name__ == '__main__':
    main()
