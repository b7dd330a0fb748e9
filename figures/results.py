"""What runs left for pictures: JSON of results and of options, and names to tell runs apart."""

import json
from pathlib import Path

from dnnlib.files import resolve_path
from torch_utils.stats import JsonLines


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


def read_summaries(file) -> list[dict]:
    """What calc_metrics.py or fid_npzs.py --json wrote, as the summaries of the former. Raises ValueError, OSError."""
    found = read_report(file, (), 'calc_metrics.py or fid_npzs.py --json')
    if 'summaries' in found:
        return found['summaries']
    if not {'metric', 'results'} <= found.keys():
        raise ValueError(f'{file} was not written by calc_metrics.py or fid_npzs.py --json')
    results = []
    for result in found['results']:
        metrics = dict(fd=dict(label=found['metric'], scale=1, value=result['distance'], error=None,
                               deviation=result['distance_deviation']))
        if result.get('kid') is not None:
            metrics['kid'] = dict(label='KID x 1000', scale=1000, value=result['kid'],
                                  deviation=result['kid_deviation'], error=result['blocks'][0]['kid_error'])
        results.append(dict(name=result['name'], metrics=metrics, options=result.get('options')))
    summary = {key: found.get(key) for key in ('detector', 'fingerprint', 'ref', 'ref_count', 'num_samples')}
    return [summary | dict(distance=found['metric'], blocks=len(found['results'][0]['blocks']), results=results,
                           differences=[])]


def read_results(files, y_name: str) -> tuple[list[dict], str]:
    """One quantity of all results in `files`, and what it is called with its numbers of samples, for one picture.

    Each result: name, options, value, error (the deviation over blocks, else the standard error, or None).
    y_name: of `metrics` in the summaries, or `distance`. Raises ValueError for results that lack it, and for those that
    may not be compared: of unlike detectors or references.
    """
    found, labels, counts, spaces = [], set(), set(), set()
    for summary in (each for file in files for each in read_summaries(file)):
        counts.add(summary['num_samples'])
        spaces.add(tuple(summary.get(key) for key in ('distance', 'detector', 'fingerprint', 'ref', 'ref_count')))
        for result in summary['results']:
            each = result['metrics'].get('fd' if y_name == 'distance' else y_name)
            if each is None:
                raise ValueError(f'{result["name"]} was measured without {y_name}')
            error = each['error'] if each['deviation'] is None else each['deviation']
            found.append(dict(name=result['name'], options=result.get('options'), value=each['scale'] * each['value'],
                              error=None if error is None else each['scale'] * error))
            labels.add(each['label'])
    if len(spaces) > 1:
        differing = (sorted({str(value) for value in values}) for values in zip(*spaces, strict=True))
        told = next(values for values in differing if len(values) > 1)
        raise ValueError(f'one picture for different metrics ({", ".join(told)})')
    return found, f'{" and ".join(sorted(labels))} ({" and ".join(f"{count:,}" for count in sorted(counts))} samples)'


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


def read_training(runs) -> dict[str, list[dict]]:
    """By name, the lines of the stats.jsonl of training runs (folders, or such files). Raises ValueError for none."""
    paths = [path / 'stats.jsonl' if path.is_dir() else path for path in map(resolve_path, runs)]
    lines = {}
    for name, path in zip(short_names([path.parent for path in paths]), paths, strict=True):
        lines[name] = JsonLines(path).read()
        if not any('nimg' in line for line in lines[name]):
            raise ValueError(f'{path} has no training statistics')
    return lines


def read_profiles(runs) -> dict[str, dict]:
    """By name, what folders of generate_diffrs.py say of rejections. Raises ValueError for other folders, OSError."""
    reports = {}
    for name, run in zip(short_names([Path(run) for run in runs]), runs, strict=True):
        path = resolve_path(run) / 'options.json'
        reports[name] = read_report(path, ('seeds',), 'generate_diffrs.py').get('report', {})
        if 'levels' not in reports[name]:
            raise ValueError(f'{path} has no report of generate_diffrs.py; the same command again writes it')
    return reports


def short_names(folders: list[Path]) -> list[str]:
    """The last part of each path, or the whole path where several end alike."""
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
