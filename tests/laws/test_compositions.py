"""Samplers and guidances together, on mixtures with exact score and log-ratio: which results stay exact.

Significance of the two-sample tests: 1 % (energy distance, 499 permutations), with fixed seeds.
"""

import pytest
import torch

from diffusion.mixtures import GaussianMixture, MixtureNet, exact_log_ratio, same_distribution_pvalue
from sampling.autoguidance import Autoguidance
from sampling.denoiser import nested
from sampling.diffrs import calibrate, diffrs_sampler
from sampling.guidance import DiscriminatorGuidance
from sampling.interval import GuidanceInterval
from sampling.levels import edm_levels
from sampling.multistep import multistep_sampler
from sampling.particles import particle_sampler
from sampling.restart import parse_restarts, restart_sampler
from sampling.samples import sample

RIGHT = GaussianMixture([[-1.0, -0.6], [0.9, -0.5], [0.1, 1.0]], [0.5, 0.3, 0.2], [0.25, 0.2, 0.3])
WRONG = GaussianMixture([[-0.8, -0.7], [0.9, -0.3], [-0.1, 0.9]], [0.2, 0.3, 0.5], [0.3, 0.25, 0.2])
COARSE = GaussianMixture(WRONG.means, [0.3, 0.3, 0.4], [0.5, 0.45, 0.4])
N = 600
RESTARTS = parse_restarts('30; [8,1,1.09,3],[8,2,0.30,0.59]')


def guidance(weight=1.0):
    return DiscriminatorGuidance(exact_log_ratio(RIGHT, WRONG), weight, weight, time_min=0)


def draw(sampler, n=N, net=WRONG, **options):
    return sample(sampler, MixtureNet(net), range(n), batch=n, progress=False, **options)


def pvalue(found, mixture):
    return same_distribution_pvalue(found.images, mixture.sample(N, torch.Generator().manual_seed(2)), permutations=499)


@pytest.mark.parametrize('sampler, options', [
    (restart_sampler, dict(restarts=RESTARTS)),
    (multistep_sampler, dict(solver='unipc', levels=edm_levels(MixtureNet(WRONG), 30)))], ids=['restart', 'unipc'])
def test_guided_samples_follow_the_right_mixture(sampler, options):
    """Unguided ones follow the model's."""
    assert pvalue(draw(sampler, guidance=guidance(), **options), RIGHT) > 0.01
    unguided = draw(sampler, **options)
    assert pvalue(unguided, RIGHT) < 0.01 < pvalue(unguided, WRONG)


def test_restarts_forget_a_wrong_start():
    """Latents of twice the variance: the error of the samples' mean energy falls with every further restart."""
    def spread(text):
        """Variance of the samples, from latents of twice the standard deviation, of Gaussian data with variance 1/4."""
        net = MixtureNet(GaussianMixture([[0.0, 0.0]], stds=0.5))
        generator = torch.Generator().manual_seed(0)
        latents = 2 * torch.randn([4000, 2, 1, 1], generator=generator)
        x = restart_sampler(net, latents, restarts=parse_restarts(text), randn_like=lambda x: torch.randn(
            x.shape, dtype=x.dtype, generator=generator))
        return float(x.var())

    without = spread('18; [9,1,0.01,0.02]')
    once, thrice = spread('18; [9,1,0.30,3]'), spread('18; [9,3,0.30,3]')
    assert without > 0.9 and 0.25 < thrice < once < 0.3


def frequencies(images):
    return torch.bincount(RIGHT.component(images), minlength=3) / len(images)


def test_resampling_what_is_guided_counts_the_ratio_twice():
    """Total variation of the components, 0.30 for the plain model: 0.004 guided, 0.06 by 24 particles, 0.16 by both."""
    exact = frequencies(RIGHT.sample(400_000, torch.Generator().manual_seed(0)))

    def error(**options):
        found = draw(particle_sampler, 2400, num_particles=24, log_ratio=exact_log_ratio(RIGHT, WRONG), **options)
        return float((frequencies(found.images) - exact).abs().sum() / 2)

    steps = [8, 11, 13]
    guided, resampled = error(guidance=guidance(), resampling=None), error(resample_at=steps)
    both = error(guidance=guidance(), resample_at=steps)
    assert guided < 0.02 and resampled < 0.1 and both > 0.13


def test_rejection_with_a_weaker_guide():
    """Autoguidance by COARSE is guidance by the ratio of both models, so rejection makes the same decisions."""
    levels, log_ratio = edm_levels(MixtureNet(WRONG), 12), exact_log_ratio(RIGHT, WRONG)
    found = []
    for own in (Autoguidance(MixtureNet(COARSE), 1.2),
                DiscriminatorGuidance(exact_log_ratio(WRONG, COARSE), 0.2, 0.2, time_min=0)):
        thresholds = calibrate(MixtureNet(WRONG), log_ratio, range(50), levels=levels, guidance=own,
                               progress=lambda images: None)
        found.append(draw(diffrs_sampler, 40, log_ratio=log_ratio, thresholds=thresholds, levels=levels, guidance=own))
    torch.testing.assert_close(found[0].images, found[1].images, rtol=0, atol=1e-8)
    assert (found[0].costs['rejections'].sum(1) == found[1].costs['rejections'].sum(1)).all()
    assert found[0].costs['rejections'].sum() > 0
    assert (found[0].costs['guiding_calls'] == found[0].costs['nfe']).all()


def test_steps_mean_nothing_where_rows_are_at_their_own():
    """Rejection refuses an interval in steps."""
    levels = edm_levels(MixtureNet(WRONG), 6)
    own = nested(Autoguidance(MixtureNet(COARSE), 2, GuidanceInterval(1, 2, steps=True)))
    log_ratio = exact_log_ratio(RIGHT, WRONG)
    thresholds = calibrate(MixtureNet(WRONG), log_ratio, range(10), levels=levels, progress=lambda images: None)
    with pytest.raises(ValueError, match='in sigma'):
        draw(diffrs_sampler, 4, log_ratio=log_ratio, thresholds=thresholds, levels=levels, guidance=own)
