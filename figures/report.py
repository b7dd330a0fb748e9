"""A report page: one HTML file for an experiment, with its tables and pictures inside."""

import base64
import datetime
import io
import math
from dataclasses import dataclass

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dnnlib.run_folder import CLASS_NAMES, COMMAND, REPORT
from torch_utils.images import png_bytes

from .by_level import level_curves
from .calibration import calibration_curve
from .curves import training_curves
from .rejections import profile_curves
from .varying import varying_curves

# Okabe and Ito's colours, which most colour-blind readers tell apart.
COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000']
STYLE = {'axes.prop_cycle': matplotlib.cycler(color=COLOURS), 'svg.hashsalt': 'report', 'font.size': 11}
COUNTS = {'nfe': 'evaluations of the score network', 'discriminator_calls': 'of the discriminator'}


@dataclass
class Run:
    """Samples of one run. `options`: its options.json, {} if unknown; pictures uint8 [H, W, 3], None if there are none.

    grid: the first samples; by_class: a row for each class; neighbours: a row for each sample, with the training images
    nearest to it.
    """

    name: str
    options: dict
    grid: np.ndarray | None = None
    by_class: np.ndarray | None = None
    neighbours: np.ndarray | None = None


@dataclass
class Training:
    """A training run: the lines of its stats.jsonl, and its options.json or {}."""

    name: str
    lines: list[dict]
    options: dict


def report_page(title: str, summaries: list[dict], runs: list[Run], training: list[Training]) -> str:
    """HTML that needs nothing else, of any of: summaries of `results.read_summaries`, sampling and training runs."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader('figures', '.'), autoescape=True, trim_blocks=True,
                                     undefined=jinja2.StrictUndefined)
    environment.filters |= dict(number=number_text, picture=lambda grid: _data_url('image/png', png_bytes(grid)))
    known = [run for run in runs if run.options]
    costs = {run.name: run.options[REPORT] for run in known if run.options.get(REPORT)}
    made = {each.name: each.options for each in [*known, *training] if each.options}
    with matplotlib.rc_context(STYLE):
        summaries = [summary | dict(chart=_metric_chart(summary), curves=_svg(varying_curves(summary)))
                     for summary in summaries]
        charts = _charts(costs, training)
    return environment.get_template('report.html.jinja').render(
        title=title, made=f'Made on {datetime.date.today():%d %B %Y}.', summaries=summaries, charts=charts, runs=runs,
        costs=[_cost(name, each) for name, each in costs.items()],
        commands={name: each[COMMAND] for name, each in made.items() if each.get(COMMAND)},
        options={name: _settings(each) for name, each in made.items()},
        differing=_differing({run.name: _settings(run.options) for run in known}))


def _charts(costs: dict[str, dict], training: list[Training]) -> list[dict]:
    """Title and picture of each chart about what runs cost and how networks were trained."""
    rejecting = {name: each for name, each in costs.items() if 'levels' in each}
    lines = {each.name: each.lines for each in training}
    figures = {'Rejections': profile_curves(rejecting) if rejecting else None,
               'Training': training_curves(lines, log_scale=False) if lines else None,
               'Discriminators by noise level': level_curves(lines)}
    for name, each in lines.items():
        rows = next((line['calibration'] for line in reversed(each) if line.get('calibration')), None)
        figures[f'Noise levels predicted by {name}'] = calibration_curve(rows) if rows else None
    return [dict(title=title, picture=_svg(figure), panels=len(figure.axes) > 1) for title, figure in figures.items()
            if figure is not None]


def number_text(each: dict) -> str:
    """A value and its deviation over blocks, or else its standard error."""
    error, scale = each['error'] if each.get('deviation') is None else each['deviation'], each.get('scale', 1)
    if each['value'] is None:
        return '-'
    return f'{scale * each["value"]:.4g}' + ('' if error is None else f' \N{PLUS-MINUS SIGN} {scale * error:.2g}')


def _settings(options: dict) -> dict:
    """The entries of an options.json that decide what is made."""
    return {name: value for name, value in options.items() if name not in (REPORT, COMMAND, CLASS_NAMES)}


def _metric_chart(summary: dict) -> str | None:
    """A panel for each metric with a point for each run; None for one run."""
    results = summary['results']
    names = list(results[0]['metrics'])
    if len(results) < 2:
        return None
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, rows * (0.9 + 0.32 * len(results))), layout='constrained')
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, name in zip(panels, names):
        for place, result in enumerate(results):
            each = result['metrics'][name]
            scale = each['scale']
            error = each['error'] if each['deviation'] is None else each['deviation']
            if each['value'] is not None and math.isfinite(each['value']):
                axes.errorbar(scale * each['value'], place, xerr=None if error is None else scale * error, fmt='o',
                              capsize=3)
        axes.set_title(results[0]['metrics'][name]['label'], fontsize=11)
        axes.grid(alpha=0.3)
        axes.locator_params(axis='x', nbins=4)
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


def _svg(figure: Figure | None) -> str | None:
    if figure is None:
        return None
    buffer = io.BytesIO()
    figure.savefig(buffer, format='svg', metadata=dict(Date=None))
    return _data_url('image/svg+xml', buffer.getvalue())


def _data_url(kind: str, data: bytes) -> str:
    return f'data:{kind};base64,{base64.b64encode(data).decode()}'
