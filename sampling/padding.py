"""A network that always sees a full batch, so that it is compiled once and rows always round alike.

The kernels of convolutions and products depend on the size of the batch, and so does rounding. In rejection sampling
the rows of a batch depend on ranks and restarts; at a fixed size, a row's result does not depend on the others.
"""

import torch

from .denoiser import Wrapper


class Padded(Wrapper):
    """A score network or log-ratio called on batches filled up to `batch` rows with copies of the last row."""

    def __init__(self, inner, batch: int):
        super().__init__(inner)
        self.batch = batch

    def __call__(self, x, sigma, class_labels=None):
        return self.inner(*self._filled(x, sigma, class_labels))[:len(x)]

    def value_and_grad(self, x, sigma, class_labels=None):
        """As `networks.log_ratio.LogRatio.value_and_grad`."""
        value, gradient = self.inner.value_and_grad(*self._filled(x, sigma, class_labels))
        return value[:len(x)], gradient[:len(x)]

    def _filled(self, x, sigma, class_labels):
        """The arguments with at least `batch` rows, sigma [N] in its own memory."""
        sigma = sigma.expand(len(x)).contiguous()  # a compiled network is compiled again for another shape or stride
        if len(x) >= self.batch:
            return x, sigma, class_labels
        rows = torch.arange(self.batch, device=x.device).clamp(max=len(x) - 1)
        return x[rows], sigma[rows], None if class_labels is None else class_labels[rows]
