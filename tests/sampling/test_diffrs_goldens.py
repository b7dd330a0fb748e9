"""The published algorithm, decision by decision, from recorded draws (goldens/diffrs)."""

import functools

import numpy as np
import pytest
import torch
from dg_goldens import classifier, discriminator
from goldens import load
from sampler_goldens import network

from networks import LogRatio
from sampling import diffrs
from sampling import diffrs_slots as slots
from sampling.diffrs_rules import RULES, Thresholds, calibration_from_lists, make_thresholds
from sampling.levels import edm_levels

CALLS = [(kind, call) for kind in ('uncond', 'cond') for call in range(4)]


@functools.cache
def recorded(kind):
    return load(f'diffrs/{kind}.npz')


@functools.cache
def networks(kind):
    """(score network, log-ratio) of a recorded run."""
    return network(f'ddpmpp_{kind}'), LogRatio(classifier(), discriminator(kind), conditional=kind == 'cond')


def labels_of(kind):
    return torch.as_tensor(recorded(kind)['class_labels']) if kind == 'cond' else None


class Replay(slots.SlotMachine):
    """Eight slots in a recorded state, with the recorded draws, in the order of the published loop."""

    def __init__(self, kind, call):
        self.arrays, prefix = recorded(kind), f'call{call}_'
        net, log_ratio = networks(kind)
        limits = Thresholds(after_step=self.arrays['adaptive2'], after_rewind=self.arrays['adaptive'])
        levels = edm_levels(net, num_steps=int(self.arrays['num_steps']))
        rejection = slots.Rejection(RULES['published'], limits, last_level=int(self.arrays['max_backsteps']),
                                    backsteps=int(self.arrays['backsteps']),
                                    min_backsteps=int(self.arrays['min_backsteps']))
        super().__init__(net, log_ratio, [], None, levels=levels, rejection=rejection, guidance=None, batch_size=4,
                         device='cpu')
        names = sorted(name for name in self.arrays if name.startswith(prefix + 'draw'))
        self.recorded_draws = [(name.split('_')[-1], self.arrays[name]) for name in names]
        self.rows = np.arange(8)
        self.unfinished = {row: row for row in range(8)}
        self.position[:] = self.rows
        self.x[:] = torch.as_tensor(self.arrays[prefix + 'in_x'])
        self.log_ratio_prev[:] = torch.as_tensor(self.arrays[prefix + 'in_log_ratio'])
        self.level[:] = self.arrays[prefix + 'in_idx']
        self.nfe[:] = self.arrays[prefix + 'in_nfe']
        if self.labels is not None:
            self.labels[:] = labels_of(kind)
        self.waits_for[:] = np.where(self.level == 0, slots.TEST, slots.PREDICT)
        self.after_rewind[:] = True

    def next_draw(self, kinds, count):
        kind, values = self.recorded_draws.pop(0)
        assert kind in kinds and len(values) == count, (kind, len(values), count)
        return values

    def draw_decisions(self, rows):
        self.uniform[rows] = self.next_draw(['uniform'], len(rows))

    def normal(self, rows):
        return torch.as_tensor(self.next_draw(['prior', 'rewind'], len(rows)), dtype=torch.float64)

    def those_for(self, what, above=-1):
        return self.rows[(self.waits_for == what) & (self.level > above)]

    @torch.no_grad()
    def call(self):
        """One call of the published loop, for all slots side by side."""
        while len(rows := self.those_for(slots.TEST)):
            self.test(rows)
        self.evaluate(self.those_for(slots.PREDICT))
        self.evaluate(self.those_for(slots.CORRECT))
        while len(rows := self.those_for(slots.TEST, above=0)):
            self.test(rows)


@pytest.mark.parametrize(('kind', 'call'), CALLS)
def test_every_decision_of_a_call(kind, call):
    replay, arrays = Replay(kind, call), recorded(kind)
    replay.call()
    assert not replay.recorded_draws  # as many slots asked for each draw as recorded
    out = {name: arrays[f'call{call}_out_{name}'] for name in ('x', 'idx', 'nfe', 'log_ratio')}
    assert np.array_equal(replay.level, out['idx']) and np.array_equal(replay.nfe, out['nfe'])
    np.testing.assert_allclose(replay.x.numpy(), out['x'], rtol=0, atol=2e-4)
    # The published loop's values of slots that draw from the prior next are overwritten before they are read.
    kept = out['idx'] > 0
    np.testing.assert_allclose(replay.log_ratio_prev.numpy()[kept], out['log_ratio'][kept], rtol=0, atol=1e-3)
    assert set(replay.finished) == set(np.flatnonzero(out['idx'] == int(arrays['num_steps'])))
    assert np.array_equal(arrays['all_idx_after'][int(arrays[f'call{call}_index'])], out['idx'])


@pytest.mark.parametrize('kind', ['uncond', 'cond'])
def test_thresholds(kind):
    arrays = recorded(kind)
    calibration = calibration_from_lists(arrays['t_steps'], arrays['warmup_log_ratio'],
                                         arrays['warmup_log_ratio_diff'])
    for clamp, marginal, transition in ((True, 'adaptive', 'adaptive2'),
                                        (False, 'quantile_no_clamp', 'quantile2_no_clamp')):
        found = make_thresholds(calibration, float(arrays['rej_percentile']), RULES['published'], clamp=clamp)
        np.testing.assert_allclose(found.after_step, arrays[transition], rtol=0, atol=3e-6)
        # the last row is overwritten in the reference, and never read
        np.testing.assert_allclose(found.after_rewind[:-1], arrays[marginal][:-1], rtol=0, atol=3e-6)


@pytest.mark.parametrize('kind', ['uncond', 'cond'])
def test_warmup(kind, monkeypatch):
    """Two rounds of eight trajectories, from the recorded starts; the reference's overwritten entries are rebuilt."""
    arrays, (net, log_ratio) = recorded(kind), networks(kind)
    starts = iter([arrays['latents'], arrays['warmup_slot_noise'][0]])

    def draw_inputs(net, seeds, device, class_idx):
        class Unused:
            randn_like = None
        return Unused, torch.as_tensor(next(starts)), labels_of(kind)

    monkeypatch.setattr(diffrs, 'draw_inputs', draw_inputs)
    found = diffrs.calibrate(net, log_ratio, range(16), batch=8,
                             levels=edm_levels(net, num_steps=int(arrays['num_steps'])), progress=lambda images: None)
    np.testing.assert_allclose(found.sigmas, arrays['t_steps'], rtol=1e-12)
    np.testing.assert_allclose(found.log_ratio[:-1], arrays['warmup_log_ratio'][:-1], rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.log_ratio[-1, :8], arrays['warmup_log_ratio_after_call'][5], rtol=0, atol=1e-3)
    rebuilt = calibration_from_lists(arrays['t_steps'], arrays['warmup_log_ratio'], arrays['warmup_log_ratio_diff'])
    np.testing.assert_allclose(found.log_ratio, rebuilt.log_ratio, rtol=0, atol=1e-3)
    assert np.abs(arrays['warmup_log_ratio'][-1, :8] - rebuilt.log_ratio[-1, :8]).max() > 0.01  # they were wrong
