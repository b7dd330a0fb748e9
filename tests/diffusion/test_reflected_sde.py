"""The reflected SDE against the published one, and mixtures in the cube against quadrature."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion import cube
from diffusion.mixtures import TruncatedMixture, same_distribution_pvalue
from diffusion.reflected_sde import ReflectedVE

GOLDENS = Path(__file__).resolve().parents[1] / 'goldens' / 'reflected'
MIXTURE = TruncatedMixture([[0.2, 0.3], [0.9, 0.6], [1.2, -0.1]], [0.5, 0.3, 0.2], [0.1, 0.2, 0.4])


def test_published_sde():
    golden = {name: torch.from_numpy(value) for name, value in
              np.load(GOLDENS / 'rvesde.npz', allow_pickle=False).items() if value.ndim}
    sde, t = ReflectedVE(0.01, 5), golden['t']
    for name, found in dict(std=sde.sigma(t), diffusion=sde.diffusion(t), reverse_diffusion=sde.diffusion(t)).items():
        torch.testing.assert_close(found, golden[name], rtol=1e-5, atol=0)


def test_levels_and_range():
    levels = ReflectedVE(0.01, 5).levels(4)
    torch.testing.assert_close(levels[[0, -1]], torch.tensor([5, 0.01], dtype=torch.float64))
    torch.testing.assert_close(levels[1:] / levels[:-1], torch.full([4], 500**-0.25, dtype=torch.float64))
    for sigmas in [(0, 5), (5, 0.01), (1, 1)]:
        with pytest.raises(ValueError, match='sigma_min < sigma_max'):
            ReflectedVE(*sigmas)


def midpoints(count):
    """The centres of count^2 equal cells of the square [count^2, 2], float64."""
    line = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.cartesian_prod(line, line)


@pytest.mark.parametrize('sigma', [0.0, 0.05, 0.4, 3.0])
def test_density_is_the_heat_flow_of_the_truncated_mixture(sigma):
    """Against quadrature: integral over y of p_0(y) K(x | y; sigma), K by modes; and the total mass."""
    cells = midpoints(90)
    density = MIXTURE.log_density(cells, sigma).exp()
    assert density.mean() == pytest.approx(1, abs=1e-3)
    if sigma:
        x = torch.tensor([[0.0, 0.0], [0.21, 0.33], [0.97, 0.5], [1.0, 0.0]], dtype=torch.float64)
        n = torch.pi * torch.arange(1, 100)[:, None, None, None]
        waves = (-0.5 * (n * sigma)**2).exp() * (n * x[:, None]).cos() * (n * cells).cos()
        kernel = (1 + 2 * waves.sum(0)).prod(2)  # [4, 8100]
        expected = (kernel * MIXTURE.log_density(cells).exp()).mean(1)
        torch.testing.assert_close(MIXTURE.log_density(x, sigma).exp(), expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize('sigma', [1e-3, 0.05, 1.0])
def test_score_is_the_gradient_and_vanishes_at_the_walls(sigma):
    x = torch.rand([50, 2, 1, 1], dtype=torch.float64)
    score = (MIXTURE.denoiser(x, sigma) - x) / sigma**2
    step = torch.zeros_like(x)
    step[:, 0] = 1e-6
    numerical = (MIXTURE.log_density(x + step, sigma) - MIXTURE.log_density(x - step, sigma)) / 2e-6
    torch.testing.assert_close(score[:, 0].flatten(), numerical, rtol=1e-5, atol=1e-6)
    assert not score.requires_grad or torch.is_grad_enabled()
    x[:, 1] = (x[:, 1] > 0.5).double()
    assert ((MIXTURE.denoiser(x, sigma) - x)[:, 1] / sigma**2).abs().max() < 1e-6


def test_draws_follow_the_density():
    """Diffused draws of a sharper mixture follow the diffused density: mean of the log-density, against quadrature."""
    generator = torch.Generator().manual_seed(1)
    draws = MIXTURE.sample(20_000, generator)
    noise = torch.randn([20_000, 2], dtype=torch.float64, generator=generator)
    diffused, cells = cube.perturb(draws, torch.tensor(0.1), noise), midpoints(100)
    assert cube.inside(draws).all()
    for points, sigma in [(draws, 0.0), (diffused, 0.1)]:
        logs, values = MIXTURE.log_density(points, sigma), MIXTURE.log_density(cells, sigma)
        expected = (values.exp() * values).mean()
        assert abs(logs.mean() - expected) < 4 * logs.std() / len(logs)**0.5 + 1e-3
    assert same_distribution_pvalue(draws[:500], draws[500:1000]) > 0.01
