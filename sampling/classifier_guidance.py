"""Classifier guidance (Dhariwal and Nichol 2021): the gradient of log p(label | image; sigma) corrects the image."""

import torch

from diffusion.gradients import value_and_grad

from .denoiser import Denoiser, as_denoiser, per_row
from .interval import GuidanceInterval, IntervalGuided


class ClassifierGuidance:
    """D + w sigma^2 grad log p(label | x; sigma), i.e. w times the gradient is added to the score.

    log_likelihood(x, sigma, class_labels) -> [N], differentiable in x, is that of a classifier of noisy images. Called
    with a score network or a denoiser, it returns the guided denoiser of one batch; costs count 'classifier_calls'.
    Raises ValueError for a network without labels.
    """

    def __init__(self, log_likelihood, weight: float = 1.0, interval: GuidanceInterval | None = None):
        self.log_likelihood, self.weight, self.interval = log_likelihood, float(weight), interval

    def __call__(self, net) -> Denoiser:
        denoise = as_denoiser(net)
        if not denoise.label_dim:
            raise ValueError('classifier guidance needs a class-conditional network, whose labels it guides to')
        return ClassifierGuided(denoise, self) if self.weight else denoise


class ClassifierGuided(IntervalGuided):
    """A denoiser that a classifier guides."""

    calls = 'classifier_calls'

    def __init__(self, inner: Denoiser, guidance: ClassifierGuidance):
        super().__init__(inner, guidance.interval)
        self.guidance = guidance

    def correction(self, x, sigma, class_labels, unguided):
        _, gradient = value_and_grad(self.guidance.log_likelihood, x, sigma, class_labels)
        return self.guidance.weight * per_row(sigma ** 2, x) * gradient.to(torch.float64)
