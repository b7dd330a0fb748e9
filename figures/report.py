"""A report page: one HTML file for an experiment, with its tables and pictures inside."""

import base64
import datetime
import io
import math

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from torch_utils.images import png_bytes

from .curves import training_curves
from .rejections import profile_curves

# Okabe and Ito's colours, which most colour-blind readers tell apart.
COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000']
STYLE = {'axes.prop_cycle': matplotlib.cycler(color=COLOURS), 'svg.hashsalt': 'report', 'font.size': 11}
COUNTS = {'nfe': 'evaluations of the score network', 'discriminator_calls': 'of the discriminator'}
SCALES = {'kid': 1000}  # of the numbers behind labels


def report_page(title: str, summaries: list[dict], grids: dict[str, np.ndarray], options: dict[str, dict],
                training: dict[str, list[dict]]) -> str:
    """HTML that needs nothing else.

    summaries: results of calc_metrics.py, or of fid_npzs.py by `results.read_summaries`; grids: pictures uint8
    [H, W, 3] of each run; options: the options.json of each run, of which `report` holds the costs; training: the
    lines of the stats.jsonl of each training run. Any of them may be empty.
    """
    environment = jinja2.Environment(loader=jinja2.PackageLoader('figures', '.'), autoescape=True, trim_blocks=True,
                                     undefined=jinja2.StrictUndefined)
    environment.filters['number'] = number_text
    costs = {name: each['report'] for name, each in options.items() if each.get('report')}
    plain = {name: {key: value for key, value in each.items() if key != 'report'} for name, each in options.items()}
    with matplotlib.rc_context(STYLE):
        summaries = [summary | dict(chart=_metric_chart(summary)) for summary in summaries]
        charts = []
        rejecting = {name: each for name, each in costs.items() if 'levels' in each}
        if rejecting:
            charts.append(dict(title='Rejections', picture=_svg(profile_curves(rejecting))))
        if training:
            charts.append(dict(title='Training', picture=_svg(training_curves(training, log_scale=False))))
    return environment.get_template('report.html.jinja').render(
        title=title, made=f'Made on {datetime.date.today():%d %B %Y}.', summaries=summaries, charts=charts,
        grids={name: _data_url('image/png', png_bytes(grid)) for name, grid in grids.items()},
        costs=[_cost(name, each) for name, each in costs.items()], options=plain, differing=_differing(plain))


def number_text(each: dict, name: str) -> str:
    """A value and its deviation over blocks, or else its standard error."""
    error, scale = each['error'] if each.get('deviation') is None else each['deviation'], SCALES.get(name, 1)
    if each['value'] is None:
        return '-'
    return f'{scale * each["value"]:.4g}' + ('' if error is None else f' \N{PLUS-MINUS SIGN} {scale * error:.2g}')


def _metric_chart(summary: dict) -> str | None:
    """A panel for each metric with a point for each run; None for one run."""
    results = summary['results']
    names = list(results[0]['metrics'])
    if len(results) < 2:
        return None
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3 * columns, rows * (0.9 + 0.32 * len(results))), layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, name in zip(panels, names):
        for place, result in enumerate(results):
            each, scale = result['metrics'][name], SCALES.get(name, 1)
            error = each['error'] if each['deviation'] is None else each['deviation']
            if each['value'] is not None and math.isfinite(each['value']):
                axes.errorbar(scale * each['value'], place, xerr=None if error is None else scale * error, fmt='o',
                              capsize=3)
        axes.set_title(results[0]['metrics'][name]['label'], fontsize=11)
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(results)), [result['name'] for result in results])
    panels[0].set_ylim(len(results) - 0.5, -0.5)
    for axes in panels[len(names):]:
        axes.set_axis_off()
    return _svg(figure)


def _cost(name: str, report: dict) -> dict:
    """A row of the table of costs."""
    timed = report.get('timed_images')
    return dict(name=name, images=report.get('images', 0), counts={label: report.get(key) for key, label in
                                                                   COUNTS.items()},
                seconds=report['wall_sec'] / timed if timed else None)


def _differing(options: dict[str, dict]) -> list[str]:
    """Names of the options that are not the same in all runs."""
    names = dict.fromkeys(name for each in options.values() for name in each)
    return [name for name in names if len({str(each.get(name)) for each in options.values()}) > 1]


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='svg', metadata=dict(Date=None))
    return _data_url('image/svg+xml', buffer.getvalue())


def _data_url(kind: str, data: bytes) -> str:
    return f'data:{kind};base64,{base64.b64encode(data).decode()}'
