"""Measuring holds a few batches, for any number of shards."""

import tracemalloc

import numpy as np
import pytest
import torch

from metrics.measure import measure
from metrics.sources import open_source

SHARD = 64 * 32 * 32 * 3  # bytes of the images of one shard


class Means:
    """A detector whose features are the means of the channels."""

    feature_dim, device = 3, torch.device('cpu')

    def __call__(self, images):
        return images.float().mean([2, 3])


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_memory_does_not_grow_with_the_number_of_shards(tmp_path, save):
    """The most that numpy and Python hold: read ahead, being read, being measured."""
    shards = 80  # keeping a fifth of each would exceed the limit
    images = np.random.RandomState(0).randint(256, size=[64, 32, 32, 3], dtype=np.uint8)
    for first in range(0, 64 * shards, 64):
        save(tmp_path / f'samples_{first:08d}.npz', samples=images)
    source = open_source(tmp_path)
    tracemalloc.start()
    measured = measure(source, Means(), 0, 64 * shards, batch=64, max_features=8)
    peak = tracemalloc.get_traced_memory()[1] / SHARD
    tracemalloc.stop()
    assert measured.moments.count == 64 * shards
    assert peak < 16  # 10 and a half if the reader is as far ahead as possible
