"""Diffusion rejection sampling: the distribution of its samples if score and log-ratio are exact."""

import functools
import math
import types

import numpy as np
import pytest
import torch
from diffrs_toy import (
    DATA,
    LOG_RATIO,
    MODEL,
    NET,
    RULE_NAMES,
    STEPS,
    acceptance_probability,
    data,
    distance,
    expected_acceptance,
    levels,
    plain,
    sample,
    warmup,
)

from diffusion.mixtures import MixtureNet, same_distribution_pvalue
from sampling import diffrs_rules as rules
from sampling.diffrs_rules import RULES, Thresholds, make_thresholds


@functools.cache
def run_at(rule, percentile, S_churn):
    """A run of 1000 to 6000 samples, which tests share: any part of it is what its seeds alone would give."""
    n = 6000 if S_churn else 2000 if percentile == 0.9 else 1000
    return sample(range(n), rule=rule, rej_percentile=percentile, S_churn=S_churn, batch=n // 2)


@functools.cache
def published_run_with_churn():
    """At 0.98, since it is far worse, and far slower, at 0.99; with fewer slots than samples."""
    return sample(range(300), rej_percentile=0.98, S_churn=40, batch=100)


def part(run, start, end):
    """The samples of some of the seeds of a run."""
    return {name: array[start:end] for name, array in run.items()}


@pytest.mark.parametrize('rule', RULE_NAMES)
def test_wrong_model_moves_to_the_right_distribution(rule):
    """A published prototype left 0.5, 0.2 and 0.01 of the distance of plain EDM."""
    n, reference = 1000, data(1000)
    unguided = distance(plain(range(n)), reference)
    left = [distance(run_at(rule, p, 0)['images'][:n], reference) / unguided for p in (0.75, 0.9, 0.99)]
    assert left[0] < 0.5 and left[1] < 0.2 and left[2] < 0.01, left


def test_exact_rule_draws_from_the_data():
    """With a bound M that holds (here percentile 1), samples cannot be told from data, with or without churn."""
    for S_churn in (0, 40):
        run = sample(range(1000), rule='exact', rej_percentile=1.0, S_churn=S_churn)
        assert same_distribution_pvalue(run['images'], data(1000), permutations=200) > 0.02
    assert same_distribution_pvalue(plain(range(1000)), data(1000), permutations=200) < 0.01


def test_exact_rule_is_not_biased_by_its_early_tests():
    """Shares of the components at percentile 0.99 with churn within four standard errors.

    Separate budgets at 0.99 for each level gave the third 0.367 instead of 0.4, since the chances of 20 levels add up.
    """
    run, expected = run_at('exact', 0.99, 40), DATA.weights.numpy()
    n = len(run['images'])
    shares = np.bincount(DATA.component(run['images']).numpy(), minlength=3) / n
    assert (np.abs(shares - expected) < 4 * np.sqrt(expected * (1 - expected) / n)).all(), shares


def test_a_tight_cap_selects_quick_paths_under_the_published_rule_only():
    """docs/equations.md: samples that need many evaluations start again, so the distribution moves to quick ones."""
    pvalues = {}
    for rule in RULE_NAMES:
        free = part(run_at(rule, 0.9, 0), 0, 1000)
        capped = sample(range(1000, 2000), rule=rule, rej_percentile=0.9, max_iter=2 * STEPS + 1)
        assert np.mean(capped['cap_hits'] > 0) > 0.3
        pvalues[rule] = same_distribution_pvalue(free['images'], capped['images'], permutations=200)
    assert pvalues['published'] < 0.01 < 0.02 < pvalues['exact'], pvalues


@pytest.mark.parametrize('rule', RULE_NAMES)
def test_rounding_flips_decisions_and_not_the_distribution(rule):
    """Networks rounded to bfloat16 (coarser than `--precision=bf16`, whose sums are float32) and other seeds.

    Single samples change, their distribution does not; a log-ratio off by a factor of 1.5 is detected.
    """
    def rounded(function):
        return lambda *args: function(*args).bfloat16().double()

    net, options = MixtureNet(MODEL), dict(rule=rule, rej_percentile=0.9, batch=1000)
    net.mixture = types.SimpleNamespace(denoiser=rounded(MODEL.denoiser))
    run = functools.partial(sample, range(1000, 2000), thresholds=warmup(), **options)
    exact, half = part(run_at(rule, 0.9, 0), 1000, 2000), run(net=net, log_ratio=rounded(LOG_RATIO))
    assert 0 < np.mean(exact['nfe'] != half['nfe']) < 0.2  # decisions do flip
    others = run_at(rule, 0.9, 0)['images'][:1000]
    assert same_distribution_pvalue(half['images'], others, permutations=200) > 0.02
    wrong = run(log_ratio=lambda *args: 1.5 * LOG_RATIO(*args))
    assert same_distribution_pvalue(wrong['images'], others, permutations=200) < 0.01


def test_churn_breaks_the_published_rule_and_not_the_exact_one():
    """docs/equations.md: after a rewind the published rule weights by the ratio once more."""
    reference = data(1500)
    unguided = distance(plain(range(1500), S_churn=40), reference)
    published = published_run_with_churn()
    exact = part(run_at('exact', 0.99, 40), 0, 1500)
    # the model has too little of the third component, the published rule ends with too much of it
    share = [(DATA.component(run['images']) == 2).double().mean().item() for run in (published, exact)]
    assert share[0] > 0.55 and abs(share[1] - 0.4) < 0.06, share
    left = [distance(run['images'], reference) / unguided for run in (published, exact)]
    assert left[0] > 0.2 and left[1] < 0.02, left
    assert exact['nfe'].mean() < published['nfe'].mean()


@pytest.mark.parametrize('level', [13, 15, 17])
def test_published_rule_weighs_rewound_states_twice(level):
    """States distributed as the data, p, take a step with churn; rejected ones go back and pass the marginal test.

    Below sigma 1 the components are separate and their shares among the rejected states are still those of p; after
    the marginal test they are those of p^2/q, q being the model (docs/equations.md). Within four standard errors.
    """
    generator = torch.Generator().manual_seed(level)
    run, limits = levels(S_churn=40), make_thresholds(warmup(40), 0.99, RULES['published'])
    n, (t, t_next) = 40000, run.sigmas[level:level + 2]

    def randn(n):
        return torch.randn([n, 2, 1, 1], dtype=torch.float64, generator=generator)

    def uniform(n):
        return torch.rand([n], dtype=torch.float64, generator=generator)

    x = data(n, seed=level).reshape(n, 2, 1, 1) + t * randn(n)
    t_hat = run.raised[level]
    x_hat = x + run.noise[level] * randn(n)
    first, second = torch.zeros(n, dtype=torch.bool), torch.ones(n, dtype=torch.bool)
    euler, d = rules.propose(x_hat, x_hat, x_hat, t_hat, t_next - t_hat, NET(x_hat, t_hat), first)
    y, _ = rules.propose(euler, x_hat, d, t_next, t_next - t_hat, NET(euler, t_next), second)
    rejected = rules.rejects(LOG_RATIO(y, t_next), LOG_RATIO(x, t), limits.after_step[level + 1], uniform(n))
    back = y[rejected]
    back = rules.rewind(back, t_next.expand(len(back)), t.expand(len(back)), randn(len(back)))
    passed = back[~rules.rejects(LOG_RATIO(back, t), 0.0, limits.after_rewind[level], uniform(len(back)))]

    p, q = DATA.weights.numpy(), MODEL.weights.numpy()
    twice = p ** 2 / q / (p ** 2 / q).sum()
    for states, expected in ((back, p), (passed, twice)):
        shares = np.bincount(DATA.component(states).numpy(), minlength=3) / len(states)
        assert (np.abs(shares - expected) < 4 * np.sqrt(expected * (1 - expected) / len(states)) + 0.01).all(), shares
    assert abs(twice[2] - 0.695) < 1e-3


def test_exact_rule_needs_as_many_paths_as_predicted():
    for percentile, S_churn in ((0.9, 0), (0.99, 40)):
        calibration = warmup(S_churn)
        limits = make_thresholds(calibration, percentile, RULES['exact'])
        predicted = 1 / expected_acceptance(calibration, limits)
        paths = 1 + run_at('exact', percentile, S_churn)['rejections'][:2000].sum(1)
        # geometric numbers of paths, and a prediction from 4000 trajectories
        error = predicted * math.sqrt(1 - 1 / predicted) * math.sqrt(1 / 2000 + 1 / 4000)
        assert abs(paths.mean() - predicted) < 4 * error


def test_acceptance_rate_of_the_prior_and_of_the_first_step():
    """At level 0 the share E min(1, L_0 / M) passes, and after one step the share min(1, L_1 / (L_0 M_1)) of those."""
    limits = Thresholds(np.full(STEPS + 1, 0.5), np.full(STEPS + 1, 0.3))
    run = sample(range(3000), thresholds=limits, max_backsteps=1, sigma_max=6)
    rate = 1 - run['rejections'].sum(0)[:2] / run['tests'].sum(0)[:2]
    # The same by sums over independent draws.
    sigmas = levels(sigma_max=6).sigmas
    noise = torch.randn([40000, 2, 1, 1], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    l0 = LOG_RATIO(sigmas[0] * noise, sigmas[0])
    passed = acceptance_probability(l0, 0.0, 0.3)
    assert abs(rate[0] - float(passed.mean())) < 0.03
    d = (sigmas[0] * noise - NET(sigmas[0] * noise, sigmas[0])) / sigmas[0]
    x1 = sigmas[0] * noise + (sigmas[1] - sigmas[0]) * d
    d = 0.5 * d + 0.5 * (x1 - NET(x1, sigmas[1])) / sigmas[1]
    l1 = LOG_RATIO(sigmas[0] * noise + (sigmas[1] - sigmas[0]) * d, sigmas[1])
    expected = float((passed * acceptance_probability(l1, l0, 0.5)).sum() / passed.sum())
    # rewound states start at level 0 like others, but are not independent draws: a loose bound
    assert abs(rate[1] - expected) < 0.05


# Slow samples.

def test_slow_samples_are_waited_for():
    run = published_run_with_churn()
    assert len(run['images']) == 300 and run['nfe'].max() > 3 * np.median(run['nfe'])


def test_dropping_slow_samples_would_bias_the_published_rule_only():
    """The quicker half of the samples (a quota filled by the first to finish) differs from the other half."""
    pvalues = {}
    for rule in RULE_NAMES:
        run = part(run_at(rule, 0.9, 0), 0, 1600)
        order = np.random.default_rng(0).permutation(1600)
        order = order[np.argsort(run['nfe'][order], kind='stable')]
        quick, slow = run['images'][order[:800]], run['images'][order[800:]]
        pvalues[rule] = same_distribution_pvalue(quick, slow, permutations=200)
    assert pvalues['published'] < 0.01 < 0.02 < pvalues['exact'], pvalues
