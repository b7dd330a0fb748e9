"""Several trainings of the same settings: their mean and deviation, and whether one setting differs from another."""

import math
import statistics

from .compare import aligned
from .estimate import Estimate, difference, standard_error, verdict
from .evaluate import label, metric_of
from .results import cell, heading, mean_cell, rows_of_differences

COSTS = dict(nfe='evaluations per image', discriminator_calls='of discriminators')
Run = list[dict[str, Estimate]]  # the estimates of each block of images


def over_trainings(groups: dict[str, list[Run]], against: str, distance: str, paired: bool) -> list[dict]:
    """Of each group of trainings and each metric, JSON-able: mean, deviation, and how it differs from `against`.

    groups: by name, the runs of each training; distance: see `evaluate.label`; paired: all have the same seeds.
    The error of a difference holds the draw of images and, of groups of two or more, the draw of trainings: the
    deviation over them by the root of their number. `t`: Student's t of the trainings against a group of one, taken as
    exact; None without deviation.
    """
    found, base = [], groups[against]
    for name, runs in groups.items():
        for metric in runs[0][0]:
            scale = metric_of(metric).scale
            values = [statistics.fmean(block[metric].value for block in run) for run in runs]
            result = dict(name=name, metric=metric, label=label(metric, distance), scale=scale, trainings=len(runs),
                          value=statistics.fmean(values), deviation=_deviation(values), values=values)
            if name != against:
                result |= _difference(runs, base, metric, paired, against)
            found.append(result)
    return found


def _difference(runs: list[Run], base: list[Run], metric: str, paired: bool, against: str) -> dict:
    """The entries of a difference between two groups, as `Difference` has them."""
    of_images = difference(_mean_run(runs, metric), _mean_run(base, metric), paired)
    of_trainings = [_deviation([statistics.fmean(block[metric].value for block in run) for run in group])
                    for group in (runs, base)]
    known = [(deviation or 0) / math.sqrt(len(group))
             for deviation, group in zip(of_trainings, (runs, base), strict=True)]
    error = None if of_images.error is None else math.hypot(of_images.error, *known)
    t = of_images.difference / known[0] if known[0] and len(base) == 1 else None
    return of_images._asdict() | dict(against=against, error=error, t=t,
                                      verdict=verdict(of_images.difference, error, of_images.relative))


def _mean_run(runs: list[Run], metric: str) -> list[Estimate]:
    """Of each block, the mean over trainings."""
    found = []
    for blocks in zip(*(([block[metric] for block in run]) for run in runs), strict=True):
        value = statistics.fmean(each.value for each in blocks)
        if any(each.terms is None for each in blocks):
            errors = [each.error for each in blocks]
            found.append(Estimate(value, None if None in errors else max(errors)))  # they share their seeds
        else:
            terms = sum(each.terms for each in blocks) / len(blocks)
            found.append(Estimate(value, standard_error(terms), terms))
    return found


def _deviation(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def as_text(summary: dict) -> str:
    """Tables of a study's summary: a line per row with what an image cost, differences, groups of trainings."""
    results = summary['results']
    metrics = results[0]['metrics']
    rows = [(summary['study']['label'], *(each['label'] for each in metrics.values()), *COSTS.values())]
    for result in results:
        costs = result['costs'] or {}
        rows.append((result['name'], *(mean_cell(result['metrics'][name]) for name in metrics),
                     *(f'{costs[name]:.4g}' if name in costs else '-' for name in COSTS)))
    lines = [heading(summary), aligned(rows)]
    if summary['differences']:
        lines += ['', aligned(rows_of_differences(summary['differences']))]
    groups = summary['study']['groups']
    if groups:
        rows = [('trainings', 'number', 'of', 'mean +- deviation')]
        rows += [(each['name'], str(each['trainings']), each['label'], cell(each, each['value'], each['deviation']))
                 for each in groups]
        lines += ['', aligned(rows)]
        differences = [each for each in groups if 'against' in each]
        if differences:
            lines += ['', aligned(rows_of_differences(differences))]
        lines += [f'{each["name"]}, {each["label"]}: t = {each["t"]:.2f} of {each["trainings"]} trainings'
                  for each in differences if each['t'] is not None]
    return '\n'.join(lines)
