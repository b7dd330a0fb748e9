"""Nearest training images, against all distances at once."""

import numpy as np
import pytest
import torch

from metrics.detectors import Detector
from metrics.nearest import nearest_images
from metrics.sources import open_source


@pytest.fixture
def detector():
    """Features: the mean colours of the four quarters of an image."""
    return Detector('toy', 'FD-TOY', 12, torch.device('cpu'),
                    lambda images: torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1))


@pytest.mark.parametrize('batch', [3, 64])
def test_against_all_distances(tmp_path, detector, batch):
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=[40, 8, 8, 3], dtype=np.uint8)
    np.savez(tmp_path / 'train.npz', images=images)
    images = torch.from_numpy(images).permute(0, 3, 1, 2)
    samples = torch.from_numpy(rng.integers(256, size=[5, 3, 8, 8], dtype=np.uint8))
    found = nearest_images(samples, open_source(tmp_path / 'train.npz'), detector, k=7, batch=batch)
    distances = (detector(samples)[:, None] - detector(images)).square().sum(2).sqrt()  # [5, 40]
    order = distances.argsort(1)[:, :7]
    torch.testing.assert_close(found.distances, distances.gather(1, order), rtol=1e-4, atol=1e-3)
    assert torch.equal(found.images, images[order])


def test_too_few_images(tmp_path, detector):
    np.savez(tmp_path / 'train.npz', images=np.zeros([3, 8, 8, 3], np.uint8))
    with pytest.raises(ValueError, match='train.npz holds 3 images, fewer than 4 neighbours'):
        nearest_images(torch.zeros([1, 3, 8, 8], dtype=torch.uint8), open_source(tmp_path / 'train.npz'), detector, k=4)
