"""One pass over images: read ahead, features, moments and a sample of features, dealt out to all ranks."""

from typing import NamedTuple

import torch

from torch_utils import distributed as dist
from torch_utils.progress import progress

from .detectors import Detector
from .moments import Moments
from .sources import ImageSource


class Measured(NamedTuple):
    """Moments of all images, and the features [n, D] float32 of a sample (`sample_positions`), on the CPU."""

    moments: Moments
    features: torch.Tensor


def measure(source: ImageSource, detector: Detector, start: int, stop: int, *, batch: int = 64,
            max_features: int = 5000, desc: str = '') -> Measured:
    """Features of images start to stop - 1 of `source`, summed up; memory does not grow with their number.

    Each rank takes one contiguous part, so that it reads only its own files; every rank gets the result. Parts end
    where batches do, so that every batch, and with it each feature's rounding, is that of a single process.
    """
    count = stop - start
    kept = sample_positions(count, max_features)  # [n] ascending, positions from `start`
    rows = kept.to(detector.device)  # all is kept there, so that a GPU never waits for the host
    features = torch.zeros([len(kept), detector.feature_dim], device=detector.device)
    moments = Moments(detector.feature_dim, detector.device)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    batches = -(-count // batch)
    first, last = (min(batch * (batches * part // ranks), count) for part in (rank, rank + 1))
    with progress(total=count, desc=desc or source.name, unit='img') as bar:
        for images in source.batches(start + first, start + last, batch):
            f = detector(images)  # [n, D]
            moments.add(f)
            low, high = torch.searchsorted(kept, torch.tensor([first, first + len(f)])).tolist()
            if low < high:
                features[low:high] = f[rows[low:high] - first]
            first += len(f)
            bar.update(min(len(f) * ranks, count - bar.n))  # seen from rank 0, whose part may be the largest
    moments.all_reduce()
    dist.all_reduce_(features)  # each row is zero on all ranks but one
    if moments.count != count:
        raise ValueError(f'{source.path} gave {moments.count} images instead of {count}')
    return Measured(moments, features.cpu())


def sample_positions(count: int, most: int) -> torch.Tensor:
    """At most `most` of the positions 0 .. count - 1, ascending, int64: one from each of `most` equal stretches.

    Where in its stretch is drawn at random, always alike: classes may repeat at any interval.
    """
    kept = min(count, most)
    edges = torch.arange(kept + 1) * count // max(kept, 1)
    shares = torch.rand([kept], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return edges[:-1] + (shares * edges.diff()).to(torch.int64)
