"""Streaming moments: any batching and any split gives the moments of all features."""

import numpy as np
import pytest
import torch

from metrics.moments import Moments


def features(count=300, dim=24):
    mix = torch.randn(dim, dim)
    return torch.randn(count, dim) @ mix + 5


def moments_of(parts, dim=24):
    moments = Moments(dim)
    for part in parts:
        moments.add(part)
    return moments


def assert_same(moments, f):
    mu, sigma = moments.finish()
    f = f.double().numpy()
    assert mu.dtype == sigma.dtype == np.float64
    np.testing.assert_allclose(mu, f.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(sigma, np.cov(f, rowvar=False), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('batch', [1, 7, 64, 300])
def test_batches_do_not_matter(batch):
    f = features()
    assert_same(moments_of(f.split(batch)), f)


def test_half_precision_features_are_summed_in_float64():
    f = features().half()
    assert_same(moments_of(f.split(50)), f)


def test_alone_all_reduce_changes_nothing():
    f = features()
    assert_same(moments_of([f]).all_reduce(), f)


def test_bad_input():
    moments = Moments(8)
    with pytest.raises(ValueError, match=r'\[N, 8\]'):
        moments.add(torch.zeros(4, 9))
    moments.add(torch.zeros(1, 8))
    with pytest.raises(ValueError, match='at least 2'):
        moments.finish()
    moments.add(torch.full((1, 8), float('nan')))
    with pytest.raises(ValueError, match='NaN'):
        moments.finish()
