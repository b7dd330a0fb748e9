"""Classifier-free guidance (Ho and Salimans 2022) by a network that was trained with dropped labels."""

from .autoguidance import Autoguided
from .denoiser import Denoiser, Wrapper, as_denoiser
from .interval import GuidanceInterval


class ClassifierFreeGuidance:
    """D = D_0 + w (D - D_0) with D_0 the same network without labels; 1 is no guidance.

    Called with a score network or a denoiser, it gives the guided denoiser of one batch; 'guiding_calls' counts the
    second evaluations. Raises ValueError for a network without labels, or one that was trained without dropping them
    and so knows nothing of images without a label.
    """

    def __init__(self, weight: float = 2.0, interval: GuidanceInterval | None = None):
        self.weight, self.interval = float(weight), interval

    def __call__(self, net) -> Denoiser:
        denoise = as_denoiser(net)
        if not denoise.label_dim:
            raise ValueError('an unconditional network has no labels to guide by')
        if getattr(getattr(denoise, 'model', None), 'label_dropout', None) == 0:
            raise ValueError('the network was trained without dropping labels (label_dropout is 0) and knows nothing '
                             'of images without one')
        if self.weight == 1:
            return denoise
        return Autoguided(denoise, WithoutLabels(denoise.network), self.weight, self.interval)


class WithoutLabels(Wrapper):
    """A network that sees no labels."""

    label_dim = 0

    def __call__(self, x, sigma, class_labels=None):
        return self.inner(x, sigma, None)
