"""The reflecting cube against series with many terms, numerical differentiation and the published implementation."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion import cube

GOLDENS = Path(__file__).resolve().parents[1] / 'goldens' / 'reflected'
SIGMAS = [1e-4, 1e-3, 0.01, 0.1, 0.3, 0.499, 0.5, 0.501, 0.8, 1.0, 2.0, 10.0]


def log_kernel(x, y, sigma):
    """log K(x | y; sigma) with 101 images of each sign, float64."""
    shifts = 2.0 * torch.arange(-50, 51, dtype=torch.float64).reshape(-1, *[1] * x.ndim)
    offsets = torch.cat([x + shifts - y, -x + shifts - y])
    logs = -0.5 * (offsets / sigma) ** 2 - torch.log(torch.as_tensor(sigma * math.sqrt(2 * math.pi)))
    return logs.logsumexp(0)


def pairs(points=21):
    """All pairs of points of [0, 1], the walls included: x and y [points, points], float64."""
    line = torch.linspace(0, 1, points, dtype=torch.float64)
    return torch.meshgrid(line, line, indexing='ij')


@pytest.mark.parametrize('sigma', SIGMAS)
def test_score_is_the_derivative_of_the_log_kernel(sigma):
    x, y = pairs()
    x, step = x[1:-1], 1e-5 * min(sigma, 1)
    y = y[1:-1]
    numerical = (log_kernel(x + step, y, sigma) - log_kernel(x - step, y, sigma)) / (2 * step)
    found = cube.kernel_score(x, y, torch.full([len(x)], sigma, dtype=torch.float64))
    scale = 1 / sigma**2  # for a pair at distance 1
    torch.testing.assert_close(found, numerical, rtol=1e-6, atol=1e-9 * max(scale, 1))


@pytest.mark.parametrize('sigma', [0.4, 0.45, 0.5, 0.55])
def test_both_series_agree_around_the_seam(sigma):
    x, y = pairs(101)
    sigma = torch.tensor(sigma, dtype=torch.float64)
    by_images, by_modes = cube.score_by_images(x, y, sigma), cube.score_by_modes(x, y, sigma)
    torch.testing.assert_close(by_images, by_modes, rtol=0, atol=1e-6)
    if sigma == cube.SEAM:
        torch.testing.assert_close(by_images, by_modes, rtol=0, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('sigma', SIGMAS)
def test_score_is_finite_and_zero_at_the_walls(sigma, dtype):
    x, y = (value.to(dtype) for value in pairs())
    found = cube.kernel_score(x, y, torch.full([len(x)], sigma))
    assert found.dtype == dtype and found.isfinite().all()
    assert found[[0, -1]].abs().max() <= 100 * torch.finfo(dtype).eps / sigma**2
    assert sigma >= 1 or found.abs().max() > 0.1


def test_far_pairs_keep_their_score():
    """A pair at distance 0.8 with sigma 0.05, for which the published score is 0."""
    x, y, sigma = torch.tensor([[0.9]]), torch.tensor([[0.1]]), 0.05
    found = cube.kernel_score(x, y, torch.tensor([sigma]))
    torch.testing.assert_close(found, (y - x) / sigma**2, rtol=1e-5, atol=0)


def test_rows_have_their_own_sigma():
    x, y = pairs(len(SIGMAS))
    together = cube.kernel_score(x, y, torch.tensor(SIGMAS, dtype=torch.float64))
    apart = [cube.kernel_score(x[i:i + 1], y[i:i + 1], torch.tensor(sigma)) for i, sigma in enumerate(SIGMAS)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('sigma', [0.05, 0.3, 1.0])
def test_draws_follow_the_kernel(sigma):
    """The mean and the first two cosine moments, within 4 standard errors."""
    n, y = 100_000, 0.2
    draws = cube.perturb(torch.full([n, 1], y, dtype=torch.float64), torch.tensor(sigma),
                         torch.randn([n, 1], dtype=torch.float64))
    assert cube.inside(draws).all()
    for order in (1, 2):
        wave = (order * math.pi * draws).cos()
        expected = math.exp(-0.5 * (order * math.pi * sigma) ** 2) * math.cos(order * math.pi * y)
        assert abs(wave.mean() - expected) < 4 * wave.std() / math.sqrt(n)


def test_reflection():
    x = torch.tensor([-2.25, -1.5, -0.25, 0.0, 0.25, 1.0, 1.25, 2.0, 2.25, 7.5, -1e-30])
    torch.testing.assert_close(cube.reflect(x), torch.tensor([.25, .5, .25, 0, .25, 1, .75, 0, .25, .5, 0]))
    assert cube.inside(torch.tensor([[0.0, 1.0], [0.5, 1.0001], [-1e-9, 0.5]])).tolist() == [True, False, False]


def test_the_kernel_has_mixed_at_the_mixing_level():
    sigma = cube.mixing_sigma(3072, 1e-3)
    assert 1.4 < sigma < 1.6
    waves = 1 + 2 * sum(math.exp(-(n * math.pi * sigma) ** 2) for n in range(1, 9))  # the worst start: a corner
    assert math.sqrt(math.expm1(3072 * math.log(waves))) == pytest.approx(1e-3, rel=1e-3)


def test_uniform_latents():
    latents = torch.randn([20_000, 1])
    values = cube.uniform(latents).flatten().sort().values
    steps = torch.arange(1, len(values) + 1) / len(values)
    assert values.dtype == torch.float64 and (values - steps).abs().max() < 1.63 / math.sqrt(len(values))  # 1 % level


def test_published_goldens():
    golden = np.load(GOLDENS / 'cube.npz', allow_pickle=False)
    assert np.array_equal(cube.reflect(torch.from_numpy(golden['reflect_in'])).numpy(), golden['reflect_out'])
    assert np.array_equal(cube.inside(torch.from_numpy(golden['inside_in'])).numpy(), golden['inside_out'])
    sigma, origin = torch.from_numpy(golden['sigma']), torch.from_numpy(golden['x_orig'])
    drawn = cube.perturb(origin, sigma, torch.from_numpy(golden['noise']))
    np.testing.assert_allclose(drawn, golden['x_sampled'], atol=1e-6)
    points = torch.from_numpy(golden['x_sampled'])
    for dtype, name in [(torch.float32, 'score'), (torch.float64, 'score64')]:
        found = cube.kernel_score(points.to(dtype), origin.to(dtype), sigma)
        for row, expected in zip(found.numpy(), golden[name]):
            np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
