"""Classifier-free guidance (Ho and Salimans, 2022): away from what the network would do without a label."""

import torch

from .denoiser import UNKNOWN, At, Denoiser, GuidedDenoiser, as_denoiser


class ClassifierFree:
    """D(x | y) + w (D(x | y) - D(x | empty)): called with a network or denoiser, it gives the guided denoiser.

    `empty` is the label [K] that stands for none; by default the zero vector, which training with dropped labels sees.
    Two evaluations for one.
    """

    def __init__(self, w: float, empty: torch.Tensor | None = None):
        self.w, self.empty = float(w), empty

    def __call__(self, net) -> 'ClassifierFreeGuided':
        return ClassifierFreeGuided(self, as_denoiser(net))


class ClassifierFreeGuided(GuidedDenoiser):
    """The guided denoiser of one batch."""

    def __init__(self, guidance: ClassifierFree, inner: Denoiser):
        super().__init__(inner)
        self.guidance = guidance

    def __call__(self, x, sigma, class_labels=None, at: At = UNKNOWN):
        labelled = self.inner(x, sigma, class_labels, at)
        empty = self.guidance.empty
        empty = torch.zeros_like(class_labels) if empty is None else empty.to(class_labels).expand_as(class_labels)
        return labelled + self.guidance.w * (labelled - self.inner(x, sigma, empty, at))
