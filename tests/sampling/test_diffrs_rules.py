"""The decisions of diffusion rejection sampling, function by function."""

import json

import numpy as np
import pytest
import torch
from diffrs_toy import acceptance_probability

from sampling import diffrs_rules as rules
from sampling.diffrs_rules import RULES, Calibration

SIGMAS = np.array([80.0, 5.0, 0.5, 0.0])


def calibration(trajectories=11):
    return Calibration(SIGMAS, np.random.RandomState(0).standard_normal([4, trajectories]))


def test_published_thresholds_are_quantiles():
    """Linear interpolation; after a step of the increments (level 0 has none), else of the log-ratios."""
    l = np.array([[0.0, 1.0, 2.0], [3.0, 3.0, 3.5], [-4.0, -6.0, -9.0], [0.0, 0.0, 0.0]])
    found = rules.make_thresholds(Calibration(SIGMAS, l), 0.75, RULES['published'], clamp=False)
    np.testing.assert_allclose(found.after_rewind, [1.5, 3.25, -5.0, 0.0])
    np.testing.assert_allclose(found.after_step, [0.0, 2.5, -8.0, 7.5])
    found = rules.make_thresholds(Calibration(SIGMAS, l), 0.75, RULES['published'])
    np.testing.assert_allclose(found.after_rewind, [1.5, 3.25, 0.0, 0.0])
    np.testing.assert_allclose(found.after_step, [0.0, 2.5, 0.0, 7.5])


def test_exact_thresholds_are_budgets():
    """c_k + a later rise of l stays within c_m, at all levels together for the given share of trajectories."""
    warm = calibration(1001)
    l = warm.log_ratio
    for last_level in (None, 2):
        m = 3 if last_level is None else last_level
        found = rules.make_thresholds(warm, 0.9, RULES['exact'], last_level=last_level)
        assert found.after_step is found.after_rewind
        assert found.after_step[m] == pytest.approx(np.quantile(l[m], 0.9))
        room = found.after_step[m] - found.after_step[:m, None]
        within = l[m] - l[:m] <= room + 1e-9  # [m, trajectories]
        np.testing.assert_allclose(within.mean(1), 1 - 0.1 / m, atol=2e-3)
        assert within.all(0).mean() >= 0.9


def test_percentile_out_of_range():
    with pytest.raises(ValueError, match='between 0 and 1'):
        rules.make_thresholds(calibration(), 75, RULES['published'])


def test_step_acceptance():
    """Published: each increment against its threshold; exact: each log-ratio against its budget."""
    l = np.array([[0.0, 0.0], [1.0, -1.0], [2.0, -3.0], [2.0, -2.0]])
    limits = rules.Thresholds(np.array([0.0, 0.5, 1.0, 0.0]), np.zeros(4))
    found = rules.step_acceptance(Calibration(SIGMAS, l), limits, RULES['published'])
    np.testing.assert_allclose(found, [(1 + np.exp(-1.5)) / 2, (1 + np.exp(-3)) / 2, 1.0])
    found = rules.step_acceptance(Calibration(SIGMAS, l), limits, RULES['exact'])
    np.testing.assert_allclose(found, [(1 + np.exp(-1.5)) / 2, (1 + np.exp(-4)) / 2, (1 + np.exp(-2)) / 2])


def test_rejection_and_its_probability_agree():
    l = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    for previous, threshold in ((0.0, 0.0), (0.7, 0.4), (-1.0, -0.3)):
        share = 1 - rules.rejects(l, previous, threshold, u).double().mean(1)
        torch.testing.assert_close(share, acceptance_probability(l[:, 0], previous, threshold), rtol=0, atol=1e-4)
    # u = 0 is a draw like others, and rejects impossible states
    assert rules.rejects(torch.tensor([-20.0, -10.0]), 0.0, 0.0, torch.zeros(2)).tolist() == [True, False]
    assert not rules.rejects(torch.tensor([float('nan')]), 0.0, 0.0, torch.ones(1)).any()


def test_propose_is_a_heun_step():
    """dx/dsigma = (x - D) / sigma with D = 0: Heun from 2 to 1 takes x to x (1 - 1/2 (1/2 + 1/2)) = x / 2."""
    x = torch.tensor([4.0, -2.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    one, zero = torch.ones(2, dtype=torch.float64), torch.zeros_like(x)
    first, second = torch.tensor([False, False]), torch.tensor([True, True])
    euler, d = rules.propose(x, x, zero, 2 * one, -one, zero, first)
    torch.testing.assert_close(euler, x / 2)
    heun, _ = rules.propose(euler, x, d, one, -one, zero, second)
    torch.testing.assert_close(heun, x / 2)
    # rows in different halves do not affect each other
    mixed, _ = rules.propose(torch.stack([x[0], euler[1]]), x, d, torch.stack([2 * one[0], one[1]]), -one, zero,
                             torch.tensor([False, True]))
    torch.testing.assert_close(mixed, torch.stack([euler[0], heun[1]]))


def test_rewinding_gives_the_noise_of_the_level():
    noise = torch.randn([100000, 1, 1, 1], dtype=torch.float64)
    x = 0.5 * torch.randn([100000, 1, 1, 1], dtype=torch.float64)
    back = rules.rewind(x, torch.tensor([0.5] * 100000), torch.tensor([5.0] * 100000), noise)
    assert back.std().item() == pytest.approx(5.0, rel=0.01)
    assert rules.rewound_level(np.array([5, 1, 0]), 2).tolist() == [3, 0, 0]


def test_cap():
    """18 steps cost 35: 2 for each except the last."""
    assert not rules.exceeds_cap(0, 0, 18, 35) and rules.exceeds_cap(2, 0, 18, 35)
    assert not rules.exceeds_cap(34, 17, 18, 35) and rules.exceeds_cap(36, 17, 18, 35)
    rules.check_cap(35, 18)
    with pytest.raises(ValueError, match='35 evaluations'):
        rules.check_cap(34, 18)


def test_json_and_back():
    warm = calibration()
    text = rules.thresholds_to_json(warm)
    back = rules.thresholds_from_json(text)
    assert np.array_equal(back.log_ratio, warm.log_ratio) and np.array_equal(back.sigmas, warm.sigmas)
    assert rules.digest(back) == rules.digest(warm) != rules.digest(calibration(10))
    for broken in ('', '[]', '{"format": "diffrs thresholds"}', text.replace('"version": 1', '"version": 2'),
                   *(json.dumps(json.loads(text) | dict(log_ratio=value)) for value in ('x', [], [[1], [1, 2]]))):
        with pytest.raises(ValueError):
            rules.thresholds_from_json(broken)
    with pytest.raises(ValueError, match='not finite'):
        Calibration(SIGMAS, np.full([4, 2], np.nan))


def test_published_lists():
    """Log-ratios and increments by level; the last level, overwritten in part, comes from the increments."""
    warm = calibration()
    l = [torch.from_numpy(row.copy()) for row in warm.log_ratio]
    increments = [torch.zeros(11)] + [b - a for a, b in zip(l, l[1:])]
    l[3][:5] = 99.0
    np.testing.assert_allclose(rules.calibration_from_lists(SIGMAS, l, increments).log_ratio, warm.log_ratio, atol=2e-6)
    for lists in ((l[:-1], increments), (l, increments[:-1]), (l, [row[:7] for row in increments]), ([], [])):
        with pytest.raises(ValueError, match='not the warm-up of 3 steps'):
            rules.calibration_from_lists(SIGMAS, *lists)
    with pytest.raises(ValueError, match='not a list'):
        rules.calibration_from_lists(SIGMAS, 5, {'a': 1})
