"""Autoguidance, classifier-free and classifier guidance, their interval and their sums.

Goldens: tests/goldens/restart/guidance.npz (EDM2's and Kynkaanniemi et al.'s samplers, float64 and float32), atol 1e-4.
"""

import json

import numpy as np
import pytest
import torch
from goldens import load, recipe_
from sampler_goldens import network
from sampler_runs import run_edm

import networks
from diffusion.mixtures import GaussianMixture, MixtureNet, exact_log_ratio
from diffusion.schedules import edm_steps
from sampling.autoguidance import Autoguidance
from sampling.classifier_free import ClassifierFree
from sampling.classifier_guidance import ClassifierGuidance
from sampling.denoiser import At, Denoiser, nested
from sampling.guidance import DiscriminatorGuidance
from sampling.interval import GuidanceInterval, parse_interval

MEANS, STDS = [[-1.0, 0.5], [0.5, 0.0], [0.3, 1.0]], [0.3, 0.2, 0.25]
MIXTURE = GaussianMixture(MEANS, [0.5, 0.3, 0.2], STDS)
COARSE = GaussianMixture(MEANS, [0.4, 0.3, 0.3], [0.5, 0.4, 0.45])
OTHER = GaussianMixture(MEANS, [0.2, 0.3, 0.5], STDS)


class LabelledNet(MixtureNet):
    """A mixture whose labels are its components; with labels of zeros, the whole mixture."""

    label_dim = 3

    def __init__(self, mixture=MIXTURE):
        super().__init__(mixture)
        self.parts = [GaussianMixture([mean], stds=std) for mean, std in zip(mixture.means.tolist(), mixture.stds)]
        self.asked = []

    def __call__(self, x, sigma, class_labels=None):
        self.asked.append(class_labels)
        if class_labels is None or not class_labels.any():
            return self.mixture.denoiser(x, sigma)
        rows = torch.stack([part.denoiser(x, sigma) for part in self.parts], 1)  # [N, K, ...]
        return rows[torch.arange(len(x)), class_labels.argmax(1)]


def log_class(x, sigma, class_labels):
    """log p(component | x; sigma) [N], exact."""
    joint, _ = MIXTURE._log_joint(x.flatten(1), sigma)
    return joint.log_softmax(1)[torch.arange(len(x)), class_labels.argmax(1)]


def latents(n=6, seed=0):
    return torch.randn([n, 2, 1, 1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_hot(n=6):
    return torch.eye(3, dtype=torch.float64)[torch.arange(n) % 3]


@pytest.mark.parametrize('name', ['auto_g2', 'auto_g1', 'interval_2_4', 'interval_none'])
def test_golden(name):
    arrays = load('restart/guidance.npz')
    case = json.loads(str(arrays['cases']))[name]
    described = json.loads(str(load('edm/ncsnpp_skip.npz')['constructor']))
    guide = recipe_(networks.construct('EDMPrecond', described['kwargs'])).eval().requires_grad_(False)
    interval = None if case.get('guidance_interval') is None else parse_interval(str(case['guidance_interval']))
    guidance = Autoguidance(guide, float(case.get('guidance', case.get('G'))), interval)
    denoise = guidance(Denoiser(network('ddpmpp_cond')))
    images = run_edm(denoise, torch.as_tensor(arrays['latents']), torch.as_tensor(arrays['class_labels']), num_steps=8)
    torch.testing.assert_close(images, torch.as_tensor(arrays[name], dtype=torch.float64), rtol=0, atol=1e-4)
    evaluations = dict(auto_g2=15, interval_2_4=6, interval_none=15)
    assert denoise.costs['nfe'].tolist() == [15, 15]
    assert name == 'auto_g1' or denoise.costs['guiding_calls'].tolist() == [evaluations[name]] * 2


def test_classifier_guidance_draws_the_class():
    """D + sigma^2 grad log p(k | x) of a mixture is the denoiser of its component k (Bayes), on the whole path."""
    net = LabelledNet()
    plain = MixtureNet(MIXTURE)
    plain.label_dim = 3
    guided = run_edm(plain, latents(), one_hot(), guidance=ClassifierGuidance(log_class), num_steps=12)
    torch.testing.assert_close(guided, run_edm(net, latents(), one_hot(), num_steps=12), rtol=0, atol=1e-9)


@pytest.mark.parametrize('weight', [0.0, 2.5])
def test_classifier_free_guidance_is_that_of_its_implicit_classifier(weight):
    """D_0 + w (D - D_0) = D_0 + w sigma^2 grad log p(k | x) (Ho and Salimans 2022, section 3.2)."""
    plain = MixtureNet(MIXTURE)
    plain.label_dim = 3
    expected = run_edm(plain, latents(), one_hot(), guidance=ClassifierGuidance(log_class, weight), num_steps=12)
    guided = run_edm(LabelledNet(), latents(), one_hot(), guidance=ClassifierFree(weight - 1), num_steps=12)
    torch.testing.assert_close(guided, expected, rtol=0, atol=1e-9)


def test_autoguidance_is_guidance_by_the_ratio_of_both_models():
    """(w - 1) (D - D_g) = (w - 1) sigma^2 grad log (p / p_g), so discriminator guidance with the exact ratio agrees."""
    auto = run_edm(MixtureNet(MIXTURE), latents(), guidance=Autoguidance(MixtureNet(COARSE), 2.5), num_steps=12)
    ratio = DiscriminatorGuidance(exact_log_ratio(MIXTURE, COARSE), 1.5, 1.5, time_min=0)
    torch.testing.assert_close(auto, run_edm(MixtureNet(MIXTURE), latents(), guidance=ratio, num_steps=12), rtol=0,
                               atol=1e-9)


def test_a_sum_of_guidances_is_the_guidance_of_the_sum():
    """In any order; two log-ratios, and a log-ratio with a weaker network."""
    def discriminator(right, wrong):
        return DiscriminatorGuidance(exact_log_ratio(right, wrong), 1, 1, time_min=0)

    both = DiscriminatorGuidance(lambda x, sigma, labels=None: exact_log_ratio(OTHER, COARSE)(x, sigma)
                                 + exact_log_ratio(MIXTURE, COARSE)(x, sigma), 1, 1, time_min=0)
    expected = run_edm(MixtureNet(COARSE), latents(), guidance=both, num_steps=12)
    parts = [discriminator(OTHER, COARSE), discriminator(MIXTURE, COARSE)]
    torch.testing.assert_close(run_edm(MixtureNet(COARSE), latents(), guidance=nested(*parts), num_steps=12), expected,
                               rtol=0, atol=1e-9)
    both = DiscriminatorGuidance(lambda x, sigma, labels=None: exact_log_ratio(OTHER, MIXTURE)(x, sigma)
                                 + exact_log_ratio(MIXTURE, COARSE)(x, sigma), 1, 1, time_min=0)
    expected = run_edm(MixtureNet(MIXTURE), latents(), guidance=both, num_steps=12)
    parts = [discriminator(OTHER, MIXTURE), Autoguidance(MixtureNet(COARSE), 2)]
    for guidance in (nested(*parts), nested(*reversed(parts))):
        torch.testing.assert_close(run_edm(MixtureNet(MIXTURE), latents(), guidance=guidance, num_steps=12), expected,
                                   rtol=0, atol=1e-9)


def test_nested_of_none_or_one():
    guidance = Autoguidance(MixtureNet(COARSE), 2)
    assert nested() is None and nested(guidance) is guidance


@pytest.mark.parametrize('interval, calls', [
    (GuidanceInterval(0.5, 10.0), None), (GuidanceInterval(3, 5, steps=True), 6),
    (GuidanceInterval(100.0, 200.0), 0), (None, 23)])
def test_outside_the_interval_nothing_is_called(interval, calls):
    guide = MixtureNet(COARSE)
    denoise = Autoguidance(guide, 2, interval)(Denoiser(MixtureNet(MIXTURE)))
    run_edm(denoise, latents(), num_steps=12)
    if calls is None:
        sigmas = edm_steps(12)  # all but the first and the last are seen twice, and those are outside
        calls = 2 * int(((sigmas >= 0.5) & (sigmas <= 10)).sum())
    assert guide.calls == calls
    assert denoise.costs.get('guiding_calls', np.zeros(6)).tolist() == [calls] * 6


def test_rows_at_their_own_noise_level():
    """As in rejection sampling: rows inside the interval are guided, the others are not evaluated."""
    x, sigma = latents(4), torch.tensor([0.1, 1.0, 3.0, 50.0], dtype=torch.float64)
    interval = GuidanceInterval(0.5, 5)
    inside = ((sigma >= 0.5) & (sigma <= 5))[:, None, None, None]
    plain, weak = MIXTURE.denoiser(x, sigma), COARSE.denoiser(x, sigma)
    expected = torch.where(inside, weak + 3 * (plain - weak), plain)
    for at, counts in ((At(sigma), [0, 1, 1, 0]), (At(None), [0, 1, 1, 0]), (At(sigma[:2], either=True), [1] * 4)):
        denoise = Autoguidance(MixtureNet(COARSE), 3, interval)(Denoiser(MixtureNet(MIXTURE), 4))
        torch.testing.assert_close(denoise(x, sigma, at=at), expected, rtol=0, atol=1e-12)
        assert denoise.costs['guiding_calls'].tolist() == counts
    with pytest.raises(ValueError, match='in sigma'):
        Autoguidance(MixtureNet(COARSE), 3, GuidanceInterval(1, 2, steps=True))(MixtureNet(MIXTURE))(x, sigma)


def test_the_guide_gets_the_labels_it_knows():
    guide = LabelledNet(COARSE)
    run_edm(LabelledNet(), latents(3), one_hot(3), guidance=Autoguidance(guide, 2), num_steps=2)
    assert all(torch.equal(labels, one_hot(3)) for labels in guide.asked)
    run_edm(LabelledNet(), latents(3), one_hot(3), guidance=Autoguidance(MixtureNet(COARSE), 2), num_steps=2)


def test_weights_of_no_guidance_call_nothing():
    net = Denoiser(LabelledNet())
    for guidance in (Autoguidance(LabelledNet(COARSE), 1), ClassifierGuidance(log_class, 0)):
        assert guidance(net) is net


def test_what_does_not_fit_is_refused():
    wide = MixtureNet(GaussianMixture([[0.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match='images of shape'):
        Autoguidance(wide)(MixtureNet(MIXTURE))
    with pytest.raises(ValueError, match='3 classes'):
        Autoguidance(LabelledNet())(MixtureNet(MIXTURE))
    with pytest.raises(ValueError, match='class-conditional network'):
        ClassifierGuidance(log_class)(MixtureNet(MIXTURE))


@pytest.mark.parametrize('text, expected', [
    ('0.19,1.61', GuidanceInterval(0.19, 1.61)), ('[17, 22]', GuidanceInterval(17, 22, steps=True)),
    ('0,1', GuidanceInterval(0.0, 1.0))])
def test_intervals_as_users_write_them(text, expected):
    assert parse_interval(text) == expected


@pytest.mark.parametrize('text', ['', '1', '2,1', 'a,b', '[3,2]', '1,2,3', '[1.5,"x"]', 'nan,1'])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError):
        parse_interval(text)
