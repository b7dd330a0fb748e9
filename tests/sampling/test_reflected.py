"""Samplers and likelihood of reflected diffusion on densities in the cube that are known in closed form."""

import math

import numpy as np
import pytest
import torch
from cube_densities import CORNERS, CosineNet

from diffusion import cube
from diffusion.mixtures import ReflectedMixtureNet, TruncatedMixture, exact_log_ratio, same_distribution_pvalue
from sampling.guidance import DiscriminatorGuidance
from sampling.reflected import mollifier, reflected_heun, reflected_levels, reflected_ode, reflected_pc
from sampling.reflected_likelihood import bits_per_dim, log_likelihood
from sampling.samples import sample

SAMPLERS = {'pc': (reflected_pc, dict(num_steps=40)),
            'pc with correctors': (reflected_pc, dict(num_steps=25, corrector_steps=1, denoiser='mean')),
            'heun': (reflected_heun, {}),
            'ode': (reflected_ode, dict(rtol=1e-3, atol=1e-3, moll=0, side=0)),
            'ode, mollified': (reflected_ode, dict(rtol=1e-3, atol=1e-3))}


class Watched(ReflectedMixtureNet):
    """Asserts that it is evaluated only in the cube."""

    def __call__(self, x, sigma, class_labels=None):
        assert cube.inside(x).all()
        return super().__call__(x, sigma, class_labels)


def samples_of(name, net, n=200, **more):
    sampler, options = SAMPLERS[name]
    return sample(sampler, net, range(n), batch=n, progress=False, **options, **more)


@pytest.mark.parametrize('name', SAMPLERS)
def test_samples_follow_the_density(name):
    net = (Watched if 'ode' not in name else ReflectedMixtureNet)(CORNERS)
    found = samples_of(name, net)
    assert cube.inside(found.images).all() and found.images.dtype == torch.float64
    assert same_distribution_pvalue(found.images, CORNERS.sample(200)) > 0.01


@pytest.mark.parametrize('name', ['pc', 'heun', 'ode'])
def test_rows_follow_from_their_seeds_and_are_counted(name):
    net = ReflectedMixtureNet(CORNERS)
    whole, part = samples_of(name, net, 6), samples_of(name, net, 2)
    torch.testing.assert_close(whole.images[:2], part.images, rtol=1e-9, atol=1e-9)
    assert np.array_equal(whole.costs['nfe'][:2], part.costs['nfe'])
    if name != 'ode':
        assert (whole.costs['nfe'] == dict(pc=40, heun=35)[name]).all()
    else:
        assert len(set(whole.costs['nfe'])) > 1


@pytest.mark.parametrize('name', ['heun', 'ode'])
def test_deterministic_samplers_transport_the_distribution_function(name):
    """On [0, 1] the flow keeps ranks: P_end(X < x) = P_start(X < x_start)."""
    net, latents = CosineNet(), torch.randn([200, 1, 1, 1], dtype=torch.float64)
    if name == 'heun':
        images, end = reflected_heun(net, latents, levels=reflected_levels(net, 100, sigma_max=2.0)), 0.0
    else:
        images, end = reflected_ode(net, latents, moll=0, side=0, rtol=1e-6, atol=1e-6), net.sigma_min
    torch.testing.assert_close(net.cdf(images, end), net.cdf(cube.uniform(latents), 2.0), rtol=0, atol=2e-4)


def slope(errors):
    """The order at which errors fall with every doubling of the steps, from the last two."""
    return math.log2(errors[-2] / errors[-1])


def test_heun_converges_at_second_order():
    net, latents = CosineNet(), torch.randn([500, 1, 1, 1], dtype=torch.float64)

    def solution(n):
        return reflected_heun(net, latents, levels=reflected_levels(net, n, sigma_max=2.0))

    exact = solution(1024)
    errors = [(solution(n) - exact).square().mean().sqrt().item() for n in (16, 32, 64)]
    assert 1.8 < slope(errors) < 2.3 and errors[-1] < 1e-3


def test_euler_maruyama_converges_at_first_order():
    """Of the mean of cos(pi x), whose exact value is 0.45 damped; Monte Carlo errs by 0.001."""
    net = CosineNet()
    exact = 0.45 * math.exp(-0.5 * (math.pi * net.sigma_min)**2)

    def bias(n):
        images = reflected_pc(net, torch.randn([200_000, 1, 1, 1]), num_steps=n, randn_like=torch.randn_like)
        return abs((math.pi * images).cos().mean().item() - exact)

    errors = [bias(n) for n in (8, 16, 32)]
    assert 0.7 < slope(errors) < 1.2 and errors[0] > errors[1]


def test_mean_takes_the_last_noise_off():
    class Point(CosineNet):  # all data at 0.5, far from the walls
        sigma_min = 0.02

        def __call__(self, x, sigma, class_labels=None):
            sigma = torch.as_tensor(sigma).reshape(-1, 1, 1, 1)
            return x + sigma**2 * cube.kernel_score(x, torch.full_like(x, 0.5), sigma.flatten())

    latents = torch.randn([1000, 1, 1, 1])
    for denoiser, deviation in [(None, 0.02), ('mean', 0.0), (lambda x: torch.full_like(x, 0.5), 0.0)]:
        images = reflected_pc(Point(), latents, num_steps=100, denoiser=denoiser, randn_like=torch.randn_like)
        assert images.std().item() == pytest.approx(deviation, abs=2e-3)
        assert images.mean().item() == pytest.approx(0.5, abs=2e-3)


def test_noise_needs_a_source():
    with pytest.raises(ValueError, match='randn_like'):
        reflected_pc(CosineNet(), torch.zeros([1, 1, 1, 1]))


def test_mollifier():
    x = torch.tensor([-0.1, 0.0, 0.01, 0.5, 1.0])
    torch.testing.assert_close(mollifier(x, 200), torch.tensor([0, 0, math.exp((4 - 1 / 0.0099) / 200), 1, 0]))


# A wrong model with the exact log-ratio to the right one.
WRONG = TruncatedMixture(CORNERS.means, [0.2, 0.3, 0.5], [0.12, 0.1, 0.3])


@pytest.mark.parametrize('name', ['heun', 'pc'])
def test_guidance_by_the_exact_log_ratio_gives_the_right_density(name):
    net, truth = ReflectedMixtureNet(WRONG), CORNERS.sample(200)
    guidance = DiscriminatorGuidance(exact_log_ratio(CORNERS, WRONG), 1, 1, time_min=1e-5)
    assert guidance.sigma_low < net.sigma_min
    guided = samples_of(name, net, guidance=guidance)
    assert same_distribution_pvalue(samples_of(name, net).images, truth) < 0.01
    assert same_distribution_pvalue(guided.images, truth) > 0.01
    assert (guided.costs['discriminator_calls'] == guided.costs['nfe']).all()
    right = samples_of(name, ReflectedMixtureNet(CORNERS), 20)
    torch.testing.assert_close(guided.images[:20], right.images, rtol=0, atol=1e-6)


@pytest.mark.parametrize('sigma_min', [0.01, 1e-3])
def test_log_likelihood_of_a_mixture(sigma_min):
    """In two dimensions the probes (1, 1) and (1, -1) have the exact trace as their mean."""
    net, x = ReflectedMixtureNet(CORNERS), CORNERS.sample(10)[:, :, None, None]
    net.sigma_min, net.sigma_max = sigma_min, 2.0
    probes = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).reshape(2, 1, 2, 1, 1).expand(2, 10, 2, 1, 1)
    found = torch.stack([log_likelihood(net, x, probe) for probe in probes])
    torch.testing.assert_close(found.mean(0), CORNERS.log_density(x, sigma_min), rtol=0, atol=1e-2)
    assert (found[0] - found[1]).abs().max() > 0.1  # single probes are noisy


def test_log_likelihood_of_a_wave():
    net, x = CosineNet(), torch.rand([50, 1, 1, 1], dtype=torch.float64)
    found = log_likelihood(net, x, torch.ones_like(x))
    torch.testing.assert_close(found, net.log_density(x, net.sigma_min), rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match='not within'):
        log_likelihood(net, x + 1, torch.ones_like(x))


def test_the_mollified_flow_has_a_density_on_the_cube():
    """It integrates to 1, whatever the drift, since nothing crosses the walls; half of it is not the data's."""
    net, x = CosineNet(), (torch.arange(400, dtype=torch.float64).reshape(-1, 1, 1, 1) + 0.5) / 400
    density = log_likelihood(net, x, torch.ones_like(x), moll=20, rtol=1e-7, atol=1e-7).exp()
    assert density.mean().item() == pytest.approx(1, abs=5e-3)
    assert (density - net.log_density(x, net.sigma_min).exp()).abs().max() > 0.02


def test_bits_per_dim():
    assert bits_per_dim(torch.tensor(0.0), 3072) == 8
    # Pixels that are one of 16 equal neighbours: 4 bits. The density of (k + u) / 256 is 16 there.
    assert bits_per_dim(torch.tensor(3072 * math.log(16)), 3072).item() == pytest.approx(4)
