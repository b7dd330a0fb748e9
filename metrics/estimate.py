"""Measured numbers with errors, and differences between runs with a verdict."""

import math
from typing import NamedTuple

import torch

DEVIATIONS = 2  # a difference below this many of its standard errors is inconclusive,
SHARE = 0.013  # and so is one below this share of the value: training again moves a distance by about as much


class Estimate(NamedTuple):
    """A metric of images against a fixed reference.

    terms: [n] float64 or None. To first order, the draw of images changes the value by the mean of their terms, whose
    own mean is 0 (the influence function; its spread gives Efron's infinitesimal jackknife).
    error: the standard error, from the terms or from a closed formula; None if there is none. It does not contain the
    bias that a metric has for few images.
    """

    value: float
    error: float | None = None
    terms: torch.Tensor | None = None


def from_terms(value: float, terms: torch.Tensor) -> Estimate:
    """The estimate whose contributions are `terms` [n], up to a constant."""
    terms = terms.to('cpu', torch.float64)
    terms = terms - terms.mean()
    return Estimate(float(value), standard_error(terms), terms)


def standard_error(terms: torch.Tensor) -> float:
    """The standard error of the mean of `terms` [n]; infinite for fewer than two."""
    return float(terms.std() / math.sqrt(len(terms))) if len(terms) > 1 else math.inf


class Difference(NamedTuple):
    """How much higher one run is than another: the difference, its standard error, and what may be said of it."""

    difference: float
    error: float | None
    relative: float  # share of the value that it is compared with
    paired: bool
    verdict: str  # lower, higher or inconclusive


def difference(values: list[Estimate], bases: list[Estimate], paired: bool) -> Difference:
    """The mean over blocks of images of `values` less that of `bases`, block by block.

    paired: image i of both comes from the same seed, so that what they share cancels; it needs terms.
    Raises ValueError for unlike numbers of blocks.
    """
    if len(values) != len(bases):
        raise ValueError(f'{len(values)} blocks cannot be compared with {len(bases)}')
    pairs = list(zip(values, bases, strict=True))
    paired = paired and all(a.terms is not None and b.terms is not None and len(a.terms) == len(b.terms)
                            for a, b in pairs)
    if paired:
        errors = [standard_error(a.terms - b.terms) for a, b in pairs]
    else:
        errors = [math.hypot(a.error, b.error) for a, b in pairs if None not in (a.error, b.error)]
    error = math.hypot(*errors) / len(pairs) if len(errors) == len(pairs) else None
    of = sum(b.value for b in bases) / len(pairs)
    found = sum(a.value - b.value for a, b in pairs) / len(pairs)
    relative = found / abs(of) if of else math.copysign(math.inf, found) if found else 0.0
    return Difference(found, error, relative, paired, verdict(found, error, relative))


def verdict(difference: float, error: float | None, relative: float) -> str:
    """'inconclusive' below two standard errors or below 1.3 % of the value, else 'lower' or 'higher'."""
    if error is None or not abs(difference) >= DEVIATIONS * error or abs(relative) < SHARE:
        return 'inconclusive'
    return 'lower' if difference < 0 else 'higher'
