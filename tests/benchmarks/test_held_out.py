"""benchmarks/held_out.py: the true log-ratio gains all there is, and measures are judged by what they choose."""

import types

import pytest

from benchmarks import held_out
from diffusion.mixtures import exact_log_ratio


def test_gain():
    exact = exact_log_ratio(held_out.DATA, held_out.MODEL)
    assert held_out.gain(types.SimpleNamespace(log_ratio=exact), 400, seed=0) == pytest.approx(1, abs=0.2)
    assert held_out.gain(types.SimpleNamespace(log_ratio=lambda *given: 0 * exact(*given)), 400, seed=0) == 0


def test_a_training_is_measured(monkeypatch):
    monkeypatch.setattr(held_out, 'STEPS', (1, 3))
    for objective in ('bce', 'score'):
        run = held_out.train(objective, 50, 1e-3, 0, 100)
        assert [row['step'] for row in run] == [1, 3]
        assert run[0]['correction'] != run[1]['correction'] and run[0]['gain'] != run[1]['gain']


def test_a_measure_is_judged_by_what_it_chooses():
    runs = [[dict(step=step, gain=gain, right=-gain, wrong=gain) for step, gain in enumerate((0.1, 0.8, least, 0.5))]
            for least in (-0.2, -0.4)]
    assert held_out.summary(runs) == {
        'right': ['1.00', '1.00 +- 0.00', '0.80 +- 0.00', '0.80'],
        'wrong': ['-1.00', '-1.00 +- 0.00', '-0.30 +- 0.10', '-0.40'],
        'the last': ['', '', '0.50 +- 0.00', '0.50'], 'the best': ['', '', '0.80 +- 0.00', '0.80']}
