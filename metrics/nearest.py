"""The training images that are nearest to samples, in the features of a detector: what a sample may have copied."""

from typing import NamedTuple

import torch

from torch_utils.progress import progress

from .detectors import Detector


class Nearest(NamedTuple):
    """For each of n samples its k nearest images, nearest first."""

    distances: torch.Tensor  # [n, k]
    images: torch.Tensor  # [n, k, C, H, W] uint8


def nearest_images(samples: torch.Tensor, source, detector: Detector, k: int = 6, batch: int = 64) -> Nearest:
    """The k images of `source` whose features are nearest to those of samples uint8 [n, C, H, W]; memory is flat.

    source: an ImageSource of images of the same shape. Raises ValueError for fewer than k images and for another shape.
    """
    if len(source) < k:
        raise ValueError(f'{source.name} holds {len(source)} images, fewer than {k} neighbours')
    f = detector(samples)  # [n, D]
    found = None
    with progress(total=len(source), desc=f'neighbours in {source.name}', unit='img') as bar:
        for images in source.batches(0, len(source), batch):
            bar.update(len(images))
            distances = torch.cdist(f, detector(images)).cpu()  # [n, N]
            images = images.expand(len(f), *images.shape)  # [n, N, C, H, W]
            if found is not None:
                distances = torch.cat([found.distances, distances], dim=1)
                images = torch.cat([found.images, images], dim=1)
            best = distances.topk(min(k, distances.shape[1]), largest=False)  # in order
            rows = torch.arange(len(f))[:, None]
            found = Nearest(best.values, images[rows, best.indices])
    return found
