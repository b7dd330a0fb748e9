"""Diffusion rejection sampling: slots, seeds, labels, caps and full batches, where score and log-ratio are exact."""

import itertools
import math
import types

import numpy as np
import pytest
import torch
from diffrs_toy import (
    LOG_RATIO,
    MODEL,
    NET,
    RULE_NAMES,
    STEPS,
    always,
    levels,
    plain,
    published_loop,
    quiet,
    sample,
    warmup,
)
from sampler_runs import run_edm

from diffusion.mixtures import MixtureNet
from sampling import diffrs_slots
from sampling.diffrs import calibrate, diffrs_sampler, warmup_seeds
from sampling.guidance import DiscriminatorGuidance
from sampling.padding import Padded
from sampling.samples import draw_inputs

# What rejection must not change.

@pytest.mark.parametrize('schedule', [{}, dict(S_churn=40, S_noise=1.003), dict(S_churn=40, S_min=0.05, S_max=10)])
@pytest.mark.parametrize('rule', RULE_NAMES)
def test_always_accepting_is_edm(rule, schedule):
    run = sample(range(60), thresholds=always(-math.inf), rule=rule, batch=16, **schedule)
    torch.testing.assert_close(run['images'], plain(range(60), **schedule), rtol=1e-12, atol=1e-12)
    assert (run['nfe'] == 2 * STEPS - 1).all() and (run['tests'] == 1).all() and not run['rejections'].any()


def test_several_discriminators_cost_as_many_calls():
    """Also behind the padding of scripts."""
    def three(x, sigma, class_labels=None):
        return LOG_RATIO(x, sigma)

    three.discriminator_calls = 3
    run = sample(range(8), log_ratio=Padded(three, 8), thresholds=always(-math.inf), batch=8)
    assert (run['discriminator_calls'] == 3 * (STEPS + 1)).all() and (run['nfe'] == 2 * STEPS - 1).all()


def test_guidance_composes_with_rejection():
    guidance = DiscriminatorGuidance(LOG_RATIO, weight_1st=1.0, weight_2nd=1.0)
    run = sample(range(40), thresholds=always(-math.inf), batch=15, guidance=guidance)
    rnd, latents, _ = draw_inputs(NET, list(range(40)), 'cpu')
    expected = run_edm(NET, latents, randn_like=rnd.randn_like, num_steps=STEPS, guidance=guidance)
    torch.testing.assert_close(run['images'], expected, rtol=1e-10, atol=1e-10)
    guided = int(guidance.acts(levels().raised).sum() + guidance.acts(levels().sigmas[1:-1]).sum())
    assert (run['discriminator_calls'] == STEPS + 1 + guided).all()
    rejecting = sample(range(10), guidance=guidance, rej_percentile=0.9)
    assert rejecting['rejections'].sum() > 0 and rejecting['images'].isfinite().all()


@pytest.mark.parametrize('options', [dict(rule='published'), dict(rule='exact'), dict(rule='published', S_churn=40),
                                     dict(rule='published', max_iter=60, backsteps=3), dict(min_backsteps=4),
                                     dict(min_backsteps=1, backsteps=2)])
def test_sample_depends_on_its_seed_only(options):
    """With any batch size, order and other samples: the same image, at the same cost."""
    options = dict(rej_percentile=0.95) | options
    all_of_them = sample(range(30), batch=64, **options)
    assert all_of_them['rejections'].sum() > 20
    for seeds, batch in (([23, 4, 18], 1), (range(12), 5), (range(20, 28), 3)):
        some = sample(seeds, batch=batch, **options)
        assert some['rejections'].any()
        rows = list(seeds)
        torch.testing.assert_close(some['images'], all_of_them['images'][rows], rtol=1e-9, atol=1e-9)
        for name in ('nfe', 'discriminator_calls', 'tests', 'rejections', 'cap_hits'):
            assert np.array_equal(some[name], all_of_them[name][rows]), name


@pytest.mark.parametrize('options', [
    {}, dict(min_backsteps=4), dict(min_backsteps=1, backsteps=2), dict(backsteps=3, max_iter=60),
    dict(S_churn=40, max_backsteps=12), dict(S_churn=10, min_backsteps=3, max_iter=50)])
def test_slots_do_what_the_published_loop_does(options):
    calibration = warmup(options.get('S_churn', 0))
    run = sample(range(8), thresholds=calibration, rej_percentile=0.95, batch=3, **options)
    expected = [published_loop(seed, calibration, **options) for seed in range(8)]
    assert run['nfe'].tolist() == [nfe for _, nfe in expected] and run['rejections'].sum() > 20
    assert run['cap_hits'].any() == ('max_iter' in options)
    torch.testing.assert_close(run['images'], torch.stack([image for image, _ in expected]), rtol=1e-9, atol=1e-9)


class LabelledNet(MixtureNet):
    """Class k shifts the mixture by 10 k."""

    label_dim = 3

    def __call__(self, x, sigma, class_labels=None):
        shift = 10 * class_labels.argmax(1).double()[:, None, None, None]
        return super().__call__(x - shift, sigma) + shift


def labelled_log_ratio(x, sigma, class_labels=None):
    return LOG_RATIO(x - 10 * class_labels.argmax(1).double()[:, None, None, None], sigma)


def test_labels_belong_to_their_samples():
    net = LabelledNet(MODEL)
    options = dict(net=net, log_ratio=labelled_log_ratio, rej_percentile=0.95, batch=20)
    run = sample(range(100), **options)
    expected = draw_inputs(net, list(range(100)), 'cpu')[2]
    assert torch.equal(run['labels'], expected) and run['rejections'].sum() > 50
    centre = run['images'].mean((1, 2, 3))
    assert ((centre - 10 * run['labels'].argmax(1)).abs() < 5).all()
    given = torch.eye(3)[[2, 0, 1] * 10]
    assert torch.equal(sample(range(30), class_labels=given, **options)['labels'], given)
    assert (sample(range(5), class_labels=torch.eye(3)[1:2], **options)['labels'].argmax(1) == 1).all()


def test_seeds_are_taken_when_there_is_room():
    taken = []

    def seeds():
        for seed in itertools.count():
            taken.append(seed)
            yield seed

    drawn = 0
    for piece in diffrs_sampler(NET, seeds(), log_ratio=LOG_RATIO, batch=4, levels=levels(), thresholds=warmup()):
        drawn += len(piece)
        if drawn >= 20:
            break
    assert taken == list(range(len(taken))) and drawn <= len(taken) <= drawn + 20


def test_networks_get_full_batches():
    """Until the last seeds are under way, each call of either network has a full batch."""
    sizes, ratio_sizes = [], []

    class Net(MixtureNet):
        def __call__(self, x, sigma, class_labels=None):
            sizes.append(len(x))
            return super().__call__(x, sigma)

    def log_ratio(x, sigma, class_labels=None):
        ratio_sizes.append(len(x))
        return LOG_RATIO(x, sigma)

    run = sample(range(300), net=Net(MODEL), log_ratio=log_ratio, batch=10, rej_percentile=0.9)
    assert sum(sizes) == run['nfe'].sum() and sum(ratio_sizes) == run['discriminator_calls'].sum()
    assert np.mean(np.array(sizes) == 10) > 0.93 and np.mean(np.array(ratio_sizes) == 10) > 0.9
    first_short = next(i for i, size in enumerate(sizes) if size < 10)
    assert first_short > 0.9 * len(sizes)


# The cap and the range of tests.

@pytest.mark.parametrize('rule', RULE_NAMES)
def test_cap(rule):
    run = sample(range(60), rule=rule, rej_percentile=0.97, max_iter=50)
    free = sample(range(60), rule=rule, rej_percentile=0.97)
    assert run['cap_hits'].sum() > 20 and not free['cap_hits'].any()
    assert (run['nfe'][run['cap_hits'] == 0] <= 50).all()
    assert (run['nfe'][run['cap_hits'] > 0] > 2 * STEPS - 1).all()  # evaluations before a restart are counted
    untouched = (run['cap_hits'] == 0)
    torch.testing.assert_close(run['images'][untouched], free['images'][untouched])


def test_cap_that_no_sample_could_keep():
    with pytest.raises(ValueError, match='39 evaluations'):
        sample(range(2), max_iter=38)
    assert (sample(range(4), max_iter=39)['nfe'] >= 39).all()


def test_levels_that_are_tested():
    run = sample(range(200), rej_percentile=0.95, min_backsteps=4, max_backsteps=12)
    tested = np.flatnonzero(run['tests'].sum(0))
    assert tested.tolist() == list(range(5, 13)) and run['images'].isfinite().all()
    run = sample(range(50), rej_percentile=0.95, backsteps=0)
    assert np.flatnonzero(run['tests'].sum(0)).tolist() == [0]
    run = sample(range(50), rule='exact', rej_percentile=0.95, min_backsteps=4, max_backsteps=12)
    assert np.flatnonzero(run['tests'].sum(0)).tolist() == list(range(5, 13))


def test_many_backsteps_end_at_the_prior():
    run = sample(range(30), rej_percentile=0.95, backsteps=7)  # in the published script: level -6, noise level 0
    assert run['images'].isfinite().all() and run['rejections'][:, 1:7].sum() > 0


def test_sample_that_is_never_accepted(monkeypatch):
    monkeypatch.setattr(diffrs_slots, 'HOPELESS', 30)
    with pytest.raises(diffrs_slots.HopelessSample, match='seed 7 was rejected 30 times'):
        sample([7], thresholds=always(math.inf))


def test_contradictions():
    with pytest.raises(ValueError, match='boosting'):
        sample([0], guidance=DiscriminatorGuidance(LOG_RATIO, boosting=True))
    with pytest.raises(ValueError, match='at least one trajectory'):
        calibrate(NET, LOG_RATIO, warmup_seeds(0))
    with pytest.raises(TypeError, match='thresholds'):  # no warm-up unless asked for
        diffrs_sampler(NET, [0], log_ratio=LOG_RATIO)
    with pytest.raises(ValueError, match='calibrate again'):
        sample([0], num_steps=9)


def test_warmup_is_plain_edm():
    x = plain(warmup_seeds(1))
    found = calibrate(NET, LOG_RATIO, levels=levels(), progress=quiet)
    assert found.log_ratio.shape == (STEPS + 1, 1000)
    np.testing.assert_allclose(found.log_ratio[-1, :100], LOG_RATIO(x, 0.0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(calibrate(NET, LOG_RATIO, batch=999, levels=levels(), progress=quiet).log_ratio,
                               found.log_ratio, rtol=0, atol=2e-6)
    told = []
    calibrate(NET, LOG_RATIO, range(7), batch=4, levels=levels(), progress=told.append)
    assert sum(told) == pytest.approx(7) and len(told) == 2 * STEPS  # a sign of life with each step


def test_padded_networks_see_one_shape():
    """With one noise level or one per row, a full batch or part of one, a network is compiled once."""
    seen = set()

    def net(x, sigma, class_labels):
        seen.add((x.shape, x.stride(), sigma.shape, sigma.stride(), class_labels.shape))
        return x * sigma[:, None] + class_labels

    x, sigmas, labels = torch.randn(4, 2), torch.rand(4), torch.randn(4, 2)
    padded = Padded(net, 4)
    for rows in (4, 3, 1):
        part = slice(rows)
        assert torch.equal(padded(x[part], sigmas[0], labels[part]), x[part] * sigmas[0] + labels[part])
        assert torch.equal(padded(x[part], sigmas[part], labels[part]), x[part] * sigmas[part, None] + labels[part])
    assert len(seen) == 1


def test_padded_gradients_see_one_shape():
    """Guidance evaluates the rows that are in its half of a step; its gradients round the same for any number."""
    sizes = []

    def value_and_grad(x, sigma, class_labels=None):
        sizes.append((len(x), len(sigma), len(class_labels)))
        return x.sum(1) + sigma, x * class_labels

    x, sigmas, labels = torch.randn(4, 2), torch.rand(4), torch.randn(4, 2)
    padded = Padded(types.SimpleNamespace(value_and_grad=value_and_grad), 4)
    for rows in (4, 3, 1):
        value, gradient = DiscriminatorGuidance(padded).value_and_grad(x[:rows], sigmas[:rows], labels[:rows])
        assert torch.equal(value, (x.sum(1) + sigmas)[:rows]) and torch.equal(gradient, (x * labels)[:rows])
    assert sizes == [(4, 4, 4)] * 3
