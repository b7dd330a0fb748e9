"""Results of many metrics: kept as they come, as JSON and text, with differences between runs."""

import io
import json
import math
import statistics
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from dnnlib.files import atomic_write
from dnnlib.int_lists import parse_int_list
from dnnlib.run_folder import REPORT, read_options

from .compare import aligned
from .estimate import DEVIATIONS, SHARE, Estimate, difference
from .evaluate import METRICS, Space, label, metric_of

WRITER = 'calc_metrics.py'


@dataclass
class Results:
    """Estimates of every block of every run in every space. With a path they outlive the process.

    blocks: by `block_key`, the estimates of a block by value; summaries: those of `summarise`, for readers;
    reports: costs of images that were drawn to be measured, by the identity of their source.
    The file at `path` is JSON; beside it, <path>.npz holds the terms that paired differences need. `writer`: the script
    that writes it.
    """

    path: Path | None = None
    blocks: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    summaries: list[dict] = field(default_factory=list)
    reports: dict[str, dict] = field(default_factory=dict)
    writer: str = WRITER

    def load(self) -> None:
        """Takes over what an earlier call at the same path has measured; a file of something else is refused.

        Raises ValueError for it.
        """
        if self.path is None or not self.path.exists():
            return
        found = read_options(self.path)
        if found.get('writer') != self.writer:
            raise ValueError(f'{self.path} exists and was not written by {self.writer}; name another file')
        self.reports = found.get('reports', {})
        terms = {}
        try:
            with np.load(self._terms_path(), allow_pickle=False) as file:
                terms = dict(file)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            pass  # differences are then not paired
        for key, values in found.get('blocks', {}).items():
            self.blocks[key] = {name: Estimate(each['value'], each['error'],
                                               torch.from_numpy(terms[at]).double() if at in terms else None)
                                for name, each in values.items() for at in [f'{key}/{name}']}

    def missing(self, key: str, space: Space) -> list[str]:
        """The metrics of a space that a block does not have yet."""
        return [name for name in space.metrics if not METRICS[name].values.keys() <= self.blocks.get(key, {}).keys()]

    def found(self, key: str, space: Space) -> dict[str, Estimate]:
        """The values of a block that the metrics of a space give; an earlier call may have asked for more."""
        return {value: self.blocks[key][value] for name in space.metrics for value in METRICS[name].values}

    def keep_report(self, identity: str, report: dict | None) -> dict:
        """Keeps what a run has cost; the entry of its options.json for it, {} if it is not known.

        None, for a run that was not drawn again, leaves what an earlier call kept.
        """
        if report is not None:
            self.reports[identity] = report
        return {REPORT: self.reports[identity]} if identity in self.reports else {}

    def save(self) -> None:
        """Writes both files, each whole or not at all."""
        if self.path is None:
            return
        terms = {f'{key}/{name}': each.terms.float().numpy() for key, values in self.blocks.items()
                 for name, each in values.items() if each.terms is not None}
        buffer = io.BytesIO()
        np.savez(buffer, **terms)
        with atomic_write(self._terms_path()) as file:
            file.write(buffer.getvalue())
        blocks = {key: {name: dict(value=each.value, error=each.error) for name, each in values.items()}
                  for key, values in self.blocks.items()}
        found = dict(writer=self.writer, summaries=self.summaries, reports=self.reports, blocks=blocks)
        text = json.dumps(found, indent=1)
        with atomic_write(self.path) as file:
            file.write(f'{text}\n'.encode())

    def _terms_path(self) -> Path:
        return self.path.with_name(f'{self.path.name}.npz')


def block_key(source, space: Space, ref_name: str, first: int, count: int, precision: str) -> str:
    """What decides the numbers of a block: images, detector, reference and precision."""
    return '|'.join(map(str, (source.identity, first, count, space.detector.name,
                              space.detector.fingerprint, ref_name, space.ref.count, precision)))


def _seeds_of(options: dict, count: int) -> list[int] | None:
    """Those of the first `count` images, which are measured in the order of their seeds; None if they are unknown."""
    try:
        seeds = parse_int_list(str(options['seeds']))
    except (KeyError, ValueError):
        return None
    return list(seeds[:count] if isinstance(seeds, range) else sorted(seeds)[:count])


def summarise(space: Space, ref_name: str, runs: dict[str, list[dict[str, Estimate]]], options: list,
              count: int, against: str | None = None) -> dict:
    """What was found in one space, JSON-able: what was compared with what, a result per run, and differences.

    runs: by name, the estimates of each block of `count` images. options: of each run, None if they are unknown; every
    other run is compared with the one named `against` (None: the first), paired if the images that were measured have
    the same seeds. Numbers of another count, detector or reference belong into another summary. `deviations`, `share`:
    below these a difference is inconclusive, see `estimate.verdict`.
    """
    distance, ref = space.detector.distance, space.ref
    results = [dict(name=name, metrics=_means(blocks, distance), options=each)
               for (name, blocks), each in zip(runs.items(), options, strict=True)]
    against = against or next(iter(runs))
    base = runs[against]
    seeds = {name: _seeds_of(each or {}, count * len(base)) for name, each in zip(runs, options, strict=True)}
    found = [dict(name=name, against=against, metric=value, label=label(value, distance), scale=metric_of(value).scale,
                  **difference([block[value] for block in blocks], [block[value] for block in base],
                               paired=seeds[name] is not None and seeds[name] == seeds[against])._asdict())
             for name, blocks in runs.items() if name != against for value in base[0]]
    return dict(detector=space.detector.name, fingerprint=space.detector.fingerprint, distance=distance, ref=ref_name,
                ref_count=ref.count, ref_features=0 if ref.features is None else len(ref.features),
                ref_source=ref.source, num_samples=count, blocks=len(base), results=results, differences=found,
                deviations=DEVIATIONS, share=SHARE)


def _means(blocks, distance):
    """By value: its mean over blocks, the error of the draw of images, the deviation over blocks, and all values."""
    found = {}
    for value in blocks[0]:
        errors = [block[value].error for block in blocks]
        values = [block[value].value for block in blocks]
        found[value] = dict(label=label(value, distance), scale=metric_of(value).scale, value=statistics.fmean(values),
                            error=None if None in errors else math.hypot(*errors) / len(blocks),
                            deviation=statistics.stdev(values) if len(blocks) > 1 else None, values=values)
    return found


def as_text(summary: dict) -> str:
    """Tables of a `summarise`: a column per run with errors (deviations over blocks if there are several), differences.
    """
    rows = [('metric', *(result['name'] for result in summary['results']))]
    for value, first in summary['results'][0]['metrics'].items():
        found = [result['metrics'][value] for result in summary['results']]
        rows.append((first['label'], *(mean_cell(each) for each in found)))
    lines = [heading(summary), aligned(rows)]
    if summary['differences']:
        lines += ['', aligned(rows_of_differences(summary['differences']))]
    return '\n'.join(lines)


def heading(summary: dict) -> str:
    """What the numbers of a summary are of."""
    blocks = f'{summary["blocks"]} blocks of ' if summary['blocks'] > 1 else ''
    of = f' of {summary["ref_count"]} images' if summary['ref_count'] else ''
    return (f'Detector {summary["detector"]} {summary["fingerprint"]}, {blocks}{summary["num_samples"]} images, '
            f'statistics {summary["ref"]}{of}')


def rows_of_differences(differences: list[dict]) -> list[tuple[str, ...]]:
    """A table of differences with their verdicts, for `aligned`."""
    rows = [('difference', 'of', 'is', 'in %', '')]
    for each in differences:
        value = cell(each, each['difference'], each['error'])
        rows.append((f'{each["name"]} - {each["against"]}', each['label'], value + ' (paired)' * each['paired'],
                     f'{100 * each["relative"]:+.2g}', each['verdict']))
    return rows


def cell(each: dict, value: float, error: float | None) -> str:
    scale = each['scale']
    return f'{scale * value:.4g}' + ('' if error is None else f' +- {scale * error:.2g}')


def mean_cell(each: dict) -> str:
    """The mean of a metric over blocks, with its deviation over them, or the standard error of a single one."""
    return cell(each, each['value'], each['error'] if each['deviation'] is None else each['deviation'])
