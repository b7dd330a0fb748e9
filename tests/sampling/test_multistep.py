"""sampling/multistep.py: weights against quadrature, orders on Gaussian data with its exact solution, invariants."""

import math

import pytest
import torch
from scipy.integrate import quad

from diffusion.mixtures import GaussianMixture, MixtureNet, exact_log_ratio
from sampling.denoiser import Denoiser
from sampling.guidance import DiscriminatorGuidance
from sampling.levels import edm_levels
from sampling.multistep import MULTISTEP, deis, exponential_weights, multistep_sampler

MEAN, SPREAD = [0.3, -0.2], 0.5
NORMAL = MixtureNet(GaussianMixture([MEAN], stds=SPREAD))
RIGHT = GaussianMixture([[-1.0, -0.6], [0.9, -0.5], [0.1, 1.0]], [0.5, 0.3, 0.2], [0.25, 0.2, 0.3])
WRONG = GaussianMixture([[-0.8, -0.7], [0.9, -0.3], [-0.1, 0.9]], [0.2, 0.3, 0.5], [0.3, 0.25, 0.2])


def latents(n=50, seed=0):
    return torch.randn([n, 2, 1, 1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('levels', [[9.0, 4.0, 3.9, 3.0, 2.95], [80.0, 30.0, 9.0, 2.0, 0.5]])
@pytest.mark.parametrize('count', [1, 2, 3, 4])
def test_weights_integrate_polynomials(levels, count):
    """In lambda with weight exp(lambda), and in sigma, for small and large steps."""
    sigma, sigma_next, nodes = levels[3], levels[4], levels[3::-1][:count]
    weights = exponential_weights(sigma, sigma_next, nodes)
    for power in range(count):
        exact, _ = quad(lambda lam, k: sigma_next * math.exp(lam) * lam ** k, -math.log(sigma),
                        -math.log(sigma_next), args=(power,))
        assert sum(w * (-math.log(node)) ** power for w, node in zip(weights, nodes)) == pytest.approx(exact, rel=1e-6)
        exact, _ = quad(lambda s, k: s ** k, sigma, sigma_next, args=(power,))
        if count == 4:
            assert sum(w * node ** power for w, node in zip(deis(levels, 3), nodes)) == pytest.approx(exact, rel=1e-9)


def error(solver, num_steps, low=0.01):
    """RMS error at noise level `low` against x = m + (x_0 - m) sqrt((s^2 + low^2) / (s^2 + 80^2))."""
    levels, steps = edm_levels(NORMAL, num_steps, sigma_min=low), []
    multistep_sampler(NORMAL, latents(), levels=levels, solver=solver, callback=steps.append)
    top, mean = levels.sigmas[0], torch.tensor(MEAN, dtype=torch.float64)[:, None, None]
    exact = mean + (latents() * top - mean) * torch.sqrt((SPREAD ** 2 + low ** 2) / (SPREAD ** 2 + top ** 2))
    return (steps[-2].x - exact).square().mean().sqrt().item()


@pytest.mark.parametrize('solver, order', [('dpmpp_3m', 3), ('unipc', 4), ('deis', 4), ('ipndm', 2)])
def test_error_falls_at_the_order_of_the_solver(solver, order):
    """The slope from 80 to 160 steps, within 0.25. iPNDM's weights are for equal steps, which EDM's are not."""
    assert math.log2(error(solver, 80) / error(solver, 160)) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize('solver', MULTISTEP)
def test_guided_path_is_that_of_the_right_model(solver):
    """D + sigma^2 grad log-ratio is the right model's denoiser; n evaluations of both networks."""
    guidance = DiscriminatorGuidance(exact_log_ratio(RIGHT, WRONG), weight_1st=1, time_min=0)
    denoise, levels = guidance(Denoiser(MixtureNet(WRONG))), edm_levels(NORMAL, 10)
    guided = multistep_sampler(denoise, latents(), levels=levels, solver=solver)
    direct = multistep_sampler(MixtureNet(RIGHT), latents(), levels=levels, solver=solver)
    torch.testing.assert_close(guided, direct, rtol=0, atol=1e-9)
    assert denoise.costs['nfe'].tolist() == denoise.costs['discriminator_calls'].tolist() == [10] * 50


@pytest.mark.parametrize('solver', MULTISTEP)
def test_rows_are_independent_and_steps_reported(solver):
    steps = []
    whole = multistep_sampler(MixtureNet(RIGHT), latents(4), solver=solver, callback=steps.append)
    assert torch.equal(multistep_sampler(MixtureNet(RIGHT), latents(4)[1:2], solver=solver), whole[1:2])
    assert [step.index for step in steps] == list(range(18)) and steps[-1].sigma_next == 0
    assert torch.equal(steps[-1].x, whole)


@pytest.mark.parametrize('solver', MULTISTEP)
def test_one_step_is_one_denoising(solver):
    images = multistep_sampler(NORMAL, latents(), levels=edm_levels(NORMAL, 1, sigma_max=10), solver=solver)
    torch.testing.assert_close(images, NORMAL.mixture.denoiser(latents() * 10, 10.0), rtol=0, atol=1e-12)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match='not a solver'):
        multistep_sampler(NORMAL, latents(1), solver='rk4')
    with pytest.raises(ValueError, match='S_churn'):
        multistep_sampler(NORMAL, latents(1), levels=edm_levels(NORMAL, S_churn=10))
    with pytest.raises(ValueError, match='boosting'):
        multistep_sampler(DiscriminatorGuidance(exact_log_ratio(RIGHT, WRONG), boosting=True)(NORMAL), latents(1))
