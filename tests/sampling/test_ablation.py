"""sampling/ablation.py and diffusion/schedules.py against EDM's ablation sampler.

Goldens: tests/goldens/sampler/ablation.npz, atol 1e-3 (a chain of network calls; VP and VE levels reach sigma 150)
and rtol 2e-6: one case has pixels of 2800, where the published networks differ as much between machines.
"""

import math

import pytest
import torch
from sampler_goldens import RecordedNoise, goldens, network
from sampler_runs import run_ablation, run_edm

from diffusion import schedules
from diffusion.mixtures import GaussianMixture, MixtureNet
from sampling.denoiser import Denoiser
from sampling.guidance import DiscriminatorGuidance

MIXTURE = GaussianMixture([[-0.5, 0.5], [0.5, 0.0]], [0.3, 0.7], 0.2)


def latents(n):
    return torch.randn([n, 2, 1, 1], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('name', [f'out{i}' for i in range(6)])
def test_golden(name):
    arrays, cases = goldens('ablation')
    noise = RecordedNoise(arrays['noise'])
    images = run_ablation(network(), torch.as_tensor(arrays['latents']), randn_like=noise.randn_like,
                              callback=noise.callback, **cases[name])
    torch.testing.assert_close(images, torch.as_tensor(arrays[name]), rtol=2e-6, atol=1e-3)


def test_default_options_are_the_edm_sampler():
    ours = run_ablation(MixtureNet(MIXTURE), latents(4), num_steps=7)
    torch.testing.assert_close(ours, run_edm(MixtureNet(MIXTURE), latents(4), num_steps=7), rtol=0, atol=1e-12)


def test_churn_agrees_with_the_edm_sampler():
    def noise():
        generator = torch.Generator().manual_seed(1)
        return lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)

    options = dict(num_steps=9, S_churn=20, S_min=0.05, S_max=50, S_noise=1.003)
    ours = run_ablation(MixtureNet(MIXTURE), latents(4), randn_like=noise(), **options)
    theirs = run_edm(MixtureNet(MIXTURE), latents(4), randn_like=noise(), **options)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize('solver, nfe', [('euler', 5), ('heun', 9)])
def test_number_of_network_calls(solver, nfe):
    net = MixtureNet(MIXTURE)
    denoise = Denoiser(net)
    run_ablation(denoise, latents(1), num_steps=5, solver=solver)
    assert net.calls == nfe and denoise.costs['nfe'].tolist() == [nfe]


@pytest.mark.parametrize('discretization', schedules.DISCRETIZATIONS)
def test_levels_run_from_top_to_bottom(discretization):
    low, high = schedules.default_range(discretization)
    sigmas = schedules.sigma_steps(discretization, 12, low, high)
    assert sigmas.dtype == torch.float64 and sigmas.shape == (12,)
    assert (sigmas.diff() < 0).all()
    if discretization != 'iddpm':  # iDDPM has its own table, of which the nearest inner entries are taken
        assert sigmas[0].item() == pytest.approx(high, rel=1e-9)
        assert sigmas[-1].item() == pytest.approx(low, rel=1e-6)
    else:
        assert low <= sigmas[-1] < 1.05 * low + 0.005 and 0.9 * high < sigmas[0] <= high
    assert schedules.sigma_steps(discretization, 1, low, high).shape == (1,)


@pytest.mark.parametrize('schedule', schedules.SCHEDULES)
@pytest.mark.parametrize('scaling', schedules.SCALINGS)
def test_schedules_are_consistent(schedule, scaling):
    """sigma_inv inverts sigma, and both derivatives agree with autograd."""
    time = schedules.time_schedule(schedule, scaling, 0.01, 100)
    sigma = torch.tensor([0.02, 0.3, 2.0, 60.0], dtype=torch.float64)
    t = time.sigma_inv(sigma).requires_grad_()
    torch.testing.assert_close(time.sigma(t).detach(), sigma, rtol=1e-9, atol=0)
    derivative, = torch.autograd.grad(time.sigma(t).sum(), t)
    torch.testing.assert_close(time.sigma_deriv(t).detach(), derivative, rtol=1e-9, atol=0)
    scale = time.scale(t)
    if scale.requires_grad and scaling == 'vp':
        derivative, = torch.autograd.grad(scale.sum(), t)
        torch.testing.assert_close(time.scale_deriv(t).detach(), derivative, rtol=1e-9, atol=1e-15)


def test_edm_levels_are_the_formula():
    t = schedules.edm_steps(18)
    for i in range(18):
        root = 80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))
        assert t[i].item() == pytest.approx(root ** 7, rel=1e-12)


def test_published_ranges():
    assert schedules.default_range('vp')[0] == pytest.approx(math.sqrt(math.expm1(0.5 * 19.9e-6 + 0.1e-3)))
    assert schedules.default_range('ve') == (0.02, 100)
    assert schedules.vp_betas(*schedules.default_range('vp')) == pytest.approx((19.9, 0.1))


@pytest.mark.parametrize('kwargs', [
    dict(solver='rk4'), dict(discretization='cosine'), dict(schedule='cosine'), dict(scaling='ve'),
    dict(num_steps=0), dict(sigma_min=3, sigma_max=1), dict(discretization='iddpm', sigma_min=5, sigma_max=5.0001)])
def test_impossible_options_are_refused(kwargs):
    with pytest.raises(ValueError):
        run_ablation(MixtureNet(MIXTURE), latents(1), **kwargs)


def test_boosting_is_refused():
    guidance = DiscriminatorGuidance(lambda x, sigma, labels: x.flatten(1).sum(1), boosting=True)
    with pytest.raises(ValueError, match='boosting'):
        run_ablation(MixtureNet(MIXTURE), latents(1), guidance=guidance)
