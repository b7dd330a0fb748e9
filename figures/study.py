"""The picture of a study: a metric of its rows, and their differences from one of them."""

from matplotlib.figure import Figure

from .canvas import DPI

COLOUR, PALE, MEAN, GREY = '#1f5a96', '#8fb0d0', '#b5482a', '0.35'
MOST_TICKS = 6
SPREAD = 0.12  # between trainings in a column


def study_figure(summaries: list[dict]) -> Figure:
    """A row of two panels for each summary of study.json: the first metric, and differences in per cent.

    Bars are the deviation over blocks (of one block, the standard error) on the left, and on the right the standard
    errors that a verdict needs, where hollow marks are inconclusive. Several trainings of a setting are points beside
    each other, with their mean and deviation; they are compared by their means.
    """
    figure = Figure(figsize=(7.2, 2.9 * len(summaries)), dpi=2 * DPI, layout='constrained')
    for (left, right), summary in zip(figure.subplots(len(summaries), 2, squeeze=False), summaries, strict=True):
        metric = next(iter(summary['results'][0]['metrics']))
        _values(left, summary, metric)
        _differences(right, summary, metric)
        for axes in (left, right):
            _ticks(axes, summary['study'])
            axes.set_xlabel(summary['study']['label'], fontsize=9)
            axes.spines[['top', 'right']].set_visible(False)
            axes.grid(axis='y', alpha=0.25, linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(labelsize=8.5)
    return figure


def _values(axes, summary: dict, metric: str) -> None:
    """The metric of each row; a row without a place is a line across."""
    study, places = summary['study'], _places(summary['study'])
    found = {result['name']: result['metrics'][metric] for result in summary['results']}
    first = next(iter(found.values()))
    scale = first['scale']
    for name in found.keys() - places.keys():
        value = scale * found[name]['value']
        axes.axhline(value, color=GREY, linewidth=1, linestyle='--')
        axes.annotate(name, (1, value), xycoords=('axes fraction', 'data'), xytext=(-2, 2), ha='right', fontsize=8,
                      textcoords='offset points', color=GREY)
    points = sorted((places[name], scale * each['value'],
                     scale * ((each['error'] if each['deviation'] is None else each['deviation']) or 0))
                    for name, each in found.items() if name in places)
    if points:
        x, y, error = zip(*points, strict=True)
        colour, line = (PALE, 'none') if study['groups'] else (COLOUR, '-')
        axes.errorbar(x, y, error if any(error) else None, color=colour, linestyle=line, marker='o', markersize=4,
                      capsize=2.5, linewidth=1.2, elinewidth=1)
    for each in study['groups']:
        if each['metric'] == metric and each['deviation'] is not None:
            inside = [places[row['name']] for row in study['rows'] if row['group'] == each['name']]
            low, high = min(inside) - 0.15, max(inside) + 0.15
            axes.fill_between([low, high], *(scale * (each['value'] + sign * each['deviation']) for sign in (-1, 1)),
                              color=MEAN, alpha=0.15, linewidth=0)
            axes.plot([low, high], [scale * each['value']] * 2, color=MEAN, linewidth=1.5)
    blocks = f'{summary["blocks"]} x ' if summary['blocks'] > 1 else ''
    axes.set_ylabel(f'{first["label"]} ({blocks}{summary["num_samples"]:,} images)', fontsize=9)
    several = any(each['deviation'] is not None for each in study['groups'])
    axes.set_title(f'bars: {"deviation over blocks" if blocks else "standard error"}'
                   + '; red: mean and deviation of trainings' * several, fontsize=7, color=GREY)


def _differences(axes, summary: dict, metric: str) -> None:
    """The difference of each row, or of each group of trainings, from that of --against."""
    study, places = summary['study'], _places(summary['study'])
    share = 100 * summary['share']
    axes.axhspan(-share, share, color='0.92', linewidth=0, zorder=0)
    axes.axhline(0, color=GREY, linewidth=0.8)
    against = next(row for row in study['rows'] if row['name'] == study['against'])
    if against['group'] is None:  # else one of several trainings, with which no other one should be compared
        _verdicts(axes, [(places[each['name']], each) for each in summary['differences']
                         if each['metric'] == metric and each['name'] in places],
                  PALE if study['groups'] else COLOUR, summary['deviations'])
    if not study['groups'] and study['against'] in places:
        axes.plot(places[study['against']], 0, marker='o', markersize=4.5, color=GREY, linestyle='none')
    for each in study['groups']:
        inside = [places[row['name']] for row in study['rows'] if row['group'] == each['name']]
        if each['metric'] == metric and each.get('against') and inside:
            beside = 1 if study['kind'] == 'repeats' else 0.3 if against['group'] is None else 0
            _verdicts(axes, [(max(inside) + beside if beside else sum(inside) / len(inside), each)], MEAN,
                      summary['deviations'])
    shown = against['group'] or (study['against'] if against['x'] is None else f'{study["label"]} {study["against"]}')
    axes.set_ylabel(f'difference from\n{shown} (%)', fontsize=9)
    axes.set_title(f'bars: {summary["deviations"]} standard errors; grey: {share:g} %; hollow: inconclusive',
                   fontsize=7, color=GREY)


def _verdicts(axes, points, colour, deviations: float) -> None:
    """Differences in per cent at their places, with `deviations` standard errors; hollow if inconclusive."""
    for place, each in points:
        relative = 100 * each['relative']
        unit = relative / each['difference'] if each['difference'] else 0.0  # per cent of a difference of 1
        error = None if each['error'] is None else [abs(deviations * each['error'] * unit)]
        hollow = each['verdict'] == 'inconclusive'
        axes.errorbar([place], [relative], error, marker='o', markersize=4.5, capsize=2.5, linewidth=1, color=colour,
                      markerfacecolor='white' if hollow else colour, linestyle='none')


def _places(study: dict) -> dict[str, float]:
    """Where each row stands. With trainings, one column for each x, in which they stand beside each other."""
    placed = {row['name']: row['x'] for row in study['rows'] if row['x'] is not None}
    if not study['groups']:
        return placed
    columns = _columns(study)
    inside = {x: [name for name, other in placed.items() if other == x] for x in columns}
    return {name: columns.index(x) + SPREAD * (inside[x].index(name) - (len(inside[x]) - 1) / 2)
            for name, x in placed.items()}


def _columns(study: dict) -> list[float]:
    return sorted({row['x'] for row in study['rows'] if row['x'] is not None})


def _ticks(axes, study: dict) -> None:
    """Few values are named themselves; so are the columns of trainings, and the place of their mean."""
    values = _columns(study)
    if not study['groups'] and len(values) <= MOST_TICKS:
        axes.set_xticks(values, [f'{value:g}' for value in values])
    if study['groups']:
        names = [f'{value:g}' for value in values]
        if study['kind'] == 'repeats' and any(each.get('against') for each in study['groups']):
            names.append('mean')
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.6, len(names) - 0.4)
