"""Classifier-free guidance (Ho and Salimans, 2022): extrapolation away from the network without a label."""

import torch

from .denoiser import Denoiser, as_denoiser
from .interval import GuidanceInterval, IntervalGuided


class ClassifierFree:
    """D(x | y) + w (D(x | y) - D(x | empty)): called with a network or denoiser, it returns the guided denoiser.

    `empty` is the label [K] that means no label; by default the zero vector, as in training with dropped labels.
    Takes two evaluations instead of one within `interval` (None: everywhere). Nested guidances add up in any order.
    """

    def __init__(self, w: float, empty: torch.Tensor | None = None, interval: GuidanceInterval | None = None):
        self.w, self.empty, self.interval = float(w), empty, interval

    def __call__(self, net) -> 'ClassifierFreeGuided':
        return ClassifierFreeGuided(self, as_denoiser(net))


class ClassifierFreeGuided(IntervalGuided):
    """The guided denoiser of one batch."""

    calls = 'nfe'  # the score network itself is evaluated once more

    def __init__(self, guidance: ClassifierFree, inner: Denoiser):
        super().__init__(inner, guidance.interval)
        self.guidance = guidance

    def correction(self, x, sigma, class_labels, unguided):
        empty = self.guidance.empty
        empty = torch.zeros_like(class_labels) if empty is None else empty.to(class_labels).expand_as(class_labels)
        return self.guidance.w * (unguided - self.network(x, sigma, empty).to(unguided.dtype))
