"""Distances of images from a reference: the Frechet distance and KID, of blocks of images, and their table."""

import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

from dnnlib import demo
from dnnlib.download import fetch
from dnnlib.run_folder import read_options
from torch_utils.device import select_device

from .detectors import Detector, load_detector
from .frechet import frechet_distance
from .kid import kernel_distance
from .measure import Measured, measure
from .reference import Reference, load_reference
from .stream import as_source

MAX_FEATURES = 10_000  # for KID, whose time grows with their square; of more images a part is drawn


@dataclass(frozen=True)
class Distance:
    """A distance under the name of its features: FID only if they are Inception's. `kid` (MMD^2) and its standard
    error are None if the statistics carry no features."""

    name: str
    value: float
    num_samples: int
    kid: float | None = None
    kid_error: float | None = None

    def __str__(self):
        kid = '' if self.kid is None else f', KID x 1000 {_with_error(self.kid, self.kid_error, scale=1000)}'
        return f'{self.name} {self.value:.4g}{kid} ({self.num_samples} images)'


def distance(images, ref=None, *, batch: int = 64, device='auto') -> Distance:
    """The distance of images from a data set, for notebooks: `print(distance(samples))`.

    images: a path, samples, a tensor, or an iterable of them (see `metrics.stream`); all of them are measured, at
    least 4. ref: statistics, as a path or URL or as a Reference; None: those of CIFAR-10 that ship with this project,
    with which the distance is FD-CIFAR10. The detector is the one that made them.
    Raises ValueError or OSError for images, statistics or weights that cannot be used.
    """
    detector, ref = load_both(ref, device)
    result, _ = compare(images, ref, detector, batch=batch)
    block = result['blocks'][0]
    return Distance(detector.distance, block['distance'], result['num_samples'], block.get('kid'),
                    block.get('kid_error'))


def load_both(ref, device) -> tuple[Detector, Reference]:
    """The detector that made statistics, and these, given as for `distance`."""
    if not isinstance(ref, Reference):
        ref = load_reference(fetch(ref or demo.DEMO_STATS))
    detector = load_detector(ref.default_detector(), select_device(device))
    ref.check(detector)
    return detector, ref


def compare(images, ref: Reference, detector: Detector, num_samples: int | None = None, blocks: int = 1,
            batch: int = 64, keep_features: bool = False) -> tuple[dict, Measured]:
    """(The distances of `blocks` blocks of `num_samples` images in order and a summary over blocks; the last block).

    images: whatever `as_source` takes; num_samples = None: all of them. The first part can be written as JSON.
    Raises ValueError for fewer images and for images that cannot be read.
    """
    source, found = as_source(images), []
    if num_samples is None and hasattr(source, '__len__'):
        num_samples = len(source)
    for block in range(blocks):
        first = block * (num_samples or 0)
        desc = source.name if blocks == 1 else f'{source.name} {block + 1}/{blocks}'
        wanted = MAX_FEATURES if ref.features is not None or keep_features else 0
        measured = measure(source, detector, first, num_samples and first + num_samples, batch=batch,
                           max_features=wanted, desc=desc)
        entry = dict(first=first, distance=frechet_distance(*measured.moments.finish(), ref.mu, ref.sigma))
        if ref.features is not None:
            entry['kid'], entry['kid_error'] = kernel_distance(measured.features, torch.from_numpy(ref.features))
        found.append(entry)
    summary = dict(name=source.name, images=str(source.path or source.name),
                   num_samples=num_samples or measured.moments.count, blocks=found)
    for key in [key for key in ('distance', 'kid') if key in found[0]]:
        values = [entry[key] for entry in found]
        summary[key] = statistics.fmean(values)
        summary[f'{key}_deviation'] = statistics.stdev(values) if blocks > 1 else None
    return summary | dict(options=run_options(source.path)), measured


def run_options(path: Path | None) -> dict | None:
    """What generate.py recorded beside the samples, so that plot.py can show a distance against any option."""
    return read_options(path / 'options.json') or None if path is not None else None


def table(results: list[dict], name: str) -> str:
    """Results of `compare` in aligned columns, the distance called `name`.

    Deviations are those over blocks, the one of a single KID its standard error.
    """
    rows = [('images', 'n', name, 'KID x 1000')]
    for result in results:
        error = result['blocks'][0].get('kid_error') if len(result['blocks']) == 1 else result.get('kid_deviation')
        times = f'{len(result["blocks"])} x ' if len(result['blocks']) > 1 else ''
        rows.append((result['name'], f'{times}{result["num_samples"]}',
                     _with_error(result['distance'], result['distance_deviation']),
                     _with_error(result.get('kid'), error, scale=1000)))
    return aligned(rows)


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Rows of cells as text, each column as wide as its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _with_error(value, error, scale=1):
    if value is None:
        return '-'
    return f'{scale * value:.4g}' + ('' if error is None else f' +- {scale * error:.2g}')
