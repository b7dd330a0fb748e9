"""Diffusion rejection sampling where score and log-ratio are exact: Gaussian mixtures in the plane."""

import functools
import itertools
import math
import types

import numpy as np
import pytest
import torch
from mixtures import GaussianMixture, MixtureNet, exact_log_ratio, same_distribution_pvalue

from sampling import diffrs
from sampling import diffrs_rules as rules
from sampling.diffrs import calibrate, diffrs_sampler, make_grid
from sampling.diffrs_rules import RULES, Thresholds, acceptance_probability, expected_acceptance, thresholds
from sampling.edm import edm_sampler
from sampling.guidance import DiscriminatorGuidance
from sampling.padding import Padded
from sampling.runner import draw_inputs

CORNERS = [[4.0, 0.0], [-2.0, 3.4641], [-2.0, -3.4641]]
MODEL, DATA = GaussianMixture(CORNERS, [0.7, 0.2, 0.1], 0.6), GaussianMixture(CORNERS, [0.25, 0.35, 0.4], 0.5)
NET, LOG_RATIO = MixtureNet(MODEL), exact_log_ratio(DATA, MODEL)
STEPS = 20
RULE_NAMES = list(RULES)


@functools.cache
def warmup(S_churn=0):
    seeds = range(diffrs.WARMUP_SEED, diffrs.WARMUP_SEED + 4000)
    return calibrate(NET, LOG_RATIO, seeds, batch_size=1000, num_steps=STEPS, S_churn=S_churn)


def sample(seeds, net=NET, log_ratio=LOG_RATIO, batch_size=500, num_steps=STEPS, **options):
    """All results of a run as one: a dict of arrays."""
    options = dict(max_backsteps=STEPS) | options
    if 'thresholds' not in options:
        options['thresholds'] = warmup(options.get('S_churn', 0))
    parts = list(diffrs_sampler(net, log_ratio, seeds, batch_size=batch_size, num_steps=num_steps, **options))
    arrays = {name: np.concatenate([getattr(part, name) for part in parts])
              for name in ('seeds', 'nfe', 'discriminator_calls', 'tests', 'rejections', 'cap_hits')}
    arrays['images'] = torch.cat([part.images for part in parts])
    if parts[0].labels is not None:
        arrays['labels'] = torch.cat([part.labels for part in parts])
    return arrays


def plain(seeds, **schedule):
    rnd, latents, _ = draw_inputs(NET, list(seeds), 'cpu')
    return edm_sampler(NET, latents, randn_like=rnd.randn_like, num_steps=STEPS, **schedule)


def distance(x, y):
    """Unbiased energy distance."""
    x, y = x.flatten(1), y.flatten(1)
    n, m = len(x), len(y)
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).sum() / (n * (n - 1))
                 - torch.cdist(y, y).sum() / (m * (m - 1)))


def data(n, seed=1):
    return DATA.sample(n, torch.Generator().manual_seed(seed))


def always(value):
    return Thresholds(np.full(STEPS + 1, value), np.full(STEPS + 1, value))


# What rejection must not change.

@pytest.mark.parametrize('schedule', [{}, dict(S_churn=40, S_noise=1.003), dict(S_churn=40, S_min=0.05, S_max=10)])
@pytest.mark.parametrize('rule', RULE_NAMES)
def test_always_accepting_is_edm(rule, schedule):
    run = sample(range(60), thresholds=always(-math.inf), rule=rule, batch_size=16, **schedule)
    torch.testing.assert_close(run['images'], plain(range(60), **schedule), rtol=1e-12, atol=1e-12)
    assert (run['nfe'] == 2 * STEPS - 1).all() and (run['tests'] == 1).all() and not run['rejections'].any()


def test_guidance_composes_with_rejection():
    guidance = DiscriminatorGuidance(LOG_RATIO, weight_1st=1.0, weight_2nd=1.0)
    run = sample(range(40), thresholds=always(-math.inf), batch_size=8, guidance=guidance)
    rnd, latents, _ = draw_inputs(NET, list(range(40)), 'cpu')
    expected = edm_sampler(NET, latents, randn_like=rnd.randn_like, num_steps=STEPS, guidance=guidance)
    torch.testing.assert_close(run['images'], expected, rtol=1e-10, atol=1e-10)
    t_hat, t_steps = (torch.from_numpy(levels) for levels in (make_grid(NET, STEPS).t_hat,
                                                              make_grid(NET, STEPS).t_steps))
    guided = int(guidance.acts(t_hat).sum() + guidance.acts(t_steps[1:-1]).sum())
    assert (run['discriminator_calls'] == STEPS + 1 + guided).all()
    rejecting = sample(range(40), guidance=guidance, rej_percentile=0.9)
    assert rejecting['rejections'].sum() > 0 and rejecting['images'].isfinite().all()


@pytest.mark.parametrize('options', [dict(rule='published'), dict(rule='exact'), dict(rule='published', S_churn=40),
                                     dict(rule='published', max_iter=60, backsteps=3), dict(min_backsteps=4),
                                     dict(min_backsteps=1, backsteps=2)])
def test_sample_depends_on_its_seed_alone(options):
    """Any batch size, any order, any company: the same image, at the same cost."""
    options = dict(rej_percentile=0.95) | options
    all_of_them = sample(range(30), batch_size=64, **options)
    assert all_of_them['rejections'].sum() > 20
    for seeds, batch_size in ((range(12), 1), (range(30), 7), ([23, 4, 18, 29], 2), (range(20, 30), 3)):
        some = sample(seeds, batch_size=batch_size, **options)
        rows = list(seeds)
        assert some['seeds'].tolist() == rows
        torch.testing.assert_close(some['images'], all_of_them['images'][rows], rtol=1e-9, atol=1e-9)
        for name in ('nfe', 'discriminator_calls', 'tests', 'rejections', 'cap_hits'):
            assert np.array_equal(some[name], all_of_them[name][rows]), name


def published_loop(seed, calibration, backsteps=1, min_backsteps=0, max_backsteps=STEPS, max_iter=math.inf, **schedule):
    """(image, evaluations in all) of one sample by the published loop, step after step, without slots."""
    grid, limits = make_grid(NET, STEPS, **schedule), thresholds(calibration, 0.95, RULES['published'])
    rnd, latents, _ = draw_inputs(NET, [seed], 'cpu')
    decisions = np.random.default_rng([diffrs.DECISIONS, seed])
    t = torch.from_numpy(grid.t_steps)

    def normal():
        return torch.randn(latents.shape, generator=rnd.generators[0], dtype=torch.float64)

    def judge(k, limit):  # (whether the state is rejected, its log-ratio)
        value = float(LOG_RATIO(x, t[k]))
        return value < limit + math.log(decisions.random() + 1e-7), value

    x, k, before, nfe, all_nfe = t[0] * latents.double(), 0, 0.0, 0, 0
    while k < STEPS:
        while k == 0 == min_backsteps:
            rejected, before = judge(0, limits.after_rewind[0])
            if not rejected:
                break
            x = t[0] * normal()
        if grid.noise[k] > 0:
            x = x + grid.noise[k] * normal()
        h = t[k + 1] - grid.t_hat[k]
        d = (x - NET(x, torch.tensor(grid.t_hat[k]))) / grid.t_hat[k]
        euler = x + h * d
        x = x + h * (d + (euler - NET(euler, t[k + 1])) / t[k + 1]) / 2 if k < STEPS - 1 else euler
        k, nfe, all_nfe = k + 1, nfe + 1 + (k < STEPS - 1), all_nfe + 1 + (k < STEPS - 1)
        limit = limits.after_step[k] + before
        while min_backsteps < k <= max_backsteps:
            rejected, value = judge(k, limit)
            if not rejected:
                before = value
                break
            back = max(k - backsteps, 0)
            x = x + (t[back] ** 2 - t[k] ** 2).sqrt() * normal()
            k, limit = back, limits.after_rewind[back]
        if nfe + 2 * STEPS - 1 - 2 * k > max_iter:
            x, k, before, nfe = t[0] * normal(), 0, 0.0, 0
    return x[0], all_nfe


@pytest.mark.parametrize('options', [
    {}, dict(min_backsteps=4), dict(min_backsteps=1, backsteps=2), dict(backsteps=3, max_iter=60),
    dict(S_churn=40, max_backsteps=12), dict(S_churn=10, min_backsteps=3, max_iter=50)])
def test_slots_do_what_the_published_loop_does(options):
    calibration = warmup(options.get('S_churn', 0))
    run = sample(range(40), thresholds=calibration, rej_percentile=0.95, batch_size=8, **options)
    expected = [published_loop(seed, calibration, **options) for seed in range(40)]
    assert run['nfe'].tolist() == [nfe for _, nfe in expected] and run['rejections'].sum() > 20
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
    options = dict(net=net, log_ratio=labelled_log_ratio, rej_percentile=0.95, batch_size=8)
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

    results = diffrs_sampler(NET, LOG_RATIO, seeds(), batch_size=4, num_steps=STEPS, thresholds=warmup())
    drawn = list(itertools.islice(itertools.chain.from_iterable(r.seeds.tolist() for r in results), 40))
    assert drawn == list(range(40)) and 40 <= len(taken) <= 60


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

    run = sample(range(300), net=Net(MODEL), log_ratio=log_ratio, batch_size=10, rej_percentile=0.9)
    assert sum(sizes) == run['nfe'].sum() and sum(ratio_sizes) == run['discriminator_calls'].sum()
    assert np.mean(np.array(sizes) == 10) > 0.93 and np.mean(np.array(ratio_sizes) == 10) > 0.9
    first_short = next(i for i, size in enumerate(sizes) if size < 10)
    assert first_short > 0.9 * len(sizes)


# The cap and the range of tests.

@pytest.mark.parametrize('rule', RULE_NAMES)
def test_cap(rule):
    run = sample(range(400), rule=rule, rej_percentile=0.99, max_iter=50)
    free = sample(range(400), rule=rule, rej_percentile=0.99)
    assert run['cap_hits'].sum() > 20 and not free['cap_hits'].any()
    assert (run['nfe'][run['cap_hits'] == 0] <= 50).all()
    assert (run['nfe'][run['cap_hits'] > 0] > 2 * STEPS - 1).all()  # what a restart threw away is counted
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
    run = sample(range(100), rej_percentile=0.95, backsteps=7)  # in the published script: level -6, noise level 0
    assert run['images'].isfinite().all() and run['rejections'][:, 1:7].sum() > 0


def test_sample_that_is_never_accepted(monkeypatch):
    monkeypatch.setattr(diffrs, 'HOPELESS', 30)
    with pytest.raises(diffrs.HopelessSample, match='seed 7 was rejected 30 times'):
        sample([7], thresholds=always(math.inf))


def test_contradictions():
    with pytest.raises(ValueError, match='boosting'):
        sample([0], guidance=DiscriminatorGuidance(LOG_RATIO, boosting=True))
    with pytest.raises(ValueError, match='without trajectories'):
        sample([0], thresholds=None, iter_warmup=0)
    with pytest.raises(ValueError, match='calibrate again'):
        sample([0], num_steps=9)


def test_warmup_is_plain_edm_and_its_own_default():
    x = plain(range(diffrs.WARMUP_SEED, diffrs.WARMUP_SEED + 100))
    found = calibrate(NET, LOG_RATIO, batch_size=64, num_steps=STEPS)
    assert found.log_ratio.shape == (STEPS + 1, 1000)
    np.testing.assert_allclose(found.log_ratio[-1, :100], LOG_RATIO(x, 0.0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(calibrate(NET, LOG_RATIO, batch_size=999, num_steps=STEPS).log_ratio, found.log_ratio,
                               rtol=0, atol=2e-6)
    own = sample(range(20), thresholds=None, iter_warmup=10)
    assert np.array_equal(own['nfe'], sample(range(20), thresholds=found)['nfe'])


# The distribution.

@pytest.mark.parametrize('rule', RULE_NAMES)
def test_wrong_model_moves_to_the_right_distribution(rule):
    """A published prototype left 0.5, 0.2 and 0.01 of the distance of plain EDM."""
    n, reference = 3000, data(3000)
    unguided = distance(plain(range(n)), reference)
    left = [distance(sample(range(n), rule=rule, rej_percentile=p)['images'], reference) / unguided
            for p in (0.75, 0.9, 0.99)]
    assert left[0] < 0.5 and left[1] < 0.2 and left[2] < 0.01, left


def test_exact_rule_draws_from_the_data():
    """With a bound M that holds (here percentile 1), nothing tells samples from data, churn or none."""
    for S_churn in (0, 40):
        run = sample(range(1000), rule='exact', rej_percentile=1.0, S_churn=S_churn)
        assert same_distribution_pvalue(run['images'], data(1000), permutations=200) > 0.02
    assert same_distribution_pvalue(plain(range(1000)), data(1000), permutations=200) < 0.01


def test_exact_rule_is_not_biased_by_its_early_tests():
    """Shares of the components at percentile 0.99 with churn within four standard errors.

    Budgets at 0.99 for each level by itself gave the third 0.367 instead of 0.4: a path had 20 chances to be wronged.
    """
    n, expected = 6000, DATA.weights.numpy()
    run = sample(range(n), rule='exact', rej_percentile=0.99, S_churn=40, batch_size=1500)
    shares = np.bincount(DATA.component(run['images']).numpy(), minlength=3) / n
    assert (np.abs(shares - expected) < 4 * np.sqrt(expected * (1 - expected) / n)).all(), shares


def test_a_tight_cap_selects_quick_paths_under_the_published_rule_alone():
    """docs/equations.md: what needs many evaluations begins anew, so the law moves towards what is quick."""
    pvalues = {}
    for rule in RULE_NAMES:
        free, capped = (sample(seeds, rule=rule, rej_percentile=0.9, max_iter=cap)
                        for seeds, cap in ((range(1000), math.inf), (range(1000, 2000), 2 * STEPS + 1)))
        assert np.mean(capped['cap_hits'] > 0) > 0.3
        pvalues[rule] = same_distribution_pvalue(free['images'], capped['images'], permutations=200)
    assert pvalues['published'] < 0.01 < 0.02 < pvalues['exact'], pvalues


@pytest.mark.parametrize('rule', RULE_NAMES)
def test_rounding_flips_decisions_and_not_the_distribution(rule):
    """Networks rounded to bfloat16 (coarser than `--precision=bf16`, whose sums are float32) and other seeds.

    Single samples change, their law does not; a log-ratio off by a factor of 1.5 is told apart.
    """
    def rounded(function):
        return lambda *args: function(*args).bfloat16().double()

    net, options = MixtureNet(MODEL), dict(rule=rule, rej_percentile=0.9, batch_size=1000)
    net.mixture = types.SimpleNamespace(denoiser=rounded(MODEL.denoiser))
    run = functools.partial(sample, range(1000, 2000), thresholds=warmup(), **options)
    exact, half = sample(range(1000, 2000), **options), run(net=net, log_ratio=rounded(LOG_RATIO))
    assert 0 < np.mean(exact['nfe'] != half['nfe']) < 0.2  # decisions do flip
    others = sample(range(1000), **options)['images']
    assert same_distribution_pvalue(half['images'], others, permutations=200) > 0.02
    wrong = run(log_ratio=lambda *args: 1.5 * LOG_RATIO(*args))
    assert same_distribution_pvalue(wrong['images'], others, permutations=200) < 0.01


def test_churn_breaks_the_published_rule_and_not_the_exact_one():
    """docs/equations.md: after a rewind the published rule weighs by the log-ratio once more."""
    reference = data(1500)
    unguided = distance(plain(range(1500), S_churn=40), reference)
    published = sample(range(500), rej_percentile=0.98, S_churn=40)  # far worse, and far slower, at 0.99
    exact = sample(range(1500), rule='exact', rej_percentile=0.99, S_churn=40)
    # the model has too little of the third component, the published rule ends with too much of it
    share = [(DATA.component(run['images']) == 2).double().mean().item() for run in (published, exact)]
    assert share[0] > 0.55 and abs(share[1] - 0.4) < 0.06, share
    left = [distance(run['images'], reference) / unguided for run in (published, exact)]
    assert left[0] > 0.2 and left[1] < 0.02, left
    assert exact['nfe'].mean() < published['nfe'].mean()


@pytest.mark.parametrize('level', [13, 15, 17])
def test_published_rule_weighs_rewound_states_twice(level):
    """States of the data's law p are proposed on with churn; those rejected go back and pass the marginal test.

    Below sigma 1 the components are apart and their shares of the rejected states are still p's; after the
    marginal test they are those of p^2/q, q the model (docs/equations.md). Within four standard errors.
    """
    generator = torch.Generator().manual_seed(level)
    grid, limits = make_grid(NET, STEPS, S_churn=40), thresholds(warmup(40), 0.99, RULES['published'])
    n, (t, t_next) = 40000, torch.from_numpy(grid.t_steps[level:level + 2])

    def randn(n):
        return torch.randn([n, 2, 1, 1], dtype=torch.float64, generator=generator)

    def uniform(n):
        return torch.rand([n], dtype=torch.float64, generator=generator)

    x = data(n, seed=level).reshape(n, 2, 1, 1) + t * randn(n)
    t_hat = torch.tensor(grid.t_hat[level])
    x_hat = x + grid.noise[level] * randn(n)
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
        limits = thresholds(calibration, percentile, RULES['exact'])
        predicted = 1 / expected_acceptance(calibration, limits, range(STEPS + 1))
        paths = 1 + sample(range(2000), rule='exact', rej_percentile=percentile, S_churn=S_churn)['rejections'].sum(1)
        # geometric numbers of paths, and a prediction from 4000 trajectories
        error = predicted * math.sqrt(1 - 1 / predicted) * math.sqrt(1 / 2000 + 1 / 4000)
        assert abs(paths.mean() - predicted) < 4 * error


def test_acceptance_rate_of_the_prior_and_of_the_first_step():
    """Level 0 passes the share E min(1, L_0 / M); what has passed, goes one step and passes min(1, L_1 / (L_0 M_1))."""
    wide = dict(num_steps=STEPS, sigma_max=6)
    calibration = calibrate(NET, LOG_RATIO, range(1), **wide)
    limits = Thresholds(np.full(STEPS + 1, 0.5), np.full(STEPS + 1, 0.3))
    run = sample(range(3000), thresholds=limits, max_backsteps=1, sigma_max=6)
    rate = 1 - run['rejections'].sum(0)[:2] / run['tests'].sum(0)[:2]
    # The same by plain sums over independent draws.
    sigmas = torch.from_numpy(calibration.sigmas)
    noise = torch.randn([40000, 2, 1, 1], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    l0 = LOG_RATIO(sigmas[0] * noise, sigmas[0])
    passed = acceptance_probability(l0, 0.0, 0.3)
    assert abs(rate[0] - float(passed.mean())) < 0.03
    d = (sigmas[0] * noise - NET(sigmas[0] * noise, sigmas[0])) / sigmas[0]
    x1 = sigmas[0] * noise + (sigmas[1] - sigmas[0]) * d
    d = 0.5 * d + 0.5 * (x1 - NET(x1, sigmas[1])) / sigmas[1]
    l1 = LOG_RATIO(sigmas[0] * noise + (sigmas[1] - sigmas[0]) * d, sigmas[1])
    expected = float((passed * acceptance_probability(l1, l0, 0.5)).sum() / passed.sum())
    # rewound states begin at level 0 as others do, but are not independent draws: a loose bound
    assert abs(rate[1] - expected) < 0.05


# Slow samples.

def test_slow_samples_are_waited_for():
    run = sample(range(100), rej_percentile=0.97, S_churn=40, batch_size=20)
    assert run['seeds'].tolist() == list(range(100)) and run['nfe'].max() > 3 * np.median(run['nfe'])


def test_dropping_slow_samples_would_bias_the_published_rule_alone():
    """The quicker half of the samples (a quota filled by the first to come) differs from the other half."""
    pvalues = {}
    for rule in RULE_NAMES:
        run = sample(range(1600), rule=rule, rej_percentile=0.9)
        order = np.random.default_rng(0).permutation(1600)
        order = order[np.argsort(run['nfe'][order], kind='stable')]
        quick, slow = run['images'][order[:800]], run['images'][order[800:]]
        pvalues[rule] = same_distribution_pvalue(quick, slow, permutations=200)
    assert pvalues['published'] < 0.01 < 0.02 < pvalues['exact'], pvalues


def test_padded_networks_see_one_shape():
    """One noise level or one for each row, a full batch or a part of one: a compiled network is compiled once."""
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
    """Guidance asks for as many rows as are in that half of a step; its gradients round as ever too."""
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
