"""The Frechet distance against the published implementations, closed forms and singular covariances."""

import goldens
import numpy as np
import pytest

from metrics.frechet import frechet_distance, trace_sqrt_product

CASES = ('full', 'rank_deficient', 'both_deficient', 'dead_features', 'same')


@pytest.mark.parametrize('case', CASES)
def test_agrees_with_published_implementations(case):
    golden = goldens.load('fid/fid.npz')
    distance = frechet_distance(*(golden[f'{case}_{name}'] for name in ('mu1', 'sigma1', 'mu2', 'sigma2')))
    # In the singular cases the root of S1 S2 itself is known only up to the root of the rounding error.
    tolerance = dict(full=dict(rtol=1e-8), same=dict(rtol=0, atol=1e-8)).get(case, dict(rtol=0, atol=1e-5))
    for implementation in ('edm', 'dg', 'pytorch_fid', 'eigenvalues'):
        np.testing.assert_allclose(distance, golden[f'{case}_fid_{implementation}'], **tolerance)


def test_moments_of_golden_features():
    golden = goldens.load('fid/fid.npz')
    for features, moments in (('features_a', '1'), ('features_b', '2')):
        f = golden[features].astype(np.float64)
        np.testing.assert_allclose(f.mean(axis=0), golden[f'full_mu{moments}'], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(np.cov(f, rowvar=False), golden[f'full_sigma{moments}'], rtol=1e-9, atol=1e-12)


def random_covariance(rng, dim, rank=None, spread=0.0):
    rank = rank or dim
    vectors = np.linalg.qr(rng.standard_normal((dim, dim)))[0][:, :rank]
    return vectors * np.logspace(0, -spread, rank) @ vectors.T


@pytest.mark.parametrize('spread', [0.0, 4.0, 12.0])
def test_commuting_covariances_have_a_closed_form(spread):
    """For S1 and S2 with the same eigenvectors the trace is the sum of sqrt(l1 l2)."""
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.standard_normal((48, 48)))[0]
    l1, l2 = np.logspace(0, -spread, 48), rng.uniform(0.5, 2, 48) * np.logspace(0, -spread, 48)
    trace = trace_sqrt_product(vectors * l1 @ vectors.T, vectors * l2 @ vectors.T)
    np.testing.assert_allclose(trace, np.sqrt(l1 * l2).sum(), rtol=1e-8)


@pytest.mark.parametrize('rank1, rank2', [(40, 7), (7, 40), (7, 9), (20, 20), (1, 40)])
def test_singular_covariances_are_exact_and_symmetric(rank1, rank2):
    """Factors A of the known ranks give the trace as a nuclear norm; the function must find it from S only."""
    rng = np.random.default_rng(1)
    A1, A2 = rng.standard_normal((40, rank1)), rng.standard_normal((40, rank2))
    expected = np.linalg.svd(A1.T @ A2, compute_uv=False).sum()
    S1, S2 = A1 @ A1.T, A2 @ A2.T
    np.testing.assert_allclose(trace_sqrt_product(S1, S2), expected, rtol=1e-7)
    np.testing.assert_allclose(trace_sqrt_product(S2, S1), expected, rtol=1e-7)


@pytest.mark.parametrize('count1, count2', [(512, 128), (128, 512), (128, 64)])
def test_fewer_images_than_dimensions(count1, count2):
    """The many eigenvalues 0 add nothing; as roots of rounding errors they would add up."""
    rng = np.random.default_rng(3)
    F1, F2 = (rng.standard_normal((count, 256)) / count**0.5 for count in (count1, count2))
    expected = np.linalg.svd(F1 @ F2.T, compute_uv=False).sum()
    assert trace_sqrt_product(F1.T @ F1, F2.T @ F2) == pytest.approx(expected, abs=1e-9)


def test_known_values():
    zero, one = np.zeros(3), np.eye(3)
    assert frechet_distance(zero, one, zero, one) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(zero, one, zero + 2, one) == pytest.approx(12)
    assert frechet_distance(zero, 4 * one, zero, 9 * one) == pytest.approx(3)
    assert frechet_distance(zero, 0 * one, zero, one) == pytest.approx(3)
    assert frechet_distance(zero, 0 * one, zero, 0 * one) == 0


def test_scales_with_the_square_of_the_features():
    rng = np.random.default_rng(2)
    S1, S2, mu = random_covariance(rng, 32, spread=3), random_covariance(rng, 32, 20, 3), rng.standard_normal(32)
    distance = frechet_distance(mu, S1, 0 * mu, S2)
    for scale in (1e-4, 1e3):
        scaled = frechet_distance(scale * mu, scale**2 * S1, 0 * mu, scale**2 * S2)
        np.testing.assert_allclose(scaled, scale**2 * distance, rtol=1e-9)


def test_refuses_what_does_not_belong_together():
    good = np.zeros(4), np.eye(4)
    with pytest.raises(ValueError, match='unlike shapes'):
        frechet_distance(*good, np.zeros(5), np.eye(5))
    with pytest.raises(ValueError, match='unlike shapes'):
        frechet_distance(*good, np.zeros(4), np.eye(5))
    with pytest.raises(ValueError, match='NaN'):
        frechet_distance(*good, np.full(4, np.nan), np.eye(4))
