"""A wrong model of a right mixture in the plane, and diffusion rejection sampling on it; for test_diffrs*.py."""

import functools
import math

import numpy as np
import torch

from benchmarks.mixtures import GaussianMixture, MixtureNet, exact_log_ratio
from sampling import diffrs, diffrs_slots
from sampling.diffrs import calibrate, diffrs_sampler, make_grid
from sampling.diffrs_rules import RULES, Thresholds, thresholds
from sampling.edm import edm_sampler
from sampling.inputs import draw_inputs

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


def published_loop(seed, calibration, backsteps=1, min_backsteps=0, max_backsteps=STEPS, max_iter=math.inf, **schedule):
    """(image, evaluations in all) of one sample by the published loop, step after step, without slots."""
    grid, limits = make_grid(NET, STEPS, **schedule), thresholds(calibration, 0.95, RULES['published'])
    rnd, latents, _ = draw_inputs(NET, [seed], 'cpu')
    decisions = np.random.default_rng([diffrs_slots.DECISIONS, seed])
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
