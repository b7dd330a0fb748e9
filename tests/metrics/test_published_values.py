"""Metrics of given features against the published packages: torch-fidelity 0.4.0 (`*_features_to_metric`), prdc 0.2.

The numbers are those that these packages gave for `toy_features.published_features`.
"""

import numpy as np
import pytest
from toy_features import published_features

from metrics.frechet import frechet_distance
from metrics.inception_score import inception_score
from metrics.kid import kernel_distance
from metrics.neighbours import neighbours


@pytest.mark.parametrize('splits, published', [(1, 1.1728385097153646), (5, 1.1701692352349873)])
def test_inception_score(splits, published):
    assert inception_score(published_features()[0], splits).value == pytest.approx(published, rel=1e-9)


@pytest.mark.parametrize('k, published', [(3, (0.9333333333, 0.692, 1.5266666667, 0.948)),
                                          (5, (0.9766666667, 0.808, 1.528, 1.0))])
def test_precision_recall_density_coverage(k, published):
    found = neighbours(*published_features(), k=k, k_density=k)
    assert [each.value for each in found] == pytest.approx(published, rel=1e-9)


def test_frechet_distance():
    x, y = (features.double().numpy() for features in published_features())
    found = frechet_distance(x.mean(axis=0), np.cov(x, rowvar=False), y.mean(axis=0), np.cov(y, rowvar=False))
    assert found == pytest.approx(0.1860088519838765, rel=1e-9)


def test_kernel_distance():
    x, y = published_features()
    assert kernel_distance(x[:250], y).value == pytest.approx(-0.00730462821570832, rel=1e-9)
