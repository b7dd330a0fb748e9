"""What runs left for pictures: JSON of results and of options, and names to tell runs apart."""

import json
from pathlib import Path

from dnnlib.files import resolve_path


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
        metrics = dict(fd=dict(label=found['metric'], value=result['distance'], error=None,
                               deviation=result['distance_deviation']))
        if result.get('kid') is not None:
            metrics['kid'] = dict(label='KID x 1000', value=result['kid'], deviation=result['kid_deviation'],
                                  error=result['blocks'][0]['kid_error'])
        results.append(dict(name=result['name'], metrics=metrics))
    return [dict(detector=found['detector'], fingerprint=found['fingerprint'], distance=found['metric'],
                 ref=found['ref'], ref_count=found['ref_count'], num_samples=found['num_samples'],
                 blocks=len(found['results'][0]['blocks']), results=results, differences=[])]


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
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
