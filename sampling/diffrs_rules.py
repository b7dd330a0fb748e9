"""The decisions of diffusion rejection sampling (Na et al. 2024): thresholds, tests and rewinding, on tensors.

Levels k = 0 .. n number the noise levels t_0 > ... > t_n = 0; l_k(x) is the log-ratio at level k,
log p_data(x; t_k) - log p_model(x; t_k). docs/equations.md derives both rules.
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import torch

from .denoiser import per_row

FLOOR = 1e-7  # added to a uniform draw before its logarithm, as published
DECIMALS = 6  # of calibrated log-ratios, so that a run uses the same numbers as its file


@dataclass(frozen=True)
class Rule:
    """How states are tested, and where rejected ones go."""

    rewinds: bool  # a rejected state goes back by added noise and is tested there (else it starts again from the prior)
    one_draw: bool  # one uniform draw decides a whole path (else one for every test)


RULES = {
    'published': Rule(rewinds=True, one_draw=False),
    'exact': Rule(rewinds=False, one_draw=True),
}


@dataclass(frozen=True)
class Thresholds:
    """Logarithms of the constants M that bound the ratios, one for each level 0 .. n (float64 arrays [n + 1])."""

    after_step: np.ndarray  # for a state just reached by a step
    after_rewind: np.ndarray  # for a state from the prior (level 0) or from rewinding


@dataclass(frozen=True)
class Calibration:
    """The warm-up: log-ratios along trajectories without rejections."""

    sigmas: np.ndarray  # [n + 1] float64, the noise levels, the last one 0
    log_ratio: np.ndarray  # [n + 1, trajectories] float64, l_k(x_k) of each trajectory

    def __post_init__(self):
        if self.log_ratio.ndim != 2 or len(self.log_ratio) != len(self.sigmas) or not self.log_ratio.size:
            raise ValueError(f'log-ratios of shape {list(self.log_ratio.shape)} do not fit '
                             f'{len(self.sigmas)} noise levels')
        if not np.isfinite(self.log_ratio).all():
            raise ValueError('a log-ratio of the warm-up is not finite')
        object.__setattr__(self, 'log_ratio', self.log_ratio.round(DECIMALS))

    def check(self, sigmas) -> None:
        """Raise ValueError if the warm-up is for other noise levels."""
        if len(sigmas) != len(self.sigmas) or not np.allclose(sigmas, self.sigmas, rtol=1e-5):
            raise ValueError(f'the thresholds are for {len(self.sigmas) - 1} steps from sigma {self.sigmas[0]:g} to '
                             f'{self.sigmas[-2]:g}, this run takes {len(sigmas) - 1} from {sigmas[0]:g} to '
                             f'{sigmas[-2]:g}; calibrate again')


def make_thresholds(calibration: Calibration, percentile: float, rule: Rule, *, clamp: bool = True,
                    last_level: int | None = None) -> Thresholds:
    """The thresholds at a percentile in [0, 1] (gamma of Na et al. 2024).

    Published rule: quantiles of the increments l_k - l_{k-1} after a step, of l_k itself otherwise. Exact rule:
    the budget c_k = q(l_m) - q'(l_m - l_k), m = `last_level` (default n) the last level that is tested, q the
    quantile, q' the one at 1 - (1 - percentile) / m: at most a share 1 - percentile of the model's paths rises
    further after any of the m levels. `clamp` raises every quantile below 0 to 0 (M >= 1). Raises ValueError.
    """
    if not 0 <= percentile <= 1:
        raise ValueError(f'the percentile {percentile:g} is not between 0 and 1')

    def quantile(values, share=percentile):  # [..., trajectories] -> [...]
        q = np.quantile(values, share, axis=-1)
        return np.maximum(q, 0) if clamp else q

    l = calibration.log_ratio
    if rule.one_draw:
        m = len(l) - 1 if last_level is None else last_level
        budget = quantile(l[m]) - quantile(l[m] - l, 1 - (1 - percentile) / max(m, 1))
        return Thresholds(budget, budget)
    return Thresholds(quantile(np.diff(l, axis=0, prepend=l[:1])), quantile(l))


def calibration_from_lists(sigmas, marginal, increments) -> Calibration:
    """The warm-up from the published script's two lists: log-ratios and their increments by level, [n] tensors each.

    The published list of log-ratios is partly overwritten at the last level; the increments are intact, so the last
    level is rebuilt from them. Raises ValueError for lists that do not belong together.
    """
    try:
        rows = [[np.asarray(row, dtype=np.float64).ravel() for row in rows] for rows in (marginal, increments)]
    except (TypeError, ValueError):
        raise ValueError('not a list of log-ratios for each level') from None
    lengths = sorted({len(row) for row in rows[0] + rows[1]})
    if not len(rows[0]) == len(rows[1]) == len(sigmas) or len(lengths) != 1:
        raise ValueError(f'lists of {len(rows[0])} and {len(rows[1])} levels with {lengths} values each are not the '
                         f'warm-up of {len(sigmas) - 1} steps')
    l = np.stack(rows[0])
    l[-1] = l[-2] + rows[1][-1]
    return Calibration(np.asarray(sigmas, dtype=np.float64), l)


def thresholds_to_json(calibration: Calibration, origin: dict | None = None) -> str:
    """The warm-up as text, which serves any percentile and either rule. origin: what it was made with."""
    return json.dumps(dict(format='diffrs thresholds', version=1, sigmas=calibration.sigmas.tolist(),
                           log_ratio=calibration.log_ratio.tolist()) | (dict(origin=origin) if origin else {})) + '\n'


def digest(calibration: Calibration) -> str:
    """A short fingerprint of a warm-up, to tell runs with different thresholds apart."""
    return hashlib.sha256(thresholds_to_json(calibration).encode()).hexdigest()[:16]


def thresholds_from_json(text: str, origin: dict | None = None) -> Calibration:
    """The warm-up that `thresholds_to_json` wrote. Raises ValueError, also if the file records another `origin`."""
    try:
        fields = json.loads(text)
        if fields['format'] != 'diffrs thresholds' or fields['version'] != 1:
            raise KeyError
        calibration = Calibration(np.array(fields['sigmas'], dtype=np.float64),
                                  np.array(fields['log_ratio'], dtype=np.float64))
        found = dict(fields.get('origin', {}))
    except (KeyError, TypeError, json.JSONDecodeError):
        raise ValueError('not a file of DiffRS thresholds that this version can read') from None
    for name, value in (origin or {}).items():
        if found.get(name, value) != value:
            raise ValueError(f'the thresholds were made with {name} {found[name]}, this run has {value}; '
                             f'calibrate again')
    return calibration


def propose(x, x_hat, d_cur, sigma, h, denoised, second):
    """One half of a Heun step of length h = t_next - t_hat: (state after it [N, C, H, W], slope at x).

    First halves (`second` [N] False) have x = x_hat, sigma = t_hat and give Euler's step; second halves have x =
    Euler's step, sigma = t_next and d_cur = the slope of the first (Karras et al. 2022, algorithm 2).
    """
    d = (x - denoised) / per_row(sigma, x)
    slope = torch.where(per_row(second, x), 0.5 * d_cur + 0.5 * d, d)
    return x_hat + per_row(h, x) * slope, d


def rejects(log_ratio, previous, threshold, u):
    """Which states [N] are rejected: l < log M + log u + l_prev, for uniform draws u in [0, 1) (Na et al. 2024).

    `previous` is the log-ratio before the step (a test of the transition) or 0 (a test of the marginal).
    NaN is never rejected.
    """
    return log_ratio < threshold + torch.log(u + FLOOR) + previous


def last_level(num_steps: int, backsteps: int, max_backsteps: int) -> int:
    """The last level that is tested; 0, the prior, if nothing is taken back."""
    return min(max_backsteps, num_steps) if backsteps else 0


def rewound_level(level, backsteps: int):
    """The level to which a state rejected at `level` is taken back, at most to the first."""
    return np.maximum(level - backsteps, 0)


def rewind(x, sigma, sigma_back, noise):
    """The state x [N, C, H, W] of levels sigma [N] with noise added up to levels sigma_back >= sigma."""
    return x + per_row((sigma_back ** 2 - sigma ** 2).sqrt(), x) * noise


def exceeds_cap(nfe, level, num_steps: int, max_iter: float):
    """Whether a sample at `level` cannot end within `max_iter` network evaluations even if nothing is rejected."""
    return nfe + 2 * num_steps - 1 - 2 * level > max_iter


def check_cap(max_iter: float, num_steps: int) -> None:
    """Raise ValueError for a cap that no sample can meet."""
    if max_iter < 2 * num_steps - 1:
        raise ValueError(f'{max_iter:g} is less than the {2 * num_steps - 1} evaluations of one sample of '
                         f'{num_steps} steps without any rejection')


def step_acceptance(calibration: Calibration, limits: Thresholds, rule: Rule) -> np.ndarray:
    """The share of steps into each level 1 .. n that would pass their first test, predicted from the warm-up [n]."""
    l = calibration.log_ratio
    margin = (l[1:] if rule.one_draw else np.diff(l, axis=0)) - limits.after_step[1:, None]
    return np.exp(np.minimum(margin, 0)).mean(1)
