"""Autoguidance (Karras et al. 2024): extrapolation away from a weaker network for the same task."""

from .denoiser import Denoiser, as_denoiser
from .interval import GuidanceInterval, IntervalGuided


class Autoguidance:
    """D = D_g + w (D - D_g) with a guide D_g (Karras et al. 2024); 1 is no guidance.

    guide: a score network for the same images, given the same labels, or one without labels (then this is
    classifier-free guidance by a separate network). Called with a score network or a denoiser, it returns the guided
    denoiser of one batch. The correction (w - 1) (D - D_g) follows from the unguided D, so that nested guidances add
    up in any order. Raises ValueError if the guide is for other images or labels.
    """

    def __init__(self, guide, weight: float = 2.0, interval: GuidanceInterval | None = None):
        self.guide, self.weight, self.interval = guide, float(weight), interval

    def __call__(self, net) -> Denoiser:
        denoise = as_denoiser(net)
        check_guide(self.guide, denoise)
        return denoise if self.weight == 1 else Autoguided(denoise, self.guide, self.weight, self.interval)


def check_guide(guide, net) -> None:
    """Raise ValueError if a network cannot guide another one."""
    theirs, ours = ((n.img_channels, n.img_resolution, n.img_resolution) for n in (guide, net))
    if theirs != ours:
        raise ValueError(f'the guide is for images of shape {list(theirs)}, the network draws {list(ours)}')
    if guide.label_dim not in (0, net.label_dim):
        raise ValueError(f'the guide knows {guide.label_dim} classes, the network {net.label_dim}')


class Autoguided(IntervalGuided):
    """A denoiser that a weaker one guides."""

    def __init__(self, inner: Denoiser, guide, weight: float, interval: GuidanceInterval | None):
        super().__init__(inner, interval)
        self.guide, self.weight = guide, weight

    def correction(self, x, sigma, class_labels, unguided):
        weaker = self.guide(x, sigma, class_labels if self.guide.label_dim else None).to(unguided.dtype)
        return (self.weight - 1) * (unguided - weaker)
