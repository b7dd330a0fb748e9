"""A wrong model of a right mixture in the plane, and diffusion rejection sampling on it; for test_diffrs*.py."""

import functools
import math

import numpy as np
import torch
from sampler_runs import run_edm

from diffusion.mixtures import GaussianMixture, MixtureNet, exact_log_ratio
from sampling import diffrs, diffrs_slots
from sampling.diffrs import calibrate, diffrs_sampler
from sampling.diffrs_rules import RULES, Thresholds, make_thresholds
from sampling.levels import edm_levels
from sampling.samples import Samples, draw_inputs

CORNERS = [[4.0, 0.0], [-2.0, 3.4641], [-2.0, -3.4641]]
MODEL, DATA = GaussianMixture(CORNERS, [0.7, 0.2, 0.1], 0.6), GaussianMixture(CORNERS, [0.25, 0.35, 0.4], 0.5)
NET, LOG_RATIO = MixtureNet(MODEL), exact_log_ratio(DATA, MODEL)
STEPS = 20
RULE_NAMES = list(RULES)
SCHEDULE = ('num_steps', 'sigma_max', 'S_churn', 'S_min', 'S_max', 'S_noise')


@functools.cache
def warmup(S_churn=0):
    seeds = range(diffrs.WARMUP_SEED, diffrs.WARMUP_SEED + 4000)
    return calibrate(NET, LOG_RATIO, seeds, batch=1000, levels=levels(S_churn=S_churn), progress=quiet)


def levels(num_steps=STEPS, **schedule):
    return edm_levels(NET, num_steps, **schedule)


def quiet(images):
    """Progress that is not shown."""


def sample(seeds, net=NET, log_ratio=LOG_RATIO, batch=500, **options):
    """All results of a run, joined: a dict of arrays."""
    schedule = {name: options.pop(name) for name in [*options] if name in SCHEDULE}
    options = dict(max_backsteps=STEPS) | options
    if 'thresholds' not in options:
        options['thresholds'] = warmup(schedule.get('S_churn', 0))
    found = Samples.joined(list(diffrs_sampler(
        net, seeds, log_ratio=log_ratio, batch=batch, levels=levels(**schedule), **options)))
    return dict(found.costs, images=found.images) | ({} if found.labels is None else dict(labels=found.labels))


def plain(seeds, **schedule):
    rnd, latents, _ = draw_inputs(NET, list(seeds), 'cpu')
    return run_edm(NET, latents, randn_like=rnd.randn_like, num_steps=STEPS, **schedule)


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


def acceptance_probability(log_ratio, previous, threshold):
    """The probability [N] that `rejects` lets a state pass: min(1, exp(l - l_prev) / M), except for FLOOR."""
    return (log_ratio - previous - threshold).exp().clip(max=1)


def expected_acceptance(calibration, limits) -> float:
    """The share of paths that the exact rule accepts at all levels: E min_k min(1, exp(l_k - c_k)) over the warm-up."""
    margin = (calibration.log_ratio - limits.after_step[:, None]).min(0)
    return float(np.exp(np.minimum(margin, 0)).mean())


def published_loop(seed, calibration, backsteps=1, min_backsteps=0, max_backsteps=STEPS, max_iter=math.inf, **schedule):
    """(image, evaluations in all) of one sample by the published loop, one step after the other, without slots."""
    run, limits = levels(**schedule), make_thresholds(calibration, 0.95, RULES['published'])
    rnd, latents, _ = draw_inputs(NET, [seed], 'cpu')
    decisions = np.random.default_rng([diffrs_slots.DECISIONS, seed])
    t = run.sigmas

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
        if run.noise[k] > 0:
            x = x + run.noise[k] * normal()
        h = t[k + 1] - run.raised[k]
        d = (x - NET(x, run.raised[k])) / run.raised[k]
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
