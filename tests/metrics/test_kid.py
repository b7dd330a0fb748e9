"""KID: the definition by brute force, no bias, a correct error."""

import numpy as np
import pytest
import torch

from metrics.kid import kernel_distance


def brute_force(x, y):
    x, y = x.double(), y.double()
    d, n, m = x.shape[1], len(x), len(y)

    def k(a, b):
        return (sum(float(p) * float(q) for p, q in zip(a, b)) / d + 1) ** 3

    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(k(a, b) for a in x for b in y) / (n * m)
    return xx + yy - 2 * xy


@pytest.mark.parametrize('groups', [2, 5, 20])
def test_equals_the_definition(groups):
    x, y = torch.randn(23, 4), torch.randn(17, 4) + 0.5
    np.testing.assert_allclose(kernel_distance(x, y, groups).value, brute_force(x, y), rtol=1e-9)


def test_error_is_the_jackknife_over_the_groups():
    """With one image of each kind per group, leaving out group b is leaving out rows."""
    x, y = torch.randn(8, 3), torch.randn(8, 3) + 1
    distance = kernel_distance(x, y, groups=4, seed=3)
    order = [torch.randperm(8, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)]
    left_out = []
    for b in range(4):
        kept = [i for i in range(8) if i // 2 != b]
        left_out.append(brute_force(x[order[0][kept]], y[order[1][kept]]))
    expected = np.sqrt(3 / 4 * np.square(np.array(left_out) - np.mean(left_out)).sum())
    np.testing.assert_allclose(distance.error, expected, rtol=1e-8)


def test_unbiased_for_few_images_and_the_error_is_honest():
    """Equal distributions: mean 0 within its deviation; different ones: the same value from few and many images."""
    found = np.array([kernel_distance(torch.randn(60, 16), torch.randn(50, 16), groups=6) for _ in range(100)])
    mean, spread = found[:, 0].mean(), found[:, 0].std()
    assert abs(mean) < 4 * spread / np.sqrt(100)
    assert 0.7 * spread < found[:, 1].mean() < 2 * spread  # on the safe side near 0, where the estimate is degenerate
    few = np.array([kernel_distance(torch.randn(60, 16), torch.randn(60, 16) + 0.3, groups=6) for _ in range(100)])
    many = kernel_distance(torch.randn(2000, 16), torch.randn(2000, 16) + 0.3)
    assert abs(few[:, 0].mean() - many.value) < 4 * np.hypot(few[:, 0].std() / np.sqrt(100), many.error)
    assert many.value > 10 * many.error
    assert 0.7 * few[:, 0].std() < few[:, 1].mean() < 1.5 * few[:, 0].std()


def test_half_precision_reference_is_enough():
    x, y = torch.rand(500, 32) * 2, torch.rand(400, 32) * 2.1
    exact, rounded = kernel_distance(x, y), kernel_distance(x, y.half())
    assert abs(exact.value - rounded.value) < 0.05 * exact.error


def test_bad_input():
    with pytest.raises(ValueError, match='compared'):
        kernel_distance(torch.zeros(9, 3), torch.zeros(9, 4))
    with pytest.raises(ValueError, match='at least 4'):
        kernel_distance(torch.zeros(3, 3), torch.zeros(9, 3))
    with pytest.raises(ValueError, match='NaN'):
        kernel_distance(torch.full((9, 3), float('nan')), torch.zeros(9, 3))
