"""Every metric of a block of images in one pass: a table of metrics, and the feature spaces that they are taken in."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from torch_utils import distributed as dist

from .compare import load_both
from .detectors import DETECTORS, Detector
from .estimate import Estimate
from .frechet_error import extrapolated_frechet, frechet_estimate
from .inception_score import inception_score
from .kid import kernel_distance, kernel_terms
from .measure import Measured, measure_all, sample_positions
from .mind import mind
from .neighbours import neighbours
from .reference import Reference
from .stream import as_source

MAX_FEATURES = 50_000  # kept of each detector; metrics of features are of a sample of more images
KID_FEATURES = 10_000  # of them: its time grows with the square in float64


class Case:
    """A block of images as one detector sees it, beside the reference. What several metrics use is made once."""

    def __init__(self, measured: Measured, ref: Reference, detector: Detector):
        self.measured, self.ref, self.detector = measured, ref, detector
        self.x = measured.features  # [n, D] float32
        self.y = None if ref.features is None else torch.from_numpy(ref.features).to(torch.float32)  # [m, D]

    @functools.cached_property
    def neighbours(self):
        return neighbours(self.x.to(self.detector.device), self.y.to(self.detector.device))

    def fd(self):
        mu, sigma = self.measured.moments.finish()
        return dict(fd=frechet_estimate(self.x, mu, sigma, self.ref.mu, self.ref.sigma, self.measured.moments.count))

    def fd_inf(self):
        return dict(fd_inf=extrapolated_frechet(self.x, self.ref.mu, self.ref.sigma))

    def kid(self):
        x = self.x[sample_positions(len(self.x), KID_FEATURES)]
        value, error = kernel_distance(x, self.y)
        terms = kernel_terms(x, self.y)
        return dict(kid=Estimate(value, error, terms - terms.mean()))

    def inception_score(self):
        return {'is': inception_score(self.detector.classify(self.x))}

    def mind(self):
        return dict(mind=mind(self.x, self.y))

    def pr(self):
        return dict(precision=self.neighbours.precision, recall=self.neighbours.recall)

    def dc(self):
        return dict(density=self.neighbours.density, coverage=self.neighbours.coverage)


class Metric(NamedTuple):
    """values: the name that each of its numbers is printed by; measure: Case -> those numbers as Estimates;
    features: it needs features of the reference; classes: it needs a detector that classifies; scale: for printing."""

    values: dict[str, str]
    measure: Callable[[Case], dict[str, Estimate]]
    features: bool = False
    classes: bool = False
    scale: float = 1


METRICS = {
    'fd': Metric({'fd': 'FD'}, Case.fd),
    'kid': Metric({'kid': 'KID x 1000'}, Case.kid, features=True, scale=1000),
    'is': Metric({'is': 'IS'}, Case.inception_score, classes=True),
    'pr': Metric({'precision': 'precision', 'recall': 'recall'}, Case.pr, features=True),
    'dc': Metric({'density': 'density', 'coverage': 'coverage'}, Case.dc, features=True),
    'mind': Metric({'mind': 'MIND'}, Case.mind, features=True),
    'fd_inf': Metric({'fd_inf': 'FD-inf'}, Case.fd_inf),
}


def metric_of(value: str) -> Metric:
    """The metric that gives a number of this name."""
    return next(metric for metric in METRICS.values() if value in metric.values)


def label(value: str, distance: str) -> str:
    """What a number may be called, `distance` being the name of the detector's Frechet distance.

    The plain names belong to Inception: another detector's carry its name, as in KID x 1000 (CIFAR10).
    """
    plain = metric_of(value).values[value]
    if plain.startswith('FD'):
        return plain.replace('FD', distance, 1)
    return plain if distance == 'FID' else f'{plain} ({distance.removeprefix("FD-")})'


@dataclass
class Space:
    """A detector's features, their reference and the metrics that are taken there."""

    detector: Detector
    ref: Reference
    metrics: list[str] = field(default_factory=list)

    def can(self, name: str) -> bool:
        """Whether the reference and the detector have what a metric needs."""
        metric = METRICS[name]
        return not (metric.features and self.ref.features is None or metric.classes and self.detector.classify is None)


    def only(self, metrics: list[str]) -> 'Space':
        """The same space with these metrics."""
        return Space(self.detector, self.ref, metrics)


def possible(spaces: Iterable[Space]) -> list[str]:
    """The metrics that at least one of the spaces allows."""
    return [name for name in METRICS if any(space.can(name) for space in spaces)]


def choose_metrics(names: list[str], spaces: Iterable[Space]) -> None:
    """Sets the metrics of each space. A name of METRICS stands for all spaces in which it can be taken.

    fid, fid_inf: the Frechet distance in Inception's features; fd_<detector>, fd_inf_<detector>: in that detector's.
    Raises ValueError for other names, and for one that no space has.
    """
    aliases = {f'{metric}_{detector}': (metric, [detector]) for metric in ('fd', 'fd_inf') for detector in DETECTORS}
    inception = [name for name, kind in DETECTORS.items() if kind.distance == 'FID']
    aliases |= dict(fid=('fd', inception), fid_inf=('fd_inf', inception)) | {name: (name, None) for name in METRICS}
    for name in names:
        if name not in aliases:
            raise ValueError(f'{name!r} is not a metric; use {", ".join(METRICS)}, fid, fid_inf or fd_<detector>')
        metric, detectors = aliases[name]
        fitting = [space for space in spaces if space.can(metric)
                   and (detectors is None or space.detector.name in detectors)]
        if not fitting:
            lack = 'a reference that carries features' if METRICS[metric].features else 'a detector that classifies'
            raise ValueError(f'{name} needs ' + (lack if detectors is None else
                                                 f'statistics of the detector {" or ".join(detectors)} (--ref)'))
        for space in fitting:
            if metric not in space.metrics:
                space.metrics.append(metric)


def all_metrics(images, ref=None, names: list[str] | None = None, *, batch: int = 64,
                device='auto') -> dict[str, Estimate]:
    """Every metric of images, for notebooks: the name that each may be called by -> value, error and terms.

    images, ref: as for `metrics.distance`; names: of METRICS, None: all that the statistics allow. KID is not scaled.
    Raises ValueError or OSError for images, statistics or weights that cannot be used.
    """
    space = Space(*load_both(ref, device))
    choose_metrics(names or possible([space]), [space])
    source = as_source(images)
    found, = evaluate(source, [space], 0, len(source) if hasattr(source, '__len__') else None, batch=batch)
    return {label(value, space.detector.distance).replace(' x 1000', ''): each for value, each in found.items()}


def evaluate(source, spaces: list[Space], first: int, count: int | None, *, batch: int = 64,
             desc: str = '', shown: bool = True) -> list[dict[str, Estimate]]:
    """All metrics of images first to first + count - 1 (None: all of a stream), space by space, from one pass.

    Ranks share the pass, whose bar is `shown`; the metrics of features are then taken by rank 0, and the others get
    empty results.
    Raises ValueError for too few images and for images that a detector cannot take.
    """
    stop = None if count is None else first + count
    measured = measure_all(source, [space.detector for space in spaces], first, stop, batch=batch,
                           max_features=MAX_FEATURES, desc=desc, shown=shown)
    found: list[dict[str, Estimate]] = [{} for _ in spaces]
    if dist.get_rank() == 0:
        for space, seen, values in zip(spaces, measured, found, strict=True):
            case = Case(seen, space.ref, space.detector)
            for name in space.metrics:
                values |= METRICS[name].measure(case)
    return found
