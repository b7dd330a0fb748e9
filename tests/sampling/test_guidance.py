"""sampling/guidance.py against DG's sampler, and where DG's is wrong.

Goldens: tests/goldens/sampler/edm_dg.npz, atol 2e-4 (6 steps) and 1e-4 (18 steps): chains of network calls.
"""

import numpy as np
import pytest
import torch
from dg_goldens import classifier, discriminator
from sampler_goldens import CountedNet, RecordedNoise, goldens, network
from sampler_runs import run_edm

import networks
from diffusion.mixtures import GaussianMixture, MixtureNet, exact_log_ratio
from diffusion.schedules import edm_steps
from sampling.denoiser import At
from sampling.guidance import BOOSTINGS, DiscriminatorGuidance

DG_CASES = ['dg_uncond_steps6_churn40', 'dg_boost_cond_steps6_churn0', 'dg_boost_cond_steps6_churn40']
LONG_CASES = ['dg_uncond_steps6_churn0', 'dg_boost_uncond_steps6_churn0', 'dg_uncond_steps18_churn0',
              'dg_uncond_steps18_churn40', 'dg_boost_cond_steps18_churn0', 'dg_boost_cond_steps18_churn40']
RIGHT = GaussianMixture([[-0.5, 0.5], [0.5, 0.0]], [0.7, 0.3], 0.2)
WRONG = GaussianMixture([[-0.5, 0.5], [0.5, 0.0]], [0.3, 0.7], 0.25)


def golden_log_ratio(kind):
    """DG's clipped log-ratio of the golden discriminator 'uncond' or 'cond'."""
    return networks.LogRatio(classifier(), discriminator(kind), clip=True, conditional=kind == 'cond')


@pytest.mark.parametrize('name', DG_CASES + [pytest.param(name, marks=pytest.mark.slow) for name in LONG_CASES])
def test_golden(name):
    arrays, cases = goldens('edm_dg')
    case = cases[name]
    guidance = DiscriminatorGuidance(golden_log_ratio(case['discriminator']), case['dg_weight_1st_order'],
                                     boosting=bool(case['boosting']))
    net, noise = CountedNet(network(case['network'])), RecordedNoise(arrays['noise'])
    options = {key: case[key] for key in ('num_steps', 'S_churn', 'S_noise') if key in case}
    images = run_edm(net, torch.as_tensor(arrays['latents']),
                         torch.as_tensor(arrays['class_labels']) if net.label_dim else None,
                         randn_like=noise.randn_like, callback=noise.callback, guidance=guidance, **options)
    assert len(net.x) == case['nfe']
    if f'{name}_net_x' in arrays:  # the input of every network call
        for x, sigma, x_golden, sigma_golden in zip(
                net.x, net.sigma, arrays[f'{name}_net_x'], arrays[f'{name}_net_sigma'], strict=True):
            torch.testing.assert_close(x, torch.as_tensor(x_golden, dtype=torch.float64), rtol=2e-6, atol=2e-4)
            torch.testing.assert_close(sigma.expand(4), torch.as_tensor(sigma_golden), rtol=1e-6, atol=0)
    torch.testing.assert_close(images, torch.as_tensor(arrays[name]), rtol=0,
                               atol=2e-4 if case['num_steps'] == 6 else 1e-4)


def latents(n=4):
    return torch.randn([n, 2, 1, 1], generator=torch.Generator().manual_seed(0))


def guided(guidance, x=None, **kwargs):
    return run_edm(MixtureNet(WRONG), latents() if x is None else x, guidance=guidance, **kwargs)


def generator_noise(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)


class CountedLogRatio:
    """A log-ratio that records the noise levels of its calls."""

    def __init__(self, log_ratio=None):
        self.log_ratio, self.sigmas = log_ratio or exact_log_ratio(RIGHT, WRONG), []

    def __call__(self, x, sigma, class_labels=None):
        self.sigmas.append(sigma.clone())
        return self.log_ratio(x, sigma, class_labels)


def test_zero_weights_change_nothing():
    log_ratio = CountedLogRatio()
    assert torch.equal(guided(DiscriminatorGuidance(log_ratio, 0, 0, boosting=True), randn_like=generator_noise()),
                       guided(None))
    assert not log_ratio.sigmas


@pytest.mark.parametrize('weights, calls', [((2, 0), 6), ((0, 1), 5), ((1, 1), 11)])
def test_discriminator_is_called_once_where_it_is_needed(weights, calls):
    """Also with boosting, which needs value and gradient."""
    for boosting in (False, True):
        log_ratio = CountedLogRatio()
        denoise = DiscriminatorGuidance(log_ratio, *weights, boosting=boosting, time_min=0)(MixtureNet(WRONG))
        run_edm(denoise, latents(), num_steps=6, randn_like=torch.zeros_like)
        assert len(log_ratio.sigmas) == calls and (denoise.costs['discriminator_calls'] == calls).all()


def test_time_range_limits_the_guidance():
    """VP time 0.01 is sigma 0.0447, 0.5 is sigma 3.41: only levels between are evaluated."""
    log_ratio = CountedLogRatio()
    guided(DiscriminatorGuidance(log_ratio, 1, time_min=0.01, time_max=0.5))
    levels = edm_steps(18)
    expected = levels[(levels > 0.0447) & (levels < 3.41)]
    torch.testing.assert_close(torch.stack(log_ratio.sigmas), expected, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match='time_min'):
        DiscriminatorGuidance(log_ratio, time_min=0.5, time_max=0.2)


def test_value_and_grad_is_used_where_there_is_one():
    class Analytic:
        calls = 0

        def value_and_grad(self, x, sigma, class_labels=None):
            self.calls += 1
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                value = exact_log_ratio(RIGHT, WRONG)(x, sigma)
                return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    analytic = Analytic()
    torch.testing.assert_close(guided(DiscriminatorGuidance(analytic, 1)),
                               guided(DiscriminatorGuidance(exact_log_ratio(RIGHT, WRONG), 1)), rtol=0, atol=0)
    assert analytic.calls


def test_second_order_weight_works():
    """DG's raises IndexError; here it changes the result and counts its calls."""
    first = guided(DiscriminatorGuidance(exact_log_ratio(RIGHT, WRONG), 1, 0))
    both = guided(DiscriminatorGuidance(exact_log_ratio(RIGHT, WRONG), 1, 1))
    assert both.isfinite().all() and (both - first).abs().max() > 1e-4


def test_churn_limits_give_no_nan():
    """DG's loses every image with these options (sqrt of a negative rounding error)."""
    options = dict(S_churn=40, S_min=0.05, S_max=50, S_noise=1.003)
    for boosting in (False, True):
        images = guided(DiscriminatorGuidance(exact_log_ratio(RIGHT, WRONG), 2, boosting=boosting),
                        randn_like=generator_noise(), **options)
        assert images.isfinite().all()


def sign_log_ratio(x, sigma, class_labels=None):
    """Negative for rows whose first value is negative; its gradient is 0, so that only boosting shows."""
    return torch.where(x[:, 0, 0, 0] < 0, -1.0, 1.0) + 0.0 * x.flatten(1).sum(1)


def test_boosting_renews_the_noise_of_rejected_rows_only():
    """Every fifth step except the first, rows whose last log-ratio was negative: gamma = 4 / num_steps, S_noise 1."""
    x = latents(6)
    net, draws = CountedNet(MixtureNet(WRONG)), []

    def randn_like(state):
        draws.append(len(net.x) // 2)
        return torch.ones_like(state)

    run_edm(net, x, randn_like=randn_like, guidance=DiscriminatorGuidance(sign_log_ratio, 1, boosting=True,
                                                                              time_min=0))
    assert draws == [5, 10, 15]
    levels = edm_steps(18)
    for step in range(18):
        sigma = net.sigma[2 * step]
        if step not in draws:
            assert sigma.ndim == 0 and sigma == levels[step]
            continue
        disliked = net.x[2 * step - 2][:, 0, 0, 0] < 0  # where the first evaluation of the last step was
        expected = torch.where(disliked, levels[step] * (1 + 4 / 18), levels[step])
        torch.testing.assert_close(sigma, expected, rtol=1e-12, atol=0)


def test_boosting_doubles_the_guidance_of_rejected_rows():
    """In even steps, at the first evaluation: one step from one level, compared row by row with weight 2."""
    def log_ratio(x, sigma, class_labels=None):
        return x[:, 0, 0, 0]

    x = latents(6)
    options = dict(num_steps=1, sigma_max=1.0)
    plain = guided(DiscriminatorGuidance(log_ratio, 1), x, **options)
    double = guided(DiscriminatorGuidance(log_ratio, 2), x, **options)
    boosted = guided(DiscriminatorGuidance(log_ratio, 1, boosting=True), x, randn_like=generator_noise(), **options)
    rejected = x[:, 0, 0, 0] < 0
    assert rejected.any() and not rejected.all()
    torch.testing.assert_close(boosted[rejected], double[rejected], rtol=0, atol=0)
    torch.testing.assert_close(boosted[~rejected], plain[~rejected], rtol=0, atol=0)


@pytest.mark.parametrize('name, doubled, renewed', [
    ('dg', [0, 2, 4, 6, 8, 10], [5, 10]), ('reproduction', [0, 2, 4, 6, 8, 10], [2, 4, 6, 8, 10]),
    ('paper', [1, 3, 5, 7, 9, 11], [1, 3, 5, 7, 9, 11])])
def test_boosting_schedules(name, doubled, renewed):
    """Steps, counted from 0, in which a disliked sample is guided twice as hard, and in which its noise is renewed."""
    def log_ratio(x, sigma, class_labels=None):
        return -1.0 + 1e-3 * x.flatten(1).sum(1)

    evaluations, draws = [], []

    class Net(MixtureNet):
        def __call__(self, x, sigma, class_labels=None):
            evaluations.append(x)
            return torch.zeros_like(x)  # only the correction is left

    denoise = DiscriminatorGuidance(log_ratio, 1, boosting=BOOSTINGS[name], time_min=0)(Net(WRONG))
    run_edm(denoise, latents(1) * 0, num_steps=12, callback=None,
            randn_like=lambda x: draws.append(len(evaluations) // 2) or torch.zeros_like(x))
    assert draws == renewed
    levels, strength = edm_steps(12), []
    for step in range(12):
        denoised = denoise(torch.zeros(1, 2, 1, 1), levels[step], at=At(levels[step:step + 1], step=step))
        strength.append(round(float(denoised.abs().max() / levels[step] ** 2 / 1e-3)))
    assert [step for step, found in enumerate(strength) if found == 2] == doubled and set(strength) == {1, 2}


def test_several_discriminators_cost_as_many_calls():
    class Pair:
        discriminator_calls = 2

        def __call__(self, x, sigma, class_labels=None):
            return exact_log_ratio(RIGHT, WRONG)(x, sigma)

    denoise = DiscriminatorGuidance(Pair(), 2, time_min=0)(MixtureNet(WRONG))
    run_edm(denoise, latents(), num_steps=6)
    assert (denoise.costs['discriminator_calls'] == 12).all() and (denoise.costs['nfe'] == 11).all()


@pytest.mark.parametrize('boosting', [False, True])
def test_rows_are_decided_separately(boosting):
    """DG lets the smallest noise level of the batch decide for all rows; here row k is the same by itself."""
    x = latents(6)
    guidance = DiscriminatorGuidance(exact_log_ratio(RIGHT, WRONG), 1.5, boosting=boosting)

    def noise(rows):
        table = torch.randn([18, 6, 2, 1, 1], generator=torch.Generator().manual_seed(3)).double()
        return RecordedNoise(table[:, rows])

    whole_noise = noise(slice(None))
    options = dict(S_churn=10)
    whole = guided(guidance, x, randn_like=whole_noise.randn_like, callback=whole_noise.callback, **options)
    for k in range(6):
        row_noise = noise(slice(k, k + 1))
        alone = guided(guidance, x[k:k + 1], randn_like=row_noise.randn_like, callback=row_noise.callback, **options)
        torch.testing.assert_close(alone, whole[k:k + 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize('known', ['each row', 'either level', 'nothing'])
def test_rows_on_both_sides_of_the_range(known):
    """A row in the time range is guided, its neighbour below is not, whether the host knows the levels or not."""
    guidance = DiscriminatorGuidance(exact_log_ratio(RIGHT, WRONG), 1)
    sigma = torch.tensor([guidance.sigma_low * 0.9, guidance.sigma_low * 1.1], dtype=torch.float64)
    x = latents(2).double() * 0.04
    at = {'each row': At(sigma), 'either level': At(sigma, either=True), 'nothing': At()}[known]
    denoise = guidance(MixtureNet(WRONG))
    correction = denoise(x, sigma, at=at) - MixtureNet(WRONG)(x, sigma)
    alone = guidance(MixtureNet(WRONG))(x[1:], sigma[1:]) - MixtureNet(WRONG)(x[1:], sigma[1:])
    assert torch.equal(correction[0], torch.zeros_like(x[0])) and alone.abs().max() > 0
    torch.testing.assert_close(correction[1:], alone, rtol=0, atol=1e-15)
    assert denoise.costs['discriminator_calls'].tolist() == ([1, 1] if known == 'either level' else [0, 1])


def test_rows_at_unlike_halves_of_a_step():
    """Each row gets the weight of its own half."""
    x, sigma, second = latents(3).double(), torch.full([3], 0.5, dtype=torch.float64), np.array([True, False, True])
    guidance = DiscriminatorGuidance(exact_log_ratio(RIGHT, WRONG), 2, 3)
    mixed = guidance(MixtureNet(WRONG))(x, sigma, at=At(sigma, second))
    halves = [guidance(MixtureNet(WRONG))(x, sigma, at=At(sigma, half)) for half in (False, True)]
    torch.testing.assert_close(mixed, torch.stack([halves[1][0], halves[0][1], halves[1][2]]), rtol=0, atol=1e-15)


def test_guidance_wraps_guidance():
    """Two guidances of half the weight are one of the whole weight."""
    half = DiscriminatorGuidance(exact_log_ratio(RIGHT, WRONG), 0.5, 0.5)
    both = run_edm(half(half(MixtureNet(WRONG))), latents(), num_steps=6)
    torch.testing.assert_close(both, guided(DiscriminatorGuidance(exact_log_ratio(RIGHT, WRONG), 1, 1), num_steps=6),
                               rtol=0, atol=1e-12)


def test_a_guidance_object_serves_many_batches():
    """It keeps no state from batch to batch."""
    guidance = DiscriminatorGuidance(exact_log_ratio(RIGHT, WRONG), 1, boosting=True)
    once = guided(guidance, randn_like=generator_noise())
    assert torch.equal(guided(guidance, randn_like=generator_noise()), once)
