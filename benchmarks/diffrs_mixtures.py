"""Evidence for docs/equations.md: rejection rules on mixtures whose score and log-ratio are exact.

    python -m benchmarks.diffrs_mixtures [--mixture=weights|widths] [--n=5000] [--churn=0,40] [--percentile=0.9,0.99]

A wrong model of a right mixture of three components in the plane, 20 Heun steps. Printed: energy distance to the right
mixture relative to plain EDM's (unbiased estimate), that of the half that needed the fewest evaluations, evaluations
per sample, and the shares of the components.
"""

import time

import click
import numpy as np
import torch

from diffusion.mixtures import GaussianMixture, MixtureNet, exact_log_ratio
from dnnlib.cli import IntList
from sampling.diffrs import calibrate, diffrs_sampler, warmup_seeds
from sampling.diffrs_rules import RULES, Rule, Thresholds, make_thresholds
from sampling.edm import edm_sampler
from sampling.levels import edm_levels
from sampling.samples import sample

CORNERS = [[4.0, 0.0], [-2.0, 3.4641], [-2.0, -3.4641]]
MIXTURES = {  # (wrong model, right mixture)
    'weights': (GaussianMixture(CORNERS, [0.7, 0.2, 0.1], 0.6), GaussianMixture(CORNERS, [0.25, 0.35, 0.4], 0.5)),
    'widths': (GaussianMixture(CORNERS, [0.5, 0.3, 0.2], [1.0, 0.5, 0.7]),
               GaussianMixture(CORNERS, [0.2, 0.3, 0.5], 0.7)),
}
STEPS = 20
MOST_PATHS = 300  # per sample; a variant that needs more is predicted only
PATHWISE = Rule(rewinds=False, one_draw=False)  # the published test after a step; a rejection starts a new path


def unbiased_energy_distance(x, y):
    """2 E|X-Y| - E|X-X'| - E|Y-Y'| between samples [n, ...] and [m, ...], without pairs of a point with itself."""
    x, y = x.flatten(1).double(), y.flatten(1).double()
    n, m = len(x), len(y)
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).sum() / (n * (n - 1))
                 - torch.cdist(y, y).sum() / (m * (m - 1)))


def variants(calibration, percentile):
    """name -> (rule, thresholds): both rules, and the published one with one part changed at a time."""
    published = make_thresholds(calibration, percentile, RULES['published'])
    no_retest = np.full_like(published.after_rewind, -np.inf)
    no_retest[0] = published.after_rewind[0]
    return {
        'published': (RULES['published'], published),
        '- no clamp at 0': (RULES['published'],
                            make_thresholds(calibration, percentile, RULES['published'], clamp=False)),
        '- no test after a rewind': (RULES['published'], Thresholds(published.after_step, no_retest)),
        '- new path on rejection': (PATHWISE, published),
        'exact': (RULES['exact'], make_thresholds(calibration, percentile, RULES['exact'])),
        '- gamma for each level': (RULES['exact'], exact_thresholds(calibration, percentile, early=percentile)),
        '- no early tests': (RULES['exact'], exact_thresholds(calibration, percentile, early=None)),
    }


def exact_thresholds(calibration, percentile, early):
    """The exact rule's budget if the quantile of all tests before the last one is `early` (None: no such tests)."""
    l = calibration.log_ratio
    last = max(np.quantile(l[-1], percentile), 0)
    budget = np.full(len(l), -np.inf) if early is None else last - np.quantile(l[-1] - l, early, axis=1).clip(min=0)
    budget[-1] = last
    return Thresholds(budget, budget)


def paths_per_sample(calibration, limits):
    """Paths per sample if each step is tested by its own draw, predicted from the warm-up."""
    margin = np.diff(calibration.log_ratio, axis=0) - limits.after_step[1:, None]
    return 1 / np.exp(np.minimum(margin, 0).sum(0)).mean()


@click.command()
@click.option('--mixture', help='What is wrong in the model', type=click.Choice([*MIXTURES]), default='weights',
              show_default=True)
@click.option('--n', help='Samples of each kind', type=click.IntRange(min=100), default=5000, show_default=True)
@click.option('--churn', help='Values of S_churn', type=IntList(), default='0,40', show_default=True)
@click.option('--percentile', 'percentiles', help='Percentiles gamma', default='0.75,0.9,0.99', show_default=True)
@click.option('--max_iter', help='Cap of the evaluations of a sample', type=float, default=float('inf'),
              show_default=True)
@click.option('--only', help='Variants, by their names, separated by commas', metavar='LIST')
def main(mixture, n, churn, percentiles, max_iter, only):
    """Print the table."""
    torch.set_num_threads(1)
    model, data = MIXTURES[mixture]
    net, log_ratio = MixtureNet(model), exact_log_ratio(data, model)
    reference = data.sample(n, torch.Generator().manual_seed(1))
    floor = unbiased_energy_distance(data.sample(n, torch.Generator().manual_seed(2)), reference)
    print(f'{mixture}: n = {n}, seeds 0 to {n - 1}, warm-up of 4000 trajectories; S_churn in {churn}')
    for S_churn in churn:
        levels = edm_levels(net, STEPS, S_churn=S_churn)
        plain = sample(edm_sampler, net, range(n), batch=n, levels=levels, progress=False).images
        unguided = unbiased_energy_distance(plain, reference)
        calibration = calibrate(net, log_ratio, warmup_seeds(40), batch=1000, levels=levels)
        print(f'S_churn {S_churn}: energy distance of plain EDM {unguided:.4f}, of exact samples {floor:.5f}')
        print('percentile variant                    distance  quick half     NFE  max NFE  capped  shares'
              '               sec')
        for percentile in map(float, percentiles.split(',')):
            for name, (rule, limits) in variants(calibration, percentile).items():
                if only and name.removeprefix('- ') not in only.split(','):
                    continue
                if rule is PATHWISE and (paths := paths_per_sample(calibration, limits)) > MOST_PATHS:
                    print(f'{percentile:10.2f} {name:26s} about {paths:.0f} paths per sample, by the warm-up')
                    continue
                started = time.time()
                found = sample(diffrs_sampler, net, range(n), batch=1000, log_ratio=log_ratio, thresholds=limits,
                               rule=rule, max_backsteps=STEPS, max_iter=max_iter, levels=levels, progress=False)
                x, nfe, capped = found.images, found.costs['nfe'], np.mean(found.costs['cap_hits'] > 0)
                quick = x[np.argsort(nfe, kind='stable')[:n // 2]]
                shares = ' '.join(f'{np.mean(data.component(x).numpy() == k):.3f}' for k in range(3))
                print(f'{percentile:10.2f} {name:26s} {unbiased_energy_distance(x, reference) / unguided:9.4f} '
                      f'{unbiased_energy_distance(quick, reference) / unguided:11.4f} {nfe.mean():7.1f} '
                      f'{nfe.max():8d}  {capped:6.3f}  {shares}  {time.time() - started:8.1f}', flush=True)


if __name__ == '__main__':
    main()
