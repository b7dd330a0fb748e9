"""The picture of a study: a metric of its rows, and their differences from one of them."""

from matplotlib.figure import Figure

from .canvas import DPI

DEVIATIONS, SHARE = 2, 1.3  # what a difference must exceed: its standard errors, per cent of the value
COLOUR, PALE, MEAN = '#1f5a96', '#9db8d3', '#b5482a'


def study_figure(summaries: list[dict]) -> Figure:
    """A row of two panels for each summary of study.json: the first metric, and differences in per cent.

    Bars are the deviation over blocks (of one block, the standard error) on the left, and two standard errors on the
    right, where hollow marks are inconclusive. Several trainings of a setting are points, with mean and deviation.
    """
    figure = Figure(figsize=(7.2, 2.9 * len(summaries)), dpi=2 * DPI, layout='constrained')
    for (left, right), summary in zip(figure.subplots(len(summaries), 2, squeeze=False), summaries, strict=True):
        metric = next(iter(summary['results'][0]['metrics']))
        _values(left, summary, metric)
        _differences(right, summary, metric)
        for axes in (left, right):
            _ticks(axes, summary['study'])
            axes.set_xlabel(summary['study']['label'])
            axes.spines[['top', 'right']].set_visible(False)
            axes.grid(axis='y', alpha=0.25, linewidth=0.6)
            axes.set_axisbelow(True)
    return figure


def _values(axes, summary: dict, metric: str) -> None:
    """The metric of each row; a row without a place is a line across."""
    study, places = summary['study'], _places(summary['study'])
    found = {result['name']: result['metrics'][metric] for result in summary['results']}
    first = next(iter(found.values()))
    scale = first['scale']
    for name in found.keys() - places.keys():
        value = scale * found[name]['value']
        axes.axhline(value, color='0.35', linewidth=1, linestyle='--')
        axes.annotate(name, (1, value), xycoords=('axes fraction', 'data'), xytext=(-2, 2), ha='right', fontsize=8,
                      textcoords='offset points', color='0.35')
    points = sorted((places[name], scale * each['value'],
                     scale * ((each['error'] if each['deviation'] is None else each['deviation']) or 0))
                    for name, each in found.items() if name in places)
    _bars(axes, points, joined=not study['groups'], pale=bool(study['groups']))
    groups = [each for each in study['groups'] if each['metric'] == metric and each['deviation'] is not None]
    for each in groups:
        inside = [places[row['name']] for row in study['rows'] if _group(row) == each['name']]
        low, high = min(inside) - 0.25, max(inside) + 0.25
        axes.fill_between([low, high], *(scale * (each['value'] + sign * each['deviation']) for sign in (-1, 1)),
                          color=MEAN, alpha=0.15, linewidth=0)
        axes.plot([low, high], [scale * each['value']] * 2, color=MEAN, linewidth=1.5)
    blocks = f'{summary["blocks"]} x ' if summary['blocks'] > 1 else ''
    axes.set_ylabel(f'{first["label"]} ({blocks}{summary["num_samples"]:,} images)')


def _differences(axes, summary: dict, metric: str) -> None:
    """The difference of each row from that of --against, in per cent, with two standard errors."""
    study, places = summary['study'], _places(summary['study'])
    axes.axhspan(-SHARE, SHARE, color='0.9', linewidth=0, zorder=0)
    axes.axhline(0, color='0.35', linewidth=0.8)
    if study['against'] in places and not study['groups']:
        axes.plot(places[study['against']], 0, marker='o', markersize=4.5, color='0.35', linestyle='none')
    pale = any(each.get('against') for each in study['groups'])
    _verdicts(axes, [(places[each['name']], each) for each in summary['differences']
                     if each['metric'] == metric and each['name'] in places], PALE if pale else COLOUR)
    for each in study['groups']:
        inside = [places[row['name']] for row in study['rows'] if _group(row) == each['name'] and row['name'] in places]
        if each['metric'] == metric and each.get('against') and inside:
            at = max(inside) + (0.5 if study['kind'] == 'repeats' else 0.2)
            _verdicts(axes, [(at, each)], MEAN)
    axes.set_ylabel(f'difference from {_shown(study)} (%)')


def _verdicts(axes, points, colour) -> None:
    for place, each in points:
        relative = 100 * each['relative']
        unit = relative / each['difference'] if each['difference'] else 0.0  # per cent of a difference of 1
        error = None if each['error'] is None else [abs(DEVIATIONS * each['error'] * unit)]
        hollow = each['verdict'] == 'inconclusive'
        axes.errorbar([place], [relative], error, marker='o', markersize=4.5, capsize=2.5, linewidth=1, color=colour,
                      markerfacecolor='white' if hollow else colour, linestyle='none')


def _bars(axes, points, joined: bool, pale: bool) -> None:
    if points:
        x, y, error = zip(*points, strict=True)
        axes.errorbar(x, y, error if any(error) else None, marker='o', markersize=4, capsize=2.5, linewidth=1.2,
                      elinewidth=1, color=PALE if pale else COLOUR, linestyle='-' if joined else 'none')


def _places(study: dict) -> dict[str, float]:
    """Where each row stands; trainings are evenly spaced, those of one rank side by side."""
    placed = {row['name']: row['x'] for row in study['rows'] if row['x'] is not None}
    if not study['groups']:
        return placed
    columns = {x: column for column, x in enumerate(sorted(set(placed.values())))}
    return {name: columns[x] for name, x in placed.items()}


def _ticks(axes, study: dict) -> None:
    """Names under trainings: the rank of each column, or a number for each training."""
    if study['groups']:
        values = sorted({row['x'] for row in study['rows'] if row['x'] is not None})
        axes.set_xticks(range(len(values)), [f'{value:g}' for value in values])
        axes.set_xlim(-0.6, len(values) - 0.4 + (0.3 if study['kind'] == 'repeats' else 0))


def _group(row: dict) -> str:
    return row['group'] or row['name']


def _shown(study: dict) -> str:
    row = next(row for row in study['rows'] if row['name'] == study['against'])
    if row['x'] is None:
        return row['name']
    return _group(row) if study['groups'] else f'{study["label"]} {row["name"]}'
