"""classifier_lib: the names that DG's users import, with DG's arguments and numbers."""

import functools
import inspect

import pytest
import torch
from dg_goldens import classifier, discriminator

import classifier_lib as lib
import networks
from torch_utils import checkpoint


def assert_score(actual, expected):
    """rtol 2e-4, atol 2e-4 of the largest entry at this noise level."""
    torch.testing.assert_close(actual.float(), expected.float(), rtol=2e-4, atol=2e-4 * float(expected.abs().max()))


def test_signatures():
    def names(function, count):
        return [name for name, p in inspect.signature(function).parameters.items()
                if p.kind is not inspect.Parameter.KEYWORD_ONLY][:count]

    assert names(lib.get_discriminator, 6) == ['latent_extractor_ckpt', 'discriminator_ckpt', 'condition',
                                               'img_resolution', 'device', 'enable_grad']
    assert names(lib.load_classifier, 4) == ['ckpt_path', 'img_resolution', 'device', 'eval']
    assert names(lib.load_discriminator, 5) == ['ckpt_path', 'device', 'condition', 'eval', 'channel']
    assert names(lib.load_log_ratio, 7) == ['classifier_ckpt', 'discriminator_ckpt', 'net', 'condition', 'device',
                                            'dtype', 'clip']
    assert names(lib.get_grad_log_ratio, 9) == [
        'discriminator', 'vpsde', 'unnormalized_input', 'std_wve_t', 'img_resolution', 'time_min', 'time_max',
        'class_labels', 'log']
    assert names(lib.vpsde().get_diffusion_time, 4) == ['batch_size', 'batch_device', 't_min', 'importance_sampling']


@functools.cache
def published(folder, kind):
    return lib.get_discriminator(str(folder / 'classifier.pt'), str(folder / f'discriminator_{kind}.pt'),
                                 kind == 'cond', 32, 'cpu', True)


@pytest.mark.parametrize('kind, res', [('uncond', 32), ('uncond', 64), ('cond', 32), ('cond', 64)])
def test_golden_get_grad_log_ratio(dg, dg_files, kind, res):
    """In range, the numbers of the clipped variant; outside, a zero correction and the log-ratio 1e7."""
    evaluate = published(dg_files[0].parent, kind)
    for index, sigma in enumerate(dg['sigma']):
        x = dg['x0'] + sigma * dg['noise']
        args = (evaluate, lib.vpsde(), x, sigma.reshape(1), res, 0.01, 1.0, dg['class_labels'])
        score, value = lib.get_grad_log_ratio(*args, log=True)
        assert_score(score, dg[f'dg_{kind}_res{res}_score'][index])
        torch.testing.assert_close(value.float(), dg[f'dg_{kind}_res{res}_log_ratio'][index], rtol=0, atol=5e-4)
        if index == 1:
            assert torch.equal(lib.get_grad_log_ratio(*args), score)


def test_each_row_is_decided_by_its_own_noise_level(dg, dg_files):
    """Unlike the reference, where the smallest time of the batch decides for all rows."""
    evaluate = published(dg_files[0].parent, 'uncond')

    def ask(sigma, rows=slice(None)):
        x = (dg['x0'] + sigma[:, None, None, None] * dg['noise'])[rows]
        return lib.get_grad_log_ratio(evaluate, lib.vpsde(), x, sigma[rows], 32, 0.01, 1.0, None, log=True)

    low = dg['dg_mixed_low_sigma']  # 0.02, below the range, and 3
    score, value = ask(low)
    assert not score[0].any() and value[0] == lib.OUTSIDE
    alone, value_alone = ask(low, slice(1, 2))
    assert_score(score[1:], alone)
    assert score[1].any() and value[1] == pytest.approx(float(value_alone), abs=1e-4)
    assert (dg['dg_mixed_low_log_ratio'] == lib.OUTSIDE).all()  # the reference: no row is guided

    high = dg['dg_mixed_high_sigma']  # 3, and 300, above the range
    score, value = ask(high)
    assert_score(score[0], dg['dg_mixed_high_score'][0])
    assert value[0] == pytest.approx(float(dg['dg_mixed_high_log_ratio'][0]), abs=5e-4)
    assert not score[1].any() and value[1] == lib.OUTSIDE
    assert dg['dg_mixed_high_score'][1].any()  # the reference: guided too


def test_without_a_discriminator(dg):
    x = dg['x0'] + dg['noise']
    score, value = lib.get_grad_log_ratio(None, lib.vpsde(), x, torch.ones(1), 32, 0.01, 1.0, None, log=True)
    assert score.shape == x.shape and not score.any() and (value == lib.OUTSIDE).all()


def test_get_discriminator_gives_probabilities(dg, dg_files):
    evaluate = published(dg_files[0].parent, 'uncond')
    x, t = dg['x0'].float(), torch.tensor([0.1, 0.5])
    probability = evaluate(x, timesteps=t)
    expected = discriminator('uncond')(classifier()(x, t, feature=True), t).sigmoid().view(-1)
    torch.testing.assert_close(probability, expected, rtol=1e-5, atol=1e-6)
    frozen = lib.get_discriminator(dg_files[0], dg_files[1]['uncond'], False, 32, 'cpu', enable_grad=False)
    assert not frozen(x.requires_grad_(), t).requires_grad and evaluate(x, t).requires_grad


def test_vpsde_under_its_published_names():
    sde, sigma = lib.vpsde(), torch.tensor([0.5, 20.0], dtype=torch.float64)
    mean, tau = sde.transform_unnormalized_wve_to_normalized_vp(sigma)
    again, std, _ = sde.transform_unnormalized_wve_to_normalized_vp(sigma, std_out=True)
    assert torch.equal(mean, again) and torch.equal(tau, sde.compute_tau(sigma))
    torch.testing.assert_close(std / mean, sigma)
    assert torch.equal(sde.marginal_prob(tau)[0], mean) and torch.equal(sde.compute_t_cos_from_t_lin(tau),
                                                                        sde.t_cos(tau))
    times, z = sde.get_diffusion_time(1000, 'cpu')
    assert times.shape == (1000,) and times.dtype == torch.float32 and z == pytest.approx(23.864, abs=1e-3)
    assert times.min() >= 0.99e-5 and times.max() <= 1 and times.median() < 0.2
    times, z = sde.get_diffusion_time(1000, 'cpu', 1e-3, False)
    assert z == 1 and times.min() >= 1e-3 and 0.45 < times.median() < 0.55


def test_get_discriminator_refuses_the_other_time(dg_files, tmp_path):
    cosine = tmp_path / 'd.safetensors'
    checkpoint.save_network(cosine, discriminator('uncond'), 'create_classifier', {}, dict(time='cosine'))
    with pytest.raises(ValueError, match='d.safetensors was trained with cosine time, get_grad_log_ratio takes linear '
                                         'time at 32x32; use load_log_ratio'):
        lib.get_discriminator(dg_files[0], cosine, False, 32, 'cpu')
    cosine = tmp_path / 'c.safetensors'
    checkpoint.save_network(cosine, classifier(), 'create_classifier', {}, dict(time='cosine'))
    with pytest.raises(ValueError, match='classifier .*c.safetensors was trained with cosine'):
        lib.get_discriminator(cosine, dg_files[1]['uncond'], False, 32, 'cpu')


def test_the_rest_are_the_house_s_own(dg, dg_files):
    assert lib.LogRatio is networks.LogRatio
    net = networks.load_network()
    ours = networks.load_log_ratio(net, dg_files[0], dg_files[1]['uncond'], clip=True)
    published = lib.load_log_ratio(dg_files[0], dg_files[1]['uncond'], net, False, 'cpu', clip=True)
    x, sigma = dg['x0'] + dg['noise'], torch.tensor(1.0)
    assert torch.equal(published.value(x, sigma), ours.value(x, sigma)) and published.clip
