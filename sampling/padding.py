"""A network that always sees a full batch: a compiled one is compiled once, and rows round as ever.

The kernels of a convolution or a product depend on the size of the batch, and so does rounding. In rejection sampling
the rows that ride together depend on ranks and restarts; at one size, a row's result does not depend on the others.
"""

import torch


class Padded:
    """`net` (score network or log-ratio) called on batches filled up to `batch` rows with copies of the last row."""

    def __init__(self, net, batch: int):
        self._net, self._batch = net, batch

    def __getattr__(self, name):
        return getattr(self._net, name)

    def __call__(self, x, sigma, class_labels=None):
        sigma = sigma.expand(len(x)).contiguous()  # for another shape or stride a compiled network is compiled again
        missing = self._batch - len(x)
        if missing <= 0:
            return self._net(x, sigma, class_labels)
        rows = torch.arange(self._batch, device=x.device).clamp(max=len(x) - 1)
        return self._net(x[rows], sigma[rows], None if class_labels is None else class_labels[rows])[:len(x)]
