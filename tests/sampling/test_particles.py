"""sampling/particles.py against the published particle filter with its indices given, and its own rules.

Goldens: tests/goldens/particles/particles.npz; atol 2e-4 (chains of network calls), log-ratios 5e-4, weights 1e-3.
What the theory says of particles on mixtures: tests/laws/test_particle_laws.py.
"""

import json
import math

import numpy as np
import pytest
import torch
from dg_goldens import classifier, discriminator
from goldens import load
from sampler_goldens import CountedNet, network

import classifier_lib
from diffusion.mixtures import GaussianMixture, MixtureNet, exact_log_ratio
from sampling import particles
from sampling.levels import edm_levels
from sampling.particles import edm_path, multinomial, particle_sampler, systematic
from sampling.restart import parse_restarts
from sampling.samples import Samples, sample

RIGHT = GaussianMixture([[-0.5, 0.5], [0.5, 0.0]], [0.7, 0.3], 0.2)
WRONG = GaussianMixture([[-0.5, 0.5], [0.5, 0.0]], [0.3, 0.7], 0.25)
LOG_RATIO = exact_log_ratio(RIGHT, WRONG)


class Given:
    """Generators of recorded latents, labels and noise, and a resampling with recorded indices."""

    def __init__(self, arrays, name, labels):
        self.latents, self.labels = torch.as_tensor(arrays['latents']), labels
        self.noise = iter(torch.as_tensor(arrays[f'{name}_noise']))
        self.indices, self.weights = iter(torch.as_tensor(arrays[f'{name}_indices'])), []

    def draw_inputs(self, net, seeds, device, class_idx):
        return self, self.latents, self.labels

    def randn_like(self, x):
        return next(self.noise).to(x.dtype)

    def resampling(self, log_weights, uniforms):
        self.weights.append(log_weights.softmax(1))
        return next(self.indices)


@pytest.mark.parametrize('name', ['restart_uncond', 'edm_uncond', pytest.param('restart_cond', marks=pytest.mark.slow)])
def test_golden(name, monkeypatch):
    arrays = load('particles/particles.npz')
    case = json.loads(str(arrays['cases']))[name]
    net = CountedNet(network(case['network']))
    given = Given(arrays, name, torch.as_tensor(arrays['class_labels'])[[0] * 4] if net.label_dim else None)
    monkeypatch.setattr(particles, 'draw_inputs', given.draw_inputs)
    log_ratio = classifier_lib.LogRatio(classifier(), discriminator(case['discriminator']),
                                        conditional=case['discriminator'] == 'cond')
    churn = {key: case[key] for key in ('S_churn', 'S_min', 'S_max', 'S_noise') if key in case}
    if case['sampler'] == 'restart':
        restarts = parse_restarts(case['restart_info'], gamma=case['restart_gamma'])
        own = dict(restarts=restarts, levels=edm_levels(net, restarts.num_steps, **churn))
    else:
        own = dict(resample_at=case['resample_inds'], levels=edm_levels(net, case['num_steps'], **churn))
    found, = particle_sampler(net, range(4), log_ratio=log_ratio, num_particles=case['num_particles'],
                              resampling=given.resampling, batch=4, **own)
    torch.testing.assert_close(torch.stack(given.weights), torch.as_tensor(arrays[f'{name}_weights']).double(), rtol=0,
                               atol=1e-3)
    torch.testing.assert_close(found.images, torch.as_tensor(arrays[f'{name}_x']), rtol=0, atol=2e-4)
    np.testing.assert_allclose(found.costs['log_ratio'], np.log(arrays[f'{name}_ratio']), rtol=0, atol=5e-4)
    assert found.costs['nfe'].tolist() == [case['nfe']] * 4
    assert found.costs['discriminator_calls'].tolist() == [len(given.weights) + 1] * 4


def test_golden_weights():
    """ratio / previous ratio, normalised in each group."""
    arrays = load('particles/particles.npz')
    logs = [torch.as_tensor(arrays[f'resample_{key}']).double().log() for key in ('ratio', 'previous')]
    torch.testing.assert_close((logs[0] - logs[1]).softmax(1), torch.as_tensor(arrays['resample_weights']).double(),
                               rtol=0, atol=1e-6)


@pytest.mark.parametrize('resampling', [multinomial, systematic])
def test_copies_are_expected_in_proportion_to_weights(resampling):
    """Mean copies of 40,000 draws within 4 standard errors of P w (at most those of multinomial draws)."""
    weights = torch.tensor([0.05, 0.45, 0.3, 0.2], dtype=torch.float64)
    uniforms = torch.rand([40_000, 4], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    index = resampling(weights.log().expand(40_000, 4) + 7, uniforms)
    copies = torch.nn.functional.one_hot(index, 4).sum(1).double()
    assert (copies.sum(1) == 4).all()
    error = (4 * weights * (1 - weights) / 40_000).sqrt()
    assert ((copies.mean(0) - 4 * weights).abs() < 4 * error).all()
    if resampling is systematic:
        assert ((copies >= (4 * weights).floor()) & (copies <= (4 * weights).ceil())).all()


def test_equal_weights_change_nothing_if_systematic():
    assert torch.equal(systematic(torch.zeros([3, 5]), torch.rand([3, 5])), torch.arange(5).expand(3, 5))


def test_a_weight_of_zero_is_never_drawn():
    log_weights = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0]], dtype=torch.float64)
    for uniform in (0.0, 0.3, 1 - 1e-16):
        for resampling in (multinomial, systematic):
            index = resampling(log_weights, torch.full([1, 4], uniform, dtype=torch.float64))
            assert set(index.flatten().tolist()) <= {1, 3}


def draw(seeds=range(8), num_particles=4, **kwargs):
    options = dict(log_ratio=LOG_RATIO, resample_at=[6, 9, 12]) | kwargs
    return sample(particle_sampler, MixtureNet(WRONG), seeds, num_particles=num_particles, progress=False, **options)


@pytest.mark.parametrize('own', [{}, dict(resampling='multinomial'), dict(threshold=0.7), dict(
    resample_at=(), restarts=parse_restarts('18; [3,2,0.06,0.30],[4,1,0.5,2]'))])
def test_a_group_depends_on_its_own_seeds_only(own):
    whole = draw(**own)
    parts = [draw(range(4), **own), draw(range(4, 8), **own)]
    assert_equal(whole, parts[0].followed_by(parts[1]))
    assert_equal(whole, draw(batch=4, **own))


def assert_equal(a: Samples, b: Samples):
    assert torch.equal(a.images, b.images) and a.costs.keys() == b.costs.keys()
    for name in a.costs:
        np.testing.assert_array_equal(a.costs[name], b.costs[name])


def test_selection_is_the_best_of_each_group():
    """Sample k of a selecting run is the best of the seeds 4 k to 4 k + 3 of a run that keeps all."""
    kept, chosen = draw(range(8, 24), batch=16), draw(range(2, 6), select=True, batch=8)
    rows = kept.costs['log_ratio'].reshape(4, 4).argmax(1) + [0, 4, 8, 12]
    assert torch.equal(chosen.images, kept.images[torch.from_numpy(rows)])
    assert chosen.costs['nfe'].tolist() == [4 * 35] * 4 and chosen.costs['discriminator_calls'].tolist() == [16] * 4
    np.testing.assert_array_equal(chosen.costs['log_ratio'], kept.costs['log_ratio'][rows])


def test_saved_log_ratios_are_those_of_the_images():
    found = draw()
    expected = LOG_RATIO(found.images, torch.tensor(1e-4, dtype=torch.float64))
    np.testing.assert_allclose(found.costs['log_ratio'], expected, rtol=0, atol=1e-12)


def test_nothing_is_resampled_below_the_threshold():
    """Each particle then keeps its place, and its weight is the whole ratio."""
    for own in (dict(threshold=0.0), dict(resample_at=())):
        found = draw(**own)
        assert found.costs['ancestor'].tolist() == [0, 1, 2, 3] * 2
        np.testing.assert_allclose(found.costs['log_weight'], found.costs['log_ratio'], rtol=0, atol=1e-12)


def test_a_group_shares_the_label_of_its_first_seed():
    class Labelled(MixtureNet):
        label_dim = 10

    found = sample(particle_sampler, Labelled(WRONG), range(12), num_particles=4, log_ratio=LOG_RATIO, progress=False)
    plain = sample(particle_sampler, Labelled(WRONG), range(12), num_particles=1, log_ratio=LOG_RATIO, progress=False)
    assert torch.equal(found.labels, plain.labels[::4].repeat_interleave(4, 0))


def test_progress_adds_up():
    told = []
    list(particle_sampler(MixtureNet(WRONG), range(8), log_ratio=LOG_RATIO, batch=4, progress=told.append))
    assert sum(told) == pytest.approx(8)


@pytest.mark.parametrize('own, words', [
    (dict(seeds=range(6)), 'left over'), (dict(batch=6), 'whole groups'),
    (dict(resample_at=[18]), '0 to 17'), (dict(resample_at=[-1]), '0 to 17'),
    (dict(levels=edm_levels(MixtureNet(WRONG), S_noise=0)), 'copies'),
    (dict(levels=edm_levels(MixtureNet(WRONG), S_max=0.5)), 'S_min to S_max'),
    (dict(restarts=parse_restarts('18; [3,2,0.06,0.30]')), 'not at both')])
def test_impossible_options_are_refused(own, words):
    own = dict(batch=8, device='cpu', num_particles=4, log_ratio=LOG_RATIO, resample_at=[6]) | own
    with pytest.raises(ValueError, match=words):
        list(particle_sampler(MixtureNet(WRONG), own.pop('seeds', range(8)), **own))


def test_resampled_steps_renew_as_much_noise_as_churn_may():
    levels = edm_levels(MixtureNet(WRONG), 12, S_churn=1.2, S_min=0.05, S_max=50)
    path = edm_path(MixtureNet(WRONG), levels, [3, 7])
    raised = torch.cat([stretch.levels.raised for stretch in path])
    factor = raised / levels.sigmas[:-1]
    inside = (levels.sigmas[:-1] >= 0.05) & (levels.sigmas[:-1] <= 50)
    expected = torch.where(inside, 1.1, 1.0)
    expected[[3, 7]] = math.sqrt(2)
    torch.testing.assert_close(factor, expected.double(), rtol=1e-6, atol=0)
    assert [stretch.first_step for stretch in path] == [0, 3, 7]
