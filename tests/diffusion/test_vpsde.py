"""The variance-preserving SDE: the reference's numbers and the identities behind them."""

import math

import numpy as np
import pytest
import torch
from goldens import load

from diffusion.vpsde import VPSDE

SDE = VPSDE()


@pytest.fixture(scope='module')
def golden():
    return {key: torch.as_tensor(value) for key, value in load('dg/vpsde.npz').items()}


def close(actual, expected, rtol=1e-6, atol=0.0):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def test_golden_in_float64(golden):
    d = golden
    tau = SDE.tau(d['sigma'])
    close(tau, d['tau'])
    mean, std = SDE.marginal(tau)
    close(mean, d['mean_at_tau'])
    close(std, d['std_at_tau'])
    mean, std = SDE.marginal(d['t'])
    close(mean, d['mean'])
    close(std, d['std'])
    close(SDE.t_cos(d['t']), d['t_cos'])
    close(SDE.integral_beta(d['t']), d['integral_beta'])


def test_golden_in_float32(golden):
    """The reference cancels at small sigma in float32; ours keeps the dtype and follows the float64 values."""
    d = golden
    tau = SDE.tau(d['sigma32'])
    assert tau.dtype == torch.float32
    close(tau.double(), SDE.tau(d['sigma32'].double()), rtol=1e-5)
    usual = d['sigma32'] > 0.02
    close(tau[usual], d['tau32'][usual], rtol=1e-4, atol=1e-6)


def test_golden_importance_sampling(golden):
    """The reference's F(t_min) cancels in float32, which moves its smallest times by up to 7 %: 5e-4 absolute."""
    d = golden
    t = SDE.sample_time(d['u'])
    assert t.dtype == torch.float64
    close(t.float(), d['t_importance'], rtol=0, atol=1e-3)
    usual = d['t_importance'] > 0.02
    close(t.float()[usual], d['t_importance'][usual], rtol=0, atol=5e-4)
    close(SDE.sample_time(d['u'], 1e-3).float(), d['t_importance_tmin1e3'], rtol=1e-3)
    low, high = SDE.importance_range()
    close(high - low, torch.tensor(23.864, dtype=torch.float64), rtol=1e-4)  # 23.852 in the reference's float32
    low, high = SDE.importance_range(1e-3)
    close((high - low).float(), d['Z_tmin1e3'], rtol=1e-4)


def test_variance_is_preserved():
    t = torch.linspace(1e-6, 1, 1001, dtype=torch.float64)
    mean, std = SDE.marginal(t)
    close(mean**2 + std**2, torch.ones_like(t), rtol=1e-14)
    close(std[0], (SDE.beta_0 * t[0]).sqrt(), rtol=1e-4)  # no cancellation where 1 - mean^2 would have some


def test_tau_inverts_the_noise_level():
    sigma = torch.logspace(-6, 4, 201, dtype=torch.float64)
    mean, std = SDE.marginal(SDE.tau(sigma))
    close(std / mean, sigma, rtol=1e-9)
    close(mean, 1 / (1 + sigma**2).sqrt(), rtol=1e-9)
    assert SDE.tau(torch.zeros(1, dtype=torch.float64)) == 0
    assert (SDE.tau(sigma).diff() > 0).all()


def test_cosine_time_has_the_same_signal():
    """mean(t) = cos((t_cos + s)/(1 + s) pi/2) / cos(s/(1 + s) pi/2), Nichol and Dhariwal's schedule; 0 goes to 0."""
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    t_cos, s = SDE.t_cos(t), SDE.s
    first = math.cos(s / (1 + s) * math.pi / 2)
    close(torch.cos((t_cos + s) / (1 + s) * math.pi / 2) / first, SDE.marginal(t)[0], rtol=1e-9)
    assert t_cos[0].abs() < 1e-9 and (t_cos.diff() > 0).all() and t_cos[-1] < 1


def test_integral_is_the_integral_of_beta():
    t = torch.linspace(0, 1, 11, dtype=torch.float64, requires_grad=True)
    beta, = torch.autograd.grad(SDE.integral_beta(t).sum(), t)
    close(beta, SDE.beta_0 + t.detach() * (SDE.beta_1 - SDE.beta_0), rtol=1e-12)


@pytest.mark.parametrize('t_min', [1e-5, 1e-2])
def test_density_of_sampled_times(t_min):
    """On evenly spaced uniforms the map's slope is the inverse density, and shares of samples are its integral."""
    u = torch.linspace(0, 1, 200001, dtype=torch.float64)
    t = SDE.sample_time(u, t_min)
    close(t[[0, -1]], torch.tensor([t_min, 1.0], dtype=torch.float64), rtol=1e-8)
    assert (t.diff() > 0).all()
    beta = SDE.beta_0 + t * (SDE.beta_1 - SDE.beta_0)
    density = beta / SDE.marginal(t)[1]**2  # beta / (1 - exp(-B))
    normaliser = torch.trapezoid(density, t)
    low, high = SDE.importance_range(t_min)
    close(normaliser, high - low, rtol=1e-6)
    middle = slice(1, -1)
    slope = (t[2:] - t[:-2]) / (u[2:] - u[:-2])
    close(slope * density[middle] / normaliser, torch.ones(len(slope), dtype=torch.float64), rtol=1e-4)


def test_random_times_follow_the_density():
    """Kolmogorov-Smirnov against the closed-form distribution function, at the level of 0.1 %."""
    n = 20000
    u = torch.rand(n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    t = SDE.sample_time(u).sort().values
    low, high = SDE.importance_range()
    share = (torch.expm1(SDE.integral_beta(t)).log() - low) / (high - low)
    distance = (share - (torch.arange(n, dtype=torch.float64) + 0.5) / n).abs().max()
    assert distance < 1.95 / math.sqrt(n)


def test_numbers_between_zero_and_one_never_leave_the_range():
    u = torch.tensor([0.0, np.nextafter(0, 1), 0.5, np.nextafter(1, 0), 1.0])
    t = SDE.sample_time(u)
    assert t.isfinite().all() and (t >= 1e-5 * (1 - 1e-9)).all() and (t <= 1 + 1e-12).all()


def test_perturb_is_the_vp_kernel():
    x, t, noise = torch.rand(5, 3, 4, 4) * 2 - 1, torch.rand(5), torch.randn(5, 3, 4, 4)
    mean, std = SDE.marginal(t.double())
    expected = mean[:, None, None, None] * x.double() + std[:, None, None, None] * noise.double()
    torch.testing.assert_close(SDE.perturb(x, t, noise).double(), expected, rtol=0, atol=1e-6)
