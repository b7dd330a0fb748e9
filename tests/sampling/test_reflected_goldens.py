"""The published samplers of reflected diffusion, with their own noise, on a published network."""

import numpy as np
import pytest
import torch
from goldens import load
from published_run import write_run

from networks.reflected import load_reflected
from sampling.denoiser import Denoiser
from sampling.reflected import reflected_ode, reflected_pc


class Scaled(Denoiser):
    """A denoiser whose score is made smaller, so that states move slowly."""

    def __init__(self, net, scale, size):
        super().__init__(net, size)
        self.scale = float(scale)

    def __call__(self, x, *args, **kwargs):
        return x + self.scale * (super().__call__(x, *args, **kwargs) - x)


@pytest.fixture(scope='module')
def net(tmp_path_factory):
    return load_reflected(write_run(tmp_path_factory.mktemp('run'), 'ncsnpp'))


def latents_of(states):
    return torch.special.ndtri(torch.from_numpy(states).to(torch.float64))


def test_published_predictor_corrector(net):
    """Six of seven steps, two Langevin steps before each, norms averaged over the batch, no noise removed."""
    golden = load('reflected/pc_sampler.npz')
    noise, denoise = iter(torch.from_numpy(golden['langevin_noise'])), Scaled(net, golden['score_scale'], 2)

    def explode(x):
        raise AssertionError('published: what the denoiser gives is thrown away')

    images = reflected_pc(denoise, latents_of(golden['x_init']), num_steps=int(golden['N']),
                          corrector_steps=int(golden['langevin_n_steps']), snr=float(golden['langevin_snr']),
                          published=True, denoiser=explode, randn_like=lambda x: next(noise))
    np.testing.assert_allclose(images, golden['langevin_out'], rtol=0, atol=1e-4)
    assert next(noise, None) is None
    assert (denoise.costs['nfe'] == 18).all()  # published: reported as 21


class Joined(Scaled):
    """The whole batch as one sample: one step size for all, as published."""

    def __call__(self, x, sigma, class_labels=None, **kwargs):
        images = x.unflatten(1, [-1, 3]).flatten(0, 1)
        return super().__call__(images, sigma.expand(len(images))).reshape(x.shape)


@pytest.mark.slow  # half a minute
def test_published_probability_flow(net):
    """A random network's flow is too rough for the tolerance: only identical steps lead to the same images."""
    golden = load('reflected/ode_sampler.npz')
    latents = latents_of(golden['z'].reshape(1, 6, 32, 32))
    images = reflected_ode(Joined(net, golden['score_scale'], 1), latents, side=0)
    np.testing.assert_allclose(images.reshape(2, 3, 32, 32), golden['out'], rtol=0, atol=1e-4)
