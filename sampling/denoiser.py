"""The score network as samplers call it: it counts evaluations, and takes what guidance needs to know of them."""

from typing import NamedTuple

import numpy as np
import torch

from torch_utils.transfer import upload


def per_row(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """[] or [N] -> a shape that multiplies x [N, ...] row by row."""
    return values.reshape([-1] + [1] * (x.ndim - 1))


class Wrapper:
    """Forwards attributes that it lacks to the object that it wraps."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        if name == 'inner':  # not set yet while the object is copied
            raise AttributeError(name)
        return getattr(self.inner, name)


class At(NamedTuple):
    """What a sampler knows of an evaluation. Every field may be left out, at the cost of waiting for the device."""

    sigmas: torch.Tensor | None = None  # noise levels on the host: [1] for all rows, or [N]; None: read sigma
    second: bool | np.ndarray = False  # the second evaluation of a Heun step; [N] if rows differ
    step: int | None = None  # the index of the step
    rows: np.ndarray | None = None  # the samples that the rows belong to, for the counts; None: all of them, in order
    either: bool = False  # each row has one of `sigmas`, but the host does not know which

    def known(self, sigma: torch.Tensor) -> 'At':
        """The same with noise levels, read from the device if the host does not know them."""
        return self if self.sigmas is not None else self._replace(sigmas=sigma.reshape(-1).cpu())

    def part(self, rows: np.ndarray) -> 'At':
        """The same for some rows of the evaluation; its noise levels must be known."""
        sigmas = self.sigmas if len(self.sigmas) == 1 or self.either else self.sigmas[rows]
        second = self.second if np.ndim(self.second) == 0 else self.second[rows]
        return At(sigmas, second, self.step, rows if self.rows is None else self.rows[rows], self.either)


UNKNOWN = At()


class Costs(dict):
    """Evaluations per sample: 'nfe' of the score network, 'discriminator_calls', and others; int64 [size] each."""

    def __init__(self, size: int):
        super().__init__(nfe=np.zeros(size, dtype=np.int64), discriminator_calls=np.zeros(size, dtype=np.int64))
        self.size = size

    def count(self, name: str, rows: np.ndarray | None = None, times: int = 1) -> None:
        """Count `times` more evaluations of `rows` (None: all samples)."""
        self.register(name)
        self[name][slice(None) if rows is None else rows] += times

    def register(self, name: str) -> None:
        """Start counting evaluations of this name at 0, unless they are counted already."""
        self.setdefault(name, np.zeros(self.size, dtype=np.int64))


class Denoiser(Wrapper):
    """`net(x, sigma, class_labels)` with the keyword `at`; returns float64 and counts in `costs`.

    Guidance wraps a denoiser in another one, which adds its correction and says by `boosting` and `boosted` whether
    some rows get more noise (discriminator guidance only).
    """

    boosting = None

    def __init__(self, net, size: int | None = None):
        super().__init__(net)
        self.costs = None if size is None else Costs(size)

    def __call__(self, x, sigma, class_labels=None, at: At = UNKNOWN) -> torch.Tensor:
        """The denoised images [N, C, H, W], float64, of x [N, C, H, W] with noise sigma ([] or [N], on any device)."""
        if self.costs is None:
            self.costs = Costs(len(x))
        self.costs.count('nfe', at.rows)
        self.unguided = self.inner(x, sigma.to(x.device), class_labels).to(torch.float64)  # of the last evaluation
        return self.unguided

    @property
    def network(self):
        """The score network without its wrappers."""
        return self.inner

    def boosted(self, step: int) -> torch.Tensor | None:
        """Rows [N] whose noise is renewed in a step; None: no rows."""
        return None


class GuidedDenoiser(Denoiser):
    """A denoiser around a denoiser; subclasses add a correction to what the inner one returns."""

    def __init__(self, inner: Denoiser):
        Wrapper.__init__(self, inner)

    @property
    def costs(self) -> Costs:
        return self.inner.costs

    @property
    def network(self):
        return self.inner.network

    @property
    def boosting(self):
        return self.inner.boosting

    def boosted(self, step):
        return self.inner.boosted(step)

    @staticmethod
    def add(correction, denoised, rows: np.ndarray, x, sigma, class_labels, at: At) -> torch.Tensor:
        """`denoised` [N, C, H, W] plus correction(rows, x, sigma, class_labels, at) for the rows [n] only."""
        if not len(rows):
            return denoised
        if len(rows) == len(x):
            return denoised + correction(rows, x, sigma, class_labels, at)
        index = upload(torch.from_numpy(rows), x.device)
        labels = None if class_labels is None else class_labels[index]
        return denoised.index_add(0, index, correction(rows, x[index], sigma.expand(len(x))[index], labels,
                                                       at.part(rows)))


def as_denoiser(net) -> Denoiser:
    """A score network as a denoiser; a denoiser as it is."""
    return net if isinstance(net, Denoiser) else Denoiser(net)


def nested(*guidances):
    """The sum of guidances as one, each wrapping the denoiser of those before it; None is no guidance."""
    guidances = [guidance for guidance in guidances if guidance is not None]
    if len(guidances) < 2:
        return guidances[0] if guidances else None

    def guide(net) -> Denoiser:
        for guidance in guidances:
            net = guidance(net)
        return net

    return guide
