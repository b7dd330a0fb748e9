"""Classifier-free guidance (Ho and Salimans 2022) by a network that was trained with dropped labels."""

import torch

from .autoguidance import Autoguided
from .denoiser import Denoiser, Wrapper, as_denoiser
from .interval import GuidanceInterval


class ClassifierFreeGuidance:
    """D = D_0 + w (D - D_0) with D_0 the same network without labels; 1 is no guidance.

    `empty` is the label [K] that stands for none; by default the zero vector, which training with dropped labels sees.
    Called with a score network or a denoiser, it gives the guided denoiser of one batch; 'guiding_calls' counts the
    second evaluations. Raises ValueError for a network without labels, or one that was trained without dropping them
    and so knows nothing of images without a label.
    """

    def __init__(self, weight: float = 2.0, interval: GuidanceInterval | None = None,
                 empty: torch.Tensor | None = None):
        self.weight, self.interval, self.empty = float(weight), interval, empty

    def __call__(self, net) -> Denoiser:
        denoise = as_denoiser(net)
        if not denoise.label_dim:
            raise ValueError('an unconditional network has no labels to guide by')
        inside = getattr(getattr(denoise, 'model', None), 'label_dropout', None)
        if inside == 0 and not getattr(denoise, 'drops_labels', False):
            raise ValueError('the network was trained without dropping labels (label_dropout is 0) and knows nothing '
                             'of images without one')
        if self.weight == 1:
            return denoise
        return Autoguided(denoise, WithoutLabels(denoise.network, self.empty), self.weight, self.interval)


class WithoutLabels(Wrapper):
    """A network that sees no labels, or the `empty` one."""

    label_dim = 0

    def __init__(self, inner, empty: torch.Tensor | None = None):
        super().__init__(inner)
        self.empty = empty

    def __call__(self, x, sigma, class_labels=None):
        empty = None if self.empty is None else self.empty.to(x.device, torch.float32).expand(len(x), -1)
        return self.inner(x, sigma, empty)
