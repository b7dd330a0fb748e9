"""The adaptive solver with a step size per row, against exact solutions."""

import math

import numpy as np
import pytest
import torch

from sampling.rk45 import rk45


def counted(rate):
    """dy/dt = rate_k y + cos(3 t), and how often each row was evaluated."""
    calls = np.zeros(len(rate), dtype=int)

    def function(t, y, rows):
        calls[rows] += 1
        return rate[torch.from_numpy(rows)][:, None] * y + (3 * t).cos()[:, None]

    return function, calls


def exact(rate, t):
    """y(t) for y(0) = 1."""
    k = rate[:, None]
    forced = (3 * math.sin(3 * t) - k * math.cos(3 * t)) / (k**2 + 9)
    return torch.exp(k * t) * (1 + k / (k**2 + 9)) + forced


RATES = torch.tensor([-20.0, -1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
START = torch.ones([5, 1], dtype=torch.float64)


def test_error_follows_the_tolerance_at_fifth_order():
    errors, costs = [], []
    for tolerance in (1e-4, 1e-6, 1e-8, 1e-10):
        function, calls = counted(RATES)
        y = rk45(function, START, 0.0, 2.0, rtol=tolerance, atol=tolerance)
        error = (y - exact(RATES, 2.0)).abs().flatten()
        assert (error < 60 * tolerance * exact(RATES, 2.0).abs().flatten().clamp(min=1)).all()
        errors.append(error[-1].item())
        costs.append(calls[-1])
    order = -math.log(errors[-1] / errors[0]) / math.log(costs[-1] / costs[0])
    assert 4.3 < order < 6


def test_rows_do_not_depend_on_each_other_and_stop_when_they_are_done():
    function, calls = counted(RATES)
    together = rk45(function, START, 0.0, 2.0)
    for row in range(len(RATES)):
        alone, own = counted(RATES[row:row + 1])
        torch.testing.assert_close(rk45(alone, START[:1], 0.0, 2.0), together[row:row + 1], rtol=1e-12, atol=1e-12)
        assert own[0] == calls[row]
    assert calls[0] > 2 * calls[1]


def test_backwards_and_projection():
    function, _ = counted(RATES)
    forth = rk45(function, START, 0.0, 0.5, rtol=1e-9, atol=1e-9)
    back = rk45(function, forth, 0.5, 0.0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back, START, rtol=1e-4, atol=1e-5)
    bounded = rk45(lambda t, y, rows: torch.ones_like(y), START, 0.0, 2.0, project=lambda y: y.clamp(max=1.5))
    assert (bounded == 1.5).all()


def test_progress_and_failures():
    seen = []
    rk45(counted(RATES)[0], START, 0.0, 2.0, on_step=lambda done, y: seen.append(done))
    assert seen == sorted(seen) and seen[-1] == 1
    with pytest.raises(ValueError, match='NaN or infinite'):
        rk45(lambda t, y, rows: y * float('nan'), START, 0.0, 1.0)
    with pytest.raises(ValueError, match='after 3 steps'):
        rk45(counted(RATES)[0], START, 0.0, 2.0, max_steps=3)
