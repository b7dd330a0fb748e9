"""The diagnostics of chains on autoregressive series, whose autocorrelation is known."""

import numpy as np
import pytest

from sampling import dmcmc_report


def series(phi, T=2000, chains=8, offset=0.0):
    """x_t = phi x_{t-1} + noise, [T, chains, 1], of variance 1; `offset`: spread of the chains' means."""
    rng = np.random.RandomState(0)
    x = np.zeros([T, chains, 1])
    x[0] = rng.standard_normal([chains, 1])
    for t in range(1, T):
        x[t] = phi * x[t - 1] + np.sqrt(1 - phi**2) * rng.standard_normal([chains, 1])
    return x + offset * np.arange(chains)[:, None]


@pytest.mark.parametrize('phi', [0.0, 0.5, 0.9])
def test_autocorrelation_and_effective_size(phi):
    rho = dmcmc_report.autocorrelation(series(phi))
    assert rho[[1, 2, 4], 0] == pytest.approx([phi, phi**2, phi**4], abs=0.05)
    size, = dmcmc_report.effective_sizes(rho, 16_000)
    assert size == pytest.approx(16_000 * (1 - phi) / (1 + phi), rel=0.15)


def test_chains_that_stay_apart_count_as_correlated():
    rho = dmcmc_report.autocorrelation(series(0.0, T=200, offset=5.0))
    assert dmcmc_report.effective_sizes(rho, 1600)[0] < 16


def test_details_and_what_is_said():
    sigmas, chains = np.geomspace(10, 0.1, 50), 8
    split = dict(langevin=10, integrator=17.0, tweedie=1, initialisation_per_chain=57)
    features = series(0.9, T=100).reshape(-1, 1)[:-3]  # the last output is cut
    report = dmcmc_report.details(features, np.arange(797) % 50, sigmas, chains, split)
    assert sum(report['start_sigma']['counts']) == 797 and min(report['start_sigma']['counts']) > 60
    assert report['effective_samples']['of'] == 99 * 8
    assert report['autocorrelation']['1'] == pytest.approx(0.9, abs=0.1)
    text = dmcmc_report.describe(report)
    assert '10 langevin, 17 integrator, 1 tweedie, 57 initialisation per chain' in text and 'Warning: ' in text
    short = dmcmc_report.details(features[:24], np.zeros(24, dtype=int), sigmas, chains, split)
    assert short['effective_samples'] is None and 'too few outputs' in dmcmc_report.describe(short)
