"""Denoising MCMC against the published code, whose images are in [0, 1]; ours are in [-1, 1], levels twice as large.

Tolerance: 1e-3 of the noise level at the start, as for other chains of float32 evaluations.
"""

import functools

import pytest
import torch
from goldens import load
from score_sde_goldens import golden

from sampling import dmcmc
from sampling.denoiser import Denoiser
from sampling.integrators import INTEGRATORS, kar2
from sampling.rk45 import rk45


@pytest.fixture(scope='module')
def net(tmp_path_factory):
    return golden('score_sde/ve_ncsnpp', tmp_path_factory.mktemp('ve'))[0]


def arrays(name):
    return {key: torch.as_tensor(value) for key, value in load(f'dmcmc/{name}.npz').items()}


class Noise:
    """A generator whose normal numbers are recorded."""

    def __init__(self, recorded):
        self.left, self.rand = list(recorded), None

    def randn_like(self, x):
        return self.left.pop(0).to(x.dtype)


def assert_close(images, expected, sigma):
    error = ((images + 1) / 2 - expected).abs().flatten(1).amax(1)
    assert (error < 1e-3 * sigma).all(), error / sigma


@pytest.mark.parametrize('name', [name for name in INTEGRATORS if name != 'rk45'])
def test_integrators(net, name):
    d = arrays('integrators')
    steps = int(d['N']) - ('kar' in name)  # published: N - 1 levels and 0
    noise = Noise(d['kar_noise' if 'kar' in name else 'noise'])
    x, sigma = d['x_init'][d['rows']], d['sigma_max'][d['rows']]
    denoise = Denoiser(net)
    images = INTEGRATORS[name](denoise, 2 * x - 1, 2 * sigma.double(), sigma_min=0.02, num_steps=steps,
                               randn_like=noise.randn_like)
    assert_close(images, d[name], sigma)
    assert (denoise.costs['nfe'] == (2 * steps - 1 if 'kar' in name else steps)).all()


def test_rk45_with_one_step_size_for_the_batch(net):
    """The published solver sees the batch as one row. Coarse tolerance: with separate step sizes rows end elsewhere."""
    d = arrays('integrators')
    ratio, calls = (d['sigma_max'].double() / 0.01).log(), []

    def drift(t, x, rows):
        calls.append(t)
        images = 2 * x[0] - 1
        denoised = net(images, 0.02 * (ratio * t).exp())
        return (ratio[:, None, None, None] * (images - denoised) / 2)[None]

    images = rk45(drift, d['x_init'][None], 1.0, 1e-5, rtol=1e-3, atol=1e-3)[0]
    assert len(calls) == int(d['rk45_nfe'])
    assert_close(2 * images - 1, d['rk45'], d['sigma_max'])


def test_chain(net):
    """Three steps with arg max, the smallest level kept, KAR2 from there, Tweedie's formula."""
    d = arrays('dlg_chain')
    sigmas = 0.02 * 5000 ** torch.linspace(1, 1e-3, 1000, dtype=torch.float64)
    wanted = iter(2 * d['s_steps'])
    level = dmcmc.NoiseLevel(lambda x: -(sigmas.log() - next(wanted).log()[:, None]).abs(), sigmas, 'argmax')
    rng, denoise = Noise(d['noise_chain']), Denoiser(net)
    state = dmcmc.init(2 * d['x0'].double() - 1, 2 * d['s0'].double())
    for x, sigma in zip(d['x_steps'], d['s_steps']):
        state = dmcmc.step(rng, state, denoise, level, 4 * float(d['eta']))
        torch.testing.assert_close(state.sigma / 2, sigma.double(), rtol=1e-5, atol=0)
        assert_close(state.x, x, sigma)
    torch.testing.assert_close(state.sigma_best / 2, d['s_min'].double(), rtol=1e-5, atol=0)
    integrator = functools.partial(kar2, sigma_min=0.02, num_steps=int(d['N']) - 1)
    images = dmcmc.denoised(state, denoise, integrator, 2 * float(d['twd_eps']),
                            randn_like=Noise(d['noise_denoise']).randn_like)
    assert_close(images, d['x_denoised_tweedie'], d['s_min'])
    assert (denoise.costs['nfe'] == 3 + 13 + 1).all()
