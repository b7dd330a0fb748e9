"""Denoising MCMC on Gaussian mixtures, where the score, p(sigma | x) and the log-ratio are exact.

Significance of the two-sample tests: 1 % (energy distance), with fixed seeds.
"""

import functools
import math

import pytest
import torch
from scipy import stats

from diffusion.mixtures import GaussianMixture, MixtureNet, exact_log_ratio, same_distribution_pvalue
from sampling import Autoguidance, dmcmc
from sampling.denoiser import Denoiser
from sampling.guidance import DiscriminatorGuidance
from sampling.integrators import INTEGRATORS, kar1, kar2
from sampling.levels import Churn

RIGHT = GaussianMixture([[-1.0, -0.6], [0.9, -0.5], [0.1, 1.0]], [0.5, 0.3, 0.2], 0.4)
WRONG = GaussianMixture([[-0.8, -0.7], [0.9, -0.3], [-0.1, 0.9]], [0.1, 0.2, 0.7], 0.4)
SIGMAS = torch.logspace(0.3, -0.3, 24, dtype=torch.float64)  # 2 to 0.5, the step size is small beside 0.5^2
ETA, STEPS, N = 0.1, 150, 400


class Rng:
    """One generator for all rows."""

    def __init__(self, seed=0):
        self.generator = torch.Generator().manual_seed(seed)

    def randn_like(self, x):
        return torch.randn(x.shape, dtype=x.dtype, generator=self.generator)

    def rand(self, shape, dtype):
        return torch.rand(shape, dtype=dtype, generator=self.generator)


@functools.cache
def chains(choice, guided=False):
    """The state of N chains of the wrong or, unguided, the right mixture, STEPS after a start far from the target."""
    model, rng = (WRONG if guided else RIGHT), Rng()
    level = dmcmc.NoiseLevel(lambda x: RIGHT.level_logits(x, SIGMAS), SIGMAS, choice)
    denoise = Denoiser(MixtureNet(model), N)
    denoise = guidance()(denoise) if guided else denoise
    state = dmcmc.init(torch.zeros([N, 2, 1, 1], dtype=torch.float64), torch.full([N], 2.0, dtype=torch.float64))
    for _ in range(STEPS):
        state = dmcmc.step(rng, state, denoise, level, ETA)
    return state


def test_a_weaker_network_guides_as_the_ratio_of_both_models():
    """Autoguidance by COARSE is guidance by log RIGHT / COARSE: the same chains, up to rounding."""
    coarse, found = GaussianMixture(RIGHT.means, [0.5, 0.3, 0.2], 0.6), []
    level = dmcmc.NoiseLevel(lambda x: RIGHT.level_logits(x, SIGMAS), SIGMAS)
    for own in (Autoguidance(MixtureNet(coarse), 2.0),
                DiscriminatorGuidance(exact_log_ratio(RIGHT, coarse), 1, 1, time_min=0)):
        state, rng = dmcmc.init(torch.zeros([20, 2, 1, 1], dtype=torch.float64), torch.full([20], 2.0).double()), Rng()
        for _ in range(20):
            state = dmcmc.step(rng, state, own(Denoiser(MixtureNet(RIGHT), 20)), level, ETA)
        found.append(kar1(own(Denoiser(MixtureNet(RIGHT), 20)), state.x, state.sigma, sigma_min=0.01, num_steps=8))
    torch.testing.assert_close(*found, rtol=0, atol=1e-8)


def guidance():
    return DiscriminatorGuidance(exact_log_ratio(RIGHT, WRONG), 1, 1, time_min=0)


def joint(state):
    return torch.cat([state.x.flatten(1), state.sigma.log()[:, None]], dim=1)


def exact_joint(mixture, n=N, seed=5):
    generator = torch.Generator().manual_seed(seed)
    sigma = SIGMAS[torch.randint(len(SIGMAS), [n], generator=generator)]
    noise = torch.randn([n, 2], dtype=torch.float64, generator=generator)
    return torch.cat([mixture.sample(n, generator) + sigma[:, None] * noise, sigma.log()[:, None]], dim=1)


def level_counts(state):
    return torch.bincount((state.sigma[:, None] < SIGMAS * (1 - 1e-9)).sum(1), minlength=len(SIGMAS))


def test_gibbs_steps_have_the_right_marginal():
    state = chains('sample')
    assert same_distribution_pvalue(joint(state), exact_joint(RIGHT)) > 0.01
    assert same_distribution_pvalue(joint(state), exact_joint(WRONG)) < 0.01
    assert stats.chisquare(level_counts(state)).pvalue > 0.01


def test_arg_max_has_not():
    """In two dimensions a level is barely visible in x: most of the mass is at both ends (docs/equations.md)."""
    state = chains('argmax')
    assert same_distribution_pvalue(joint(state), exact_joint(RIGHT)) < 0.01
    ends = level_counts(state)[[0, -1]].sum() / N
    assert 0.4 < ends < 0.7  # right: 2/24


def denoised(state, model=RIGHT, integrator=kar1, guide=None, **own):
    denoise = Denoiser(MixtureNet(model), N)
    denoise = denoise if guide is None else guide(denoise)
    return dmcmc.denoised(state, denoise, functools.partial(integrator, sigma_min=0.01, **own), 0.01,
                          randn_like=Rng(1).randn_like)


@pytest.mark.parametrize('integrator', [kar1, kar2])
def test_denoised_states_follow_the_data(integrator):
    images = denoised(dmcmc.restart(chains('sample')), integrator=integrator, num_steps=15)
    assert same_distribution_pvalue(images, RIGHT.sample(N, torch.Generator().manual_seed(2))) > 0.01


def test_guidance_moves_a_wrong_model_to_the_right_one():
    """Langevin steps, integrator and Tweedie's formula of the wrong model, all guided, give those of the right one."""
    state, direct = chains('sample', guided=True), chains('sample')
    torch.testing.assert_close(joint(state), joint(direct), rtol=0, atol=1e-6)
    state = dmcmc.restart(state)
    images, truth = denoised(state, WRONG, guide=guidance()), RIGHT.sample(N, torch.Generator().manual_seed(2))
    torch.testing.assert_close(images, denoised(dmcmc.restart(direct)), rtol=0, atol=1e-6)
    assert same_distribution_pvalue(images, truth) > 0.01
    unguided = dmcmc.restart(state._replace(x=exact_joint(WRONG)[:, :2, None, None]))
    assert same_distribution_pvalue(denoised(unguided, WRONG), truth) < 0.01


@pytest.mark.parametrize('name', [name for name in INTEGRATORS if name != 'rk45'])
def test_guidance_composes_with_every_integrator(name):
    """The wrong model guided takes the steps of the right one, each row from its own level."""
    x, sigma = start(40)
    common = dict(sigma_min=0.05, num_steps=6)
    guided = INTEGRATORS[name](guidance()(Denoiser(MixtureNet(WRONG))), x, sigma, randn_like=Rng().randn_like, **common)
    direct = INTEGRATORS[name](MixtureNet(RIGHT), x, sigma, randn_like=Rng().randn_like, **common)
    torch.testing.assert_close(guided, direct, rtol=0, atol=1e-9)


def start(n):
    """States x [n, 2, 1, 1] with noise levels between 0.1 and 10, one for each."""
    sigma = torch.logspace(-1, 1, n, dtype=torch.float64)
    rng = torch.Generator().manual_seed(3)
    noise = torch.randn([n, 2], dtype=torch.float64, generator=rng)
    return (RIGHT.sample(n, rng) + sigma[:, None] * noise)[:, :, None, None], sigma


@pytest.mark.parametrize('name, order, steps', [('kar1', 2, 40), ('probability_flow', 1, 200)])
def test_errors_on_the_flow_fall_at_their_order(name, order, steps):
    """By the differences between three solutions (Richardson), in root mean square over rows."""
    x, sigma = start(40)
    solutions = [INTEGRATORS[name](MixtureNet(RIGHT), x, sigma, sigma_min=0.05, num_steps=n)
                 for n in (steps, 2 * steps, 4 * steps)]
    coarse, fine = (torch.dist(one, two).item() for one, two in zip(solutions, solutions[1:]))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


def test_rk45_is_as_exact_as_asked():
    x, sigma = start(40)
    exact = INTEGRATORS['rk45'](MixtureNet(RIGHT), x, sigma, sigma_min=0.05, rtol=1e-8, atol=1e-8)
    errors = []
    for tolerance in (1e-3, 1e-5):
        denoise = Denoiser(MixtureNet(RIGHT))
        images = INTEGRATORS['rk45'](denoise, x, sigma, sigma_min=0.05, rtol=tolerance, atol=tolerance)
        errors.append((images - exact).abs().max().item())
        assert len(set(denoise.costs['nfe'])) > 1  # each row has its own steps
        alone = INTEGRATORS['rk45'](MixtureNet(RIGHT), x[7:8], sigma[7:8], sigma_min=0.05, rtol=tolerance,
                                    atol=tolerance)
        torch.testing.assert_close(alone, images[7:8], rtol=1e-9, atol=1e-9)
    assert errors[0] < 0.05 and errors[1] < 5e-4


@pytest.mark.parametrize('name, order, own', [('reverse_diffusion', 1, {}), ('euler_maruyama', 1, {}),
                                              ('kar2', 2, dict(churn=Churn(S_churn=10, S_min=0.1)))])
def test_biases_of_stochastic_integrators_fall_at_their_order(name, order, own):
    """The variance of samples of a Gaussian, exactly: each draw has its own direction, and steps are linear."""
    s, sigma_min, sigma = 0.5, 0.05, torch.tensor([3.0], dtype=torch.float64)
    left = s**2 + sigma_min**2  # the end of Euler-Maruyama; the others take the mean given x at sigma_min
    exact = left if name == 'euler_maruyama' else s**4 / left

    def error(n):
        directions = iter(torch.eye(n + 1, dtype=torch.float64)[:, None, :, None, None])
        net = MixtureNet(GaussianMixture(torch.zeros([1, n + 1]), stds=s))
        images = INTEGRATORS[name](net, next(directions) * math.sqrt(s**2 + 9), sigma, sigma_min=sigma_min,
                                   num_steps=n, randn_like=lambda x: next(directions), **own)
        return abs(images.square().sum().item() - exact)

    assert math.log2(error(100) / error(200)) == pytest.approx(order, abs=0.15)
