"""Guidance within an interval only (Kynkaanniemi et al. 2024), of noise levels, or of steps as published."""

import ast
from dataclasses import dataclass

import numpy as np
import torch

from torch_utils.transfer import upload

from .denoiser import UNKNOWN, At, Denoiser, GuidedDenoiser, per_row


@dataclass(frozen=True)
class GuidanceInterval:
    """Evaluations at noise levels low <= sigma <= high; or, if `steps`, those of the steps low <= i <= high.

    Both evaluations of a Heun step belong to that step. Raises ValueError if low is above high.
    """

    low: float
    high: float
    steps: bool = False

    def __post_init__(self):
        if not self.low <= self.high:
            raise ValueError(f'guidance would never act: {self.low:g} is above {self.high:g}')

    def rows(self, at: At, size: int) -> np.ndarray:
        """The rows [n] that guidance may act on, as far as the host knows."""
        if self.steps and at.step is None:
            raise ValueError('the rows of this sampler are at different steps; give the guidance interval in sigma')
        inside = self.low <= at.step <= self.high if self.steps else self.contains(at.sigmas).numpy()
        return np.flatnonzero(np.broadcast_to(np.any(inside) if at.either else inside, [size]))

    def contains(self, sigma: torch.Tensor) -> torch.Tensor:
        """Which noise levels lie in the interval (bool, of the shape of `sigma`)."""
        return (sigma >= self.low) & (sigma <= self.high)

    def undecided(self, at: At) -> bool:
        """Whether only the device knows which of `rows` are inside."""
        return not self.steps and at.either and not bool(self.contains(at.sigmas).all())


ALWAYS = GuidanceInterval(0.0, float('inf'))


def parse_interval(text: str) -> GuidanceInterval:
    """'LOW,HIGH' in noise levels; '[FIRST, LAST]' in step indices, as published. Raises ValueError."""
    try:
        low, high = ast.literal_eval(text.strip())
        if text.strip().startswith('['):
            return GuidanceInterval(int(low), int(high), steps=True)
        low, high = float(low), float(high)
    except (SyntaxError, TypeError, ValueError):
        raise ValueError(f'{text!r} is neither SIGMA_LOW,SIGMA_HIGH nor [FIRST_STEP, LAST_STEP]') from None
    return GuidanceInterval(low, high)


class IntervalGuided(GuidedDenoiser):
    """A denoiser with a correction in an interval; outside it the guide is not called. Subclasses define it."""

    calls = 'guiding_calls'  # the name under which costs count its evaluations

    def __init__(self, inner: Denoiser, interval: GuidanceInterval | None):
        super().__init__(inner)
        self.interval = interval or ALWAYS
        if self.costs is not None:  # a guide that is never called has cost 0
            self.costs.register(self.calls)

    def correction(self, x, sigma, class_labels, unguided) -> torch.Tensor:
        """What guidance adds [n, ...], float64; unguided [n, ...]: the score network's result."""
        raise NotImplementedError

    def __call__(self, x, sigma, class_labels=None, at: At = UNKNOWN):
        sigma, at = sigma.to(x.device), at.known(sigma)
        denoised = self.inner(x, sigma, class_labels, at)
        unguided = self.unguided

        def correction(rows, part, sigma, class_labels, at):
            self.costs.count(self.calls, at.rows)
            plain = unguided if len(rows) == len(unguided) else unguided[upload(torch.from_numpy(rows), x.device)]
            added = self.correction(part, sigma, class_labels, plain)
            if self.interval.undecided(at):
                added = torch.where(per_row(self.interval.contains(sigma), part), added, 0.0)
            return added

        return self.add(correction, denoised, self.interval.rows(at, len(x)), x, sigma, class_labels, at)
