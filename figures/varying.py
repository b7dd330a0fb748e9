"""Curves of a metric against whatever differs between runs: evaluations, weights, epochs, churn."""

import re

from matplotlib.figure import Figure

from dnnlib.run_folder import CLASS_NAMES, COMMAND, REPORT

NFE = 'evaluations of the score network'
# Entries of options.json that are no settings, and those that only follow from others.
NO_SETTING = (REPORT, COMMAND, CLASS_NAMES, 'seeds', 'batch', 'save_type', 'compile', 'thresholds')
MOST_LINES = 6  # that a legend names


def varying_curves(summary: dict) -> Figure | None:
    """The first metric of a summary, a panel for each numeric option in which its runs differ, and for their mean NFE.

    summary: as `results.read_summaries` gives it. Runs that differ only in the option of a panel are joined by a line.
    None if no such option is known of at least two runs.
    """
    results = [result for result in summary['results'] if result.get('options')]
    settings = varying_settings([result['options'] for result in results])
    panels = {name: numbers for name, values in settings.items() if (numbers := as_numbers(values))}
    counts = as_numbers([(result['options'].get(REPORT) or {}).get('nfe', {}).get('mean') for result in results])
    panels = (panels if len(set(counts)) < 2 else {NFE: counts} | panels)
    if not panels:
        return None
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.3 * columns, 3.4 * rows), layout='constrained')
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, x) in zip(places, panels.items()):
        same = (name, 'num_steps') if name == NFE else (name,)  # with the steps the evaluations change
        draw_panel(axes, x, results, {other: values for other, values in settings.items() if other not in same})
        axes.set_xlabel(name)
    for axes in places[len(panels):]:
        axes.set_axis_off()
    return figure


def draw_panel(axes, x: list[float], results: list[dict], others: dict[str, list]) -> None:
    """The first metric of each result at x, with its error; a line for equal values of the options `others`.

    A line of one result has its name.
    """
    key, first = next(iter(results[0]['metrics'].items()))
    per_result = [', '.join(f'{other} {values[place]}' for other, values in others.items())
                  for place in range(len(results))]
    lines: dict[str, list] = {}
    for name, value, result in zip(per_result, x, results, strict=True):
        lines.setdefault(name, []).append((value, result['metrics'][key]))
    names = {name: result['name'] for name, result in zip(per_result, results, strict=True) if len(lines[name]) == 1}
    for name, points in lines.items():
        points.sort(key=lambda point: point[0])
        errors = [each['error'] if each['deviation'] is None else each['deviation'] for _, each in points]
        axes.errorbar([value for value, _ in points], [first['scale'] * each['value'] for _, each in points],
                      None if None in errors else [first['scale'] * error for error in errors], marker='o',
                      markersize=4, capsize=3, label=names.get(name, name))
    if 1 < len(lines) <= MOST_LINES:
        axes.legend(fontsize=8)
    axes.set_ylabel(first['label'])
    axes.grid(alpha=0.3)


def varying_settings(options: list[dict]) -> dict[str, list]:
    """The settings that are not the same in all of the options.json of runs: their values, run by run."""
    names = dict.fromkeys(name for each in options for name in each if name not in NO_SETTING)
    found = {name: [each.get(name) for each in options] for name in names if not name.endswith('sha256')}
    return {name: values for name, values in found.items() if len(set(map(str, values))) > 1}


def as_numbers(values: list) -> list[float]:
    """Values of an option as numbers; [] if they are none.

    Names that differ in one number, as those of networks after 1, 2 or 10 epochs, become that number.
    """
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [float(value) for value in values]
    parts = [re.split(r'(\d+)', str(value)) for value in values]
    if len({tuple(each[::2]) for each in parts}) > 1:
        return []
    differing = [numbers for numbers in zip(*(each[1::2] for each in parts), strict=True) if len(set(numbers)) > 1]
    return [float(number) for number in differing[0]] if len(differing) == 1 else []
