"""One pass over images: read ahead, features of one or more detectors, their moments and a sample of them."""

from typing import NamedTuple

import torch

from torch_utils import distributed as dist
from torch_utils.progress import progress

from .detectors import Detector
from .moments import Moments


class Measured(NamedTuple):
    """Moments of all images, and the features [n, D] float32 of a sample of them, on the CPU."""

    moments: Moments
    features: torch.Tensor


def measure(source, detector: Detector, start: int = 0, stop: int | None = None, *, batch: int = 64,
            max_features: int = 5000, desc: str = '') -> Measured:
    """As `measure_all`, for one detector."""
    return measure_all(source, [detector], start, stop, batch=batch, max_features=max_features, desc=desc)[0]


def measure_all(source, detectors: list[Detector], start: int = 0, stop: int | None = None, *, batch: int = 64,
                max_features: int = 5000, desc: str = '', shown: bool = True) -> list[Measured]:
    """Features of images start to stop - 1 of `source`, summed up; memory does not grow with their number.

    source: an ImageSource, or an ImageStream, of which stop = None measures all that is left. Each rank takes one
    contiguous part, so that it reads only its own files; every rank gets the results. Parts end where batches do, so
    that every batch, and with it each feature's rounding, is that of a single process. `shown`: with a bar.
    Raises ValueError if there are fewer images, and for unknown numbers of images under several ranks.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if ranks > 1 and not hasattr(source, '__len__'):
        raise ValueError(f'{source.name}: images from Python are measured by one process, there are {ranks}')
    count = None if stop is None else stop - start
    passes = [OpenPass(each, max_features) if count is None else Pass(each, count, max_features) for each in detectors]
    first, last = 0, None
    if count is not None:
        batches = -(-count // batch)
        first, last = (min(batch * (batches * part // ranks), count) for part in (rank, rank + 1))
    with progress(total=count, desc=desc or source.name, unit='img', shown=shown) as bar:
        for images in source.batches(start + first, None if last is None else start + last, batch):
            for each in passes:
                each.add(images, first)
            first += len(images)
            # Seen from rank 0, whose part may be the largest.
            bar.update(len(images) if count is None else min(len(images) * ranks, count - bar.n))
    found = [each.finish() for each in passes]
    if count not in (None, found[0].moments.count):
        raise ValueError(f'{source.path or source.name} gave {found[0].moments.count} images instead of {count}')
    return found


class Pass:
    """What is kept of the features of `count` images. It stays on the device: a GPU never waits for the host.

    most: number of features that are kept, those of the images at `sample_positions`.
    """

    def __init__(self, detector: Detector, count: int, most: int):
        self.detector = detector
        self.moments = Moments(detector.feature_dim, detector.device)
        self.kept = sample_positions(count, most)  # [n] ascending
        self.rows = self.kept.to(detector.device)
        self.features = torch.zeros([len(self.kept), detector.feature_dim], device=detector.device)

    def add(self, images: torch.Tensor, first: int) -> None:
        """Adds a batch uint8 [N, C, H, W], whose first image is at position `first`."""
        f = self.detector(images)  # [N, D]
        self.moments.add(f)
        low, high = torch.searchsorted(self.kept, torch.tensor([first, first + len(f)])).tolist()
        if low < high:
            self.features[low:high] = f[self.rows[low:high] - first]

    def finish(self) -> Measured:
        """The results over all ranks."""
        dist.all_reduce_(self.features)  # each row is zero on all ranks but one
        return Measured(self.moments.all_reduce(), self.features.cpu())


class OpenPass:
    """As Pass, for an unknown number of images: each draws a number, and those with the smallest are kept."""

    def __init__(self, detector: Detector, most: int):
        self.detector, self.most = detector, most
        self.moments = Moments(detector.feature_dim, detector.device)
        self.generator = torch.Generator().manual_seed(0)
        self.draws = torch.zeros([0], dtype=torch.float64)
        self.features: list[torch.Tensor] = []  # [n, D] each, together as long as `draws`

    def add(self, images: torch.Tensor, first: int) -> None:
        f = self.detector(images)
        self.moments.add(f)
        draws = torch.rand([len(f)], dtype=torch.float64, generator=self.generator)
        self.draws = torch.cat([self.draws, draws])
        self.features.append(f)
        if len(self.draws) > 2 * self.most:  # now and then, so that it costs little
            self._drop()

    def _drop(self):
        kept = self.draws.argsort()[:self.most].sort().values  # in the order of the images
        self.draws = self.draws[kept]
        self.features = [torch.cat(self.features)[kept.to(self.detector.device)]] if self.features else []

    def finish(self) -> Measured:
        self._drop()
        return Measured(self.moments, self.features[0].cpu() if self.features
                        else torch.zeros([0, self.detector.feature_dim]))


def sample_positions(count: int, most: int) -> torch.Tensor:
    """At most `most` of the positions 0 .. count - 1, ascending, int64: one from each of `most` equal stretches.

    Where in its stretch is drawn at random, always alike: classes may repeat at any interval.
    """
    kept = min(count, most)
    edges = torch.arange(kept + 1) * count // max(kept, 1)
    shares = torch.rand([kept], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return edges[:-1] + (shares * edges.diff()).to(torch.int64)
