"""Samplers on Gaussian mixtures with the exact denoiser of a wrong model and the exact log-ratio to the right one.

Significance of the two-sample tests: 1 % (energy distance, 499 permutations), with fixed seeds.
"""

import functools
import math

import pytest
import torch
from sampler_runs import run_ablation, run_edm
from scipy import stats

from diffusion.mixtures import GaussianMixture, MixtureNet, exact_log_ratio, same_distribution_pvalue
from sampling.guidance import DiscriminatorGuidance

RIGHT = GaussianMixture([[-1.0, -0.6], [0.9, -0.5], [0.1, 1.0]], [0.5, 0.3, 0.2], [0.25, 0.2, 0.3])
WRONG = GaussianMixture([[-0.8, -0.7], [0.9, -0.3], [-0.1, 0.9]], [0.2, 0.3, 0.5], [0.3, 0.25, 0.2])
# Wider components for the order of convergence: no sample sits on a ridge between two of them.
SMOOTH_RIGHT = GaussianMixture(RIGHT.means, RIGHT.weights, [0.5, 0.6, 0.55])
SMOOTH_WRONG = GaussianMixture(WRONG.means, WRONG.weights, [0.6, 0.5, 0.6])
N = 600
SIGNIFICANCE = 0.01


def latents(n=N, seed=1):
    return torch.randn([n, 2, 1, 1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def guidance(right=RIGHT, wrong=WRONG):
    return DiscriminatorGuidance(exact_log_ratio(right, wrong), weight_1st=1, weight_2nd=1, time_min=0)


def pvalue(images, mixture):
    return same_distribution_pvalue(images, mixture.sample(N, torch.Generator().manual_seed(2)), permutations=499)


@pytest.mark.parametrize('sampler', [run_edm, run_ablation])
def test_guided_samples_follow_the_right_mixture(sampler):
    guided = sampler(MixtureNet(WRONG), latents(), num_steps=40, guidance=guidance())
    assert pvalue(guided, RIGHT) > SIGNIFICANCE
    assert pvalue(guided, WRONG) < SIGNIFICANCE


@pytest.mark.parametrize('sampler', [run_edm, run_ablation])
def test_unguided_samples_follow_the_wrong_mixture(sampler):
    unguided = sampler(MixtureNet(WRONG), latents(), num_steps=40)
    assert pvalue(unguided, RIGHT) < SIGNIFICANCE
    assert pvalue(unguided, WRONG) > SIGNIFICANCE


def test_guided_samples_visit_components_as_often_as_they_weigh():
    """Chi-square on the component of each sample, against a large sample of the right mixture."""
    counts = torch.bincount(RIGHT.component(run_edm(
        MixtureNet(WRONG), latents(4000), num_steps=40, guidance=guidance())), minlength=3)
    exact = RIGHT.component(RIGHT.sample(400_000, torch.Generator().manual_seed(3)))
    expected = torch.bincount(exact, minlength=3).double() / 100
    assert stats.chisquare(counts, expected).pvalue > SIGNIFICANCE
    unguided = torch.bincount(RIGHT.component(run_edm(MixtureNet(WRONG), latents(4000), num_steps=40)),
                              minlength=3)
    assert stats.chisquare(unguided, expected).pvalue < 1e-6


def test_guidance_stays_exact_with_churn():
    generator = torch.Generator().manual_seed(4)
    guided = run_edm(
        MixtureNet(WRONG), latents(), num_steps=60, S_churn=15, guidance=guidance(),
        randn_like=lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator))
    assert pvalue(guided, RIGHT) > SIGNIFICANCE


def test_guided_path_is_that_of_the_right_model():
    """D + sigma^2 grad log-ratio is the right model's denoiser, so both samplers take the same steps."""
    guided = run_edm(MixtureNet(WRONG), latents(50), num_steps=12, guidance=guidance())
    direct = run_edm(MixtureNet(RIGHT), latents(50), num_steps=12)
    torch.testing.assert_close(guided, direct, rtol=0, atol=1e-9)


@functools.cache
def solved(solver, num_steps, guided):
    return run_ablation(MixtureNet(SMOOTH_WRONG), latents(60), num_steps=num_steps, solver=solver,
                            guidance=guidance(SMOOTH_RIGHT, SMOOTH_WRONG) if guided else None)


@pytest.mark.parametrize('guided', [False, True])
@pytest.mark.parametrize('solver, order', [('euler', 1), ('heun', 2)])
def test_error_falls_at_the_order_of_the_solver(solver, order, guided):
    """RMS error against 320 Heun steps over 20 and 80 steps: the slope is the order, within 0.2."""
    exact = solved('heun', 320, guided)
    errors = [(solved(solver, n, guided) - exact).square().mean().sqrt().item() for n in (20, 80)]
    assert math.log2(errors[0] / errors[1]) / 2 == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize('kwargs', [
    dict(discretization='vp', schedule='vp', scaling='vp'), dict(discretization='ve', schedule='ve'),
    dict(discretization='iddpm'), dict(discretization='edm', schedule='vp', scaling='vp')])
def test_every_schedule_draws_from_the_mixture(kwargs):
    images = run_ablation(MixtureNet(WRONG), latents(), num_steps=40, **kwargs)
    assert pvalue(images, WRONG) > SIGNIFICANCE


@pytest.mark.parametrize('kwargs', [
    dict(discretization='vp', schedule='vp', scaling='vp'), dict(discretization='ve', schedule='ve')])
def test_guidance_works_on_every_schedule(kwargs):
    guided = run_ablation(MixtureNet(WRONG), latents(50), num_steps=12, guidance=guidance(), **kwargs)
    direct = run_ablation(MixtureNet(RIGHT), latents(50), num_steps=12, **kwargs)
    torch.testing.assert_close(guided, direct, rtol=0, atol=1e-8)
