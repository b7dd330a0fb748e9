"""score_sde's samplers: its tables, a recorded chain, and mixtures whose scores are exact.

Significance of the two-sample tests: 1 % (energy distance, 499 permutations), with fixed seeds.
"""

import types

import numpy as np
import pytest
import torch
from goldens import load, recipe_
from score_sde_goldens import NAMES, golden

from diffusion.mixtures import GaussianMixture, MixtureNet, exact_log_ratio, same_distribution_pvalue
from diffusion.processes import (
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
    predictor_steps,
)
from guided_diffusion import create_classifier
from networks import LogRatio
from sampling import DiscriminatorGuidance, diffrs_sampler, edm_levels, edm_sampler, sample
from sampling.denoiser import Denoiser, as_denoiser
from sampling.diffrs_rules import Thresholds
from sampling.predictor_corrector import predictor_corrector, process_of
from torch_utils.rng import StackedRandomGenerator

RIGHT = GaussianMixture([[-1.0, -0.6], [0.9, -0.5], [0.1, 1.0]], [0.5, 0.3, 0.2], [0.25, 0.2, 0.3])
WRONG = GaussianMixture([[-0.8, -0.7], [0.9, -0.3], [-0.1, 0.9]], [0.2, 0.3, 0.5], [0.3, 0.25, 0.2])
PROCESSES = dict(ve=VarianceExploding(0.01, 50), vp=VariancePreserving(), subvp=SubVariancePreserving())


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('score_sde')


def mixture_net(mixture, process):
    net = MixtureNet(mixture)
    net.process = process
    net.sigma_min, net.sigma_max, net.beta_min, net.beta_max = 0.01, 50.0, 0.1, 20.0
    return net


def draw(net, n=600, num_steps=200, seed=1, guidance=lambda denoiser: denoiser, **options):
    """[n, 2, 1, 1] from one generator; only the number of levels matters."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn([n, 2, 1, 1], dtype=torch.float64, generator=generator)
    return predictor_corrector(guidance(as_denoiser(net)), latents, levels=types.SimpleNamespace(num_steps=num_steps),
                               randn_like=lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator), **options)


@pytest.mark.parametrize('name', PROCESSES)
def test_tables_of_score_sde(name):
    """Mean, deviation, drift, diffusion and both discretisations on 41 times, N = 1000, at x = 1, in float32."""
    d = {key.removeprefix(f'{name}_'): torch.as_tensor(value).double()
         for key, value in load('score_sde/sde.npz').items() if key == 't' or key.startswith(f'{name}_')}
    process, t = PROCESSES[name], d['t']
    steps = predictor_steps(process, 'reverse_diffusion', torch.cat([t, t.new_zeros(1000 - len(t))]))
    a, b, c = (values[:len(t)] for values in steps)
    late = t > 0.02  # before, float32 cancels in the reference
    for ours, theirs in [(process.mean(t), d['mean']), (process.std(t)[late], d['std'][late]),
                         (process.drift(t), d['drift']), (process.diffusion(t)[late], d['diffusion'][late]),
                         (1 - a, d['disc_f']), (c[late], d['disc_G'][late])]:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(b, c**2)


class AsPublished:
    """A VP network's D put together in float64: random weights drive states up to 256, and float32 would cancel.

    The published code divides noise by a standard deviation computed in float32, 0.6 % off at t = 1e-5. Here too.
    """

    def __init__(self, net):
        self.net = net

    def __getattr__(self, name):
        return getattr(self.net, name)

    def __call__(self, x, sigma, class_labels=None):
        _, _, c_in, time = self.net.coefficients(sigma.float().reshape(-1, 1, 1, 1))
        noise = self.net.model((c_in * x).float(), time.flatten().expand(len(x)), None)
        t = time.flatten() / 999
        published = (1 - torch.exp(-0.5 * 19.9 * t**2 - 0.1 * t)).sqrt().double()
        std = sigma / (1 + sigma**2).sqrt()
        return x - sigma * std / published * noise.double()


def test_recorded_chain_of_soft_truncation(folder):
    """Euler-Maruyama in six steps and the denoising step, atol 1e-3 of the largest value."""
    net, d = golden('soft_truncation/celeba_vp', folder)
    noise = iter(d['pc_noise'])
    images = predictor_corrector(AsPublished(net), d['pc_prior'], levels=types.SimpleNamespace(num_steps=6),
                                 time_end=1e-5, to_zero=True, randn_like=lambda x: next(noise).double())
    expected = 2 * d['pc_out'].double() - 1
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def pvalue(images, mixture):
    return same_distribution_pvalue(images, mixture.sample(600, torch.Generator().manual_seed(2)), permutations=499)


@pytest.mark.parametrize('process, options', [
    ('ve', dict(predictor='reverse_diffusion', corrector='langevin', snr=0.05)), ('ve', dict(predictor='ancestral')),
    ('vp', dict()), ('vp', dict(predictor='reverse_diffusion', corrector='langevin', snr=0.05)),
    ('vp', dict(predictor='ancestral')), ('vp', dict(time_end=1e-5, to_zero=True)),
    ('subvp', dict())])
def test_samples_follow_the_model_and_guided_ones_the_data(process, options):
    net = mixture_net(WRONG, process)
    assert pvalue(draw(net, **options), WRONG) > 0.01
    guidance = DiscriminatorGuidance(exact_log_ratio(RIGHT, WRONG), weight_1st=1, time_min=0)
    guided = draw(net, guidance=guidance, **options)
    assert pvalue(guided, RIGHT) > 0.01 > pvalue(guided, WRONG)


def test_sub_vp_has_one_discretisation():
    """score_sde discretises it as Euler and Maruyama do."""
    net = mixture_net(RIGHT, 'subvp')
    assert torch.equal(draw(net, n=3, predictor='reverse_diffusion'), draw(net, n=3))


def test_a_sample_does_not_depend_on_its_batch():
    net = mixture_net(RIGHT, 've')
    options = dict(predictor='reverse_diffusion', corrector='langevin', levels=types.SimpleNamespace(num_steps=5))

    def run(seeds):
        rnd = StackedRandomGenerator('cpu', seeds)
        return predictor_corrector(net, rnd.randn([len(seeds), 2, 1, 1]), randn_like=rnd.randn_like, **options)

    torch.testing.assert_close(run([3, 4, 5])[1:2], run([4]))


def test_costs_and_steps():
    steps = []
    net = mixture_net(RIGHT, 'vp')
    denoiser = Denoiser(net)
    draw(denoiser, n=3, num_steps=30, corrector='langevin', corrector_steps=2, to_zero=True, callback=steps.append)
    assert (denoiser.costs['nfe'] == 30 * 3 + 1).all()
    assert [step.index for step in steps] == [*range(31)] and steps[-1].sigma_next == 0
    assert all(step.sigma > step.sigma_next for step in steps[:29])


@pytest.mark.parametrize('process, options, message', [
    ('vp', dict(predictor='ddim'), "'ddim' is not a predictor; use one of euler_maruyama"),
    ('vp', dict(corrector='annealed'), "'annealed' is not a corrector; use one of none, langevin"),
    ('subvp', dict(predictor='ancestral'), 'ancestral sampling is not defined for sub-VP'),
    ('ve', dict(to_zero=True), 'defined for VP processes'),
    ('vp', dict(predictor='reverse_diffusion', num_steps=20), '20 steps are too few for this process; use more than 20')
])
def test_unknown_options(process, options, message):
    with pytest.raises(ValueError, match=message):
        draw(mixture_net(RIGHT, process), n=1, **dict(num_steps=2) | options)


def test_noise_comes_from_the_seeds():
    with pytest.raises(ValueError, match='pass randn_like'):
        predictor_corrector(mixture_net(RIGHT, 'vp'), torch.zeros(1, 2, 1, 1))


def test_processes_of_networks(folder):
    kinds = {'ve_ncsnpp': (0.02, 100), 'vp_ddpmpp': (0.1, 20), 'vp_cifar10_ddpmpp': (0.1, 20),
             'subvp_cifar10_ddpmpp_continuous': (0.1, 20)}
    for name, ends in kinds.items():
        process = process_of(golden(f'score_sde/{name}', folder)[0])
        names = ('sigma_min', 'sigma_max') if name[:2] == 've' else ('beta_min', 'beta_max')
        assert tuple(getattr(process, end) for end in names) == pytest.approx(ends)
        assert type(process) is type(PROCESSES[name.split('_')[0]])
    infinite = types.SimpleNamespace(sigma_min=0, sigma_max=float('inf'))  # EDM's
    assert (process_of(infinite).sigma_min, process_of(infinite).sigma_max) == (0.02, 100)


@pytest.fixture(scope='module')
def log_ratio():
    """Of few layers."""
    nets = create_classifier(32, 64, 0, channel_mult=[1, 1, 1]), create_classifier(8, 64, 0, in_channels=64,
                                                                                  out_channels=1)
    return LogRatio(*(recipe_(net, half=True).eval().requires_grad_(False) for net in nets))


@pytest.mark.parametrize('name', NAMES)
def test_samplers_run_on_every_backbone(folder, log_ratio, name):
    """EDM's sampler, guided, rejection, and the published ones: finite images, the same from the same seeds.

    Random weights drive states up to 400, at which float32 cancels in the score at small noise levels.
    """
    net, _ = golden(name, folder)
    levels = edm_levels(net, 2)
    accept = Thresholds(np.full(3, -1e6), np.full(3, -1e6))
    runs = [(edm_sampler, dict(levels=levels, guidance=DiscriminatorGuidance(log_ratio))),
            (diffrs_sampler, dict(levels=levels, log_ratio=log_ratio, thresholds=accept)),
            (predictor_corrector, dict(levels=levels))]
    for sampler, options in runs:
        found = [sample(sampler, net, seeds, batch=2, progress=False, **options) for seeds in ([0, 1], [1])]
        assert found[0].images.isfinite().all() and found[0].images.shape == (2, 3, 32, 32)
        scale = float(found[0].images.abs().max())
        torch.testing.assert_close(found[0].images[1:], found[1].images, rtol=0, atol=3e-3 * scale)
    assert (found[0].costs['nfe'] == 2).all()
