"""The adaptive Runge-Kutta method of Dormand and Prince (1980), with a step size of its own for every row."""

import numpy as np
import torch

from torch_utils.transfer import upload

from .denoiser import per_row

NODES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
STAGES = ((), (1 / 5,), (3 / 40, 9 / 40), (44 / 45, -56 / 15, 32 / 9),
          (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
          (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
          (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84))  # the last one is the fifth-order result
ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # fifth minus fourth order


@torch.no_grad()
def rk45(function, y: torch.Tensor, start: float, end: float, *, rtol: float = 1e-5, atol: float = 1e-5,
         project=None, on_step=None, max_steps: int = 10_000) -> torch.Tensor:
    """y(end) [N, ...], float64, of dy/dt = function(t, y, rows) from y(start) = y.

    function: t [n] float64 and rows int64 [n] (which rows of the whole batch these are), both on the host, and y
    [n, ...] on its device -> dy/dt [n, ...]. The device is asked once per step, for the errors. Each row's error, in
    root mean square over atol + rtol |y|, stays below 1, whatever the other rows do; finished rows are not evaluated.
    project(y): applied to every accepted state. on_step(done, y): after every step, with the part of the way [0, 1]
    that all rows have behind them. Raises ValueError if a row needs more than `max_steps` or becomes NaN.
    """
    y, span = y.to(torch.float64).clone(), end - start
    times, sizes = np.full(len(y), float(start)), np.zeros(len(y))  # the host knows where each row is
    allowed = np.full(len(y), 10.0)  # growth of the next step
    slopes = function(torch.from_numpy(times), y, np.arange(len(y)))
    sizes[:] = _first_sizes(function, times, y, slopes, span, rtol, atol)
    for _ in range(max_steps):
        rows = np.flatnonzero(times != end)
        if not len(rows):
            return y
        last = np.abs(sizes[rows]) >= np.abs(end - times[rows])
        h = np.where(last, end - times[rows], sizes[rows])
        index = upload(torch.from_numpy(rows), y.device)
        new, k_last, error = _step(function, times[rows], h, y[index], slopes[index], rows)
        scale = atol + rtol * torch.maximum(y[index].abs(), new.abs())
        size = _rms(error / scale)
        if not np.isfinite(size).all():
            raise ValueError('the ODE has no finite solution: its drift became NaN or infinite')
        good = size <= 1
        with np.errstate(divide='ignore'):
            growth = np.clip(0.9 * size ** -0.2, 0.2, allowed[rows])
        sizes[rows], allowed[rows] = h * growth, np.where(good, 10.0, 1.0)
        times[rows[good]] = np.where(last, end, times[rows] + h)[good]
        kept = upload(torch.from_numpy(np.flatnonzero(good)), y.device)
        y[index[kept]] = new[kept] if project is None else project(new[kept])
        slopes[index[kept]] = k_last[kept]
        if on_step is not None:
            on_step(float(np.min((times - start) / span)), y)
    raise ValueError(f'the ODE is not solved after {max_steps} steps; allow a larger error')


def _rms(values: torch.Tensor) -> np.ndarray:
    """Root mean square of each row, on the host."""
    return values.flatten(1).square().mean(1).sqrt().cpu().numpy()


def _step(function, times, h, y, slope, rows):
    """(fifth-order result, its slope, error estimate) of one step of sizes h [n] from y [n, ...] at `times` [n]."""
    size = per_row(upload(torch.from_numpy(h), y.device), y)
    slopes = [slope]
    for node, weights in zip(NODES[1:], STAGES[1:], strict=True):
        state = y + size * sum(weight * k for weight, k in zip(weights, slopes, strict=True) if weight)
        slopes.append(function(torch.from_numpy(times + node * h), state, rows))
    return state, slopes[-1], size * sum(weight * k for weight, k in zip(ERROR, slopes, strict=True) if weight)


def _first_sizes(function, times, y, slopes, span, rtol, atol):
    """A first step for each row (Hairer, Norsett, Wanner, Solving ODEs I, section II.4)."""
    scale = atol + rtol * y.abs()
    d0, d1 = _rms(y / scale), _rms(slopes / scale)
    h0 = np.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / np.maximum(d1, 1e-300))
    h0 = np.minimum(h0, abs(span)) * np.sign(span)
    ahead = y + per_row(upload(torch.from_numpy(h0), y.device), y) * slopes
    d2 = _rms((function(torch.from_numpy(times + h0), ahead, np.arange(len(y))) - slopes) / scale) / np.abs(h0)
    steepest = np.maximum(d1, d2)
    h1 = np.where(steepest <= 1e-15, np.maximum(1e-6, 1e-3 * np.abs(h0)), (0.01 / np.maximum(steepest, 1e-300)) ** 0.2)
    return np.minimum(np.minimum(100 * np.abs(h0), h1), abs(span)) * np.sign(span)
