"""Particles on mixtures, with the exact ratio of right and wrong model: what resampling may and may not change."""

import pytest
import torch

from diffusion.mixtures import GaussianMixture, MixtureNet, exact_log_ratio
from sampling.levels import edm_levels
from sampling.particles import particle_sampler
from sampling.restart import parse_restarts
from sampling.samples import sample

RIGHT = GaussianMixture([[-1.0, -0.6], [0.9, -0.5], [0.1, 1.0]], [0.5, 0.3, 0.2], [0.25, 0.2, 0.3])
WRONG = GaussianMixture([[-0.8, -0.7], [0.9, -0.3], [-0.1, 0.9]], [0.2, 0.3, 0.5], [0.3, 0.25, 0.3])
RESTARTS = parse_restarts('18; [4,1,1.09,1.92],[4,2,0.30,0.59]')
ON_STEPS = dict(resample_at=[8, 11, 13])


def draw(groups, num_particles, **options):
    return sample(particle_sampler, MixtureNet(WRONG), range(groups * num_particles), batch=10**5, progress=False,
                  log_ratio=exact_log_ratio(RIGHT, WRONG), num_particles=num_particles, **options)


def frequencies(images):
    return torch.bincount(RIGHT.component(images), minlength=3) / len(images)


EXACT = frequencies(RIGHT.sample(400_000, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize('own', [ON_STEPS, ON_STEPS | dict(resampling='multinomial'), ON_STEPS | dict(threshold=0.6),
                                 dict(restarts=RESTARTS)], ids=['steps', 'multinomial', 'threshold', 'restarts'])
def test_weighted_particles_estimate_without_bias(own):
    """Means over 500 groups of 4, within 4 standard errors: the normaliser is 1, components are as frequent as exact.

    A single group is far off; only the expectation is exact, and the levels' error (40 steps) is below the noise.
    """
    levels = {} if 'restarts' in own else dict(levels=edm_levels(MixtureNet(WRONG), 40), resample_at=[18, 25, 30])
    found = draw(500, 4, **own | levels)
    weight = torch.from_numpy(found.costs['log_weight']).exp()
    component = torch.nn.functional.one_hot(RIGHT.component(found.images), 3)
    for values, expected in [(weight, 1.0), *zip((weight[:, None] * component).T, EXACT.tolist(), strict=True)]:
        groups = values.reshape(500, 4).mean(1)
        assert abs(groups.mean() - expected) < 4 * groups.std() / 500 ** 0.5


def test_the_error_falls_with_the_number_of_particles():
    """Total variation of the components' frequencies, 2,400 particles: 1 is the wrong model, 24 are close."""
    error = {count: float((frequencies(draw(2400 // count, count, **ON_STEPS).images) - EXACT).abs().sum() / 2)
             for count in (1, 4, 24)}
    assert error[1] > 0.25 and error[4] < error[1] / 2 and error[24] < error[4] / 2


def test_systematic_resampling_keeps_more_lineages():
    """Why it is the default: distinct ancestors in groups of 8 after three resamplings, mean of 300 groups."""
    def lineages(resampling):
        ancestors = torch.from_numpy(draw(300, 8, resampling=resampling, **ON_STEPS).costs['ancestor']).reshape(300, 8)
        return torch.nn.functional.one_hot(ancestors, 8).any(1).sum(1).double()

    difference = lineages('systematic') - lineages('multinomial')
    assert difference.mean() > 5 * difference.std() / 300 ** 0.5
