"""Score-matching losses against closed forms."""

import math

import pytest
import torch

from diffusion.losses import EDMLoss, VELoss, VPLoss
from torch_utils.rng import StackedRandomGenerator
from training.randomness import BatchRandom

N = 4000
SHAPE = [N, 1, 4, 4]


class GaussianDenoiser(torch.nn.Module):
    """The exact denoiser for data N(0, s^2): D = x s^2 / (s^2 + sigma^2); its squared error is the posterior's."""

    def __init__(self, s):
        super().__init__()
        self.s = s

    def forward(self, x, sigma, class_labels=None):
        assert sigma.shape == (len(x),)
        sigma = sigma.reshape(-1, 1, 1, 1)
        return x * self.s**2 / (self.s**2 + sigma**2)


def data(s):
    return s * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


def rng(step=0):
    return BatchRandom(0, step, N, 'cpu')


def test_edm_loss_of_the_optimal_denoiser_is_one():
    """Posterior variance s^2 sigma^2 / (s^2 + sigma^2) = c_out^2 when s = sigma_data: the loss is 1 at every level."""
    net = GaussianDenoiser(0.5)
    loss = EDMLoss()(net, data(0.5), None, rng())
    assert loss.shape == (N,)
    sigma = EDMLoss().sigma(rng(), N)
    for group in sigma.argsort().chunk(4):
        # mean of 1000 * 16 squared standard normals: deviation sqrt(2 / 16000) = 0.011
        assert loss[group].mean().item() == pytest.approx(1, abs=0.05)


def test_edm_weight_is_one_over_c_out_squared():
    sigma = torch.tensor([0.002, 0.5, 80.0])
    c_out = sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    torch.testing.assert_close(EDMLoss().weight(sigma), 1 / c_out**2)


def test_edm_noise_levels_are_log_normal():
    log_sigma = EDMLoss(P_mean=-1.2, P_std=1.2).sigma(rng(), N).log()
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=4 * 1.2 / math.sqrt(N))
    assert log_sigma.std().item() == pytest.approx(1.2, abs=4 * 1.2 / math.sqrt(2 * N))


def test_vp_noise_levels():
    """At t = 1: sqrt(exp(19.9 / 2 + 0.1) - 1) = 152.17; the median is sigma(t = 0.5)."""
    sigma = VPLoss().sigma(rng(), N)
    assert sigma.max() <= 152.2 and sigma.min() > 0
    expected = math.sqrt(math.expm1(0.5 * 19.9 * 0.25 + 0.05))
    assert sigma.median().item() == pytest.approx(expected, rel=0.15)


def test_ve_noise_levels():
    u = (VELoss().sigma(rng(), N).log() - math.log(0.02)) / math.log(100 / 0.02)
    assert u.min() >= 0 and u.max() <= 1
    assert u.mean().item() == pytest.approx(0.5, abs=4 / math.sqrt(12 * N))


@pytest.mark.parametrize('loss_fn', [VPLoss(), VELoss()])
def test_weighted_loss_of_the_optimal_denoiser(loss_fn):
    """E[loss | sigma] = s^2 / (s^2 + sigma^2)."""
    s = 0.7
    loss = loss_fn(GaussianDenoiser(s), data(s), None, rng())
    sigma = loss_fn.sigma(rng(), N)
    ratio = loss / (s**2 / (s**2 + sigma**2))
    assert ratio.mean().item() == pytest.approx(1, abs=0.03)


def test_augment_labels_reach_the_network():
    seen = {}

    def net(x, sigma, class_labels=None, augment_labels=None):
        seen.update(labels=class_labels, augment=augment_labels)
        return x

    labels, augment = torch.eye(N, 3), torch.ones(N, 9)
    EDMLoss()(net, data(1), labels, rng(), augment)
    assert seen['labels'] is labels and seen['augment'] is augment


def test_per_sample_generators_serve_as_well():
    """Row k depends only on seed k."""
    net, images = GaussianDenoiser(0.5), data(0.5)
    both = EDMLoss()(net, images[:2], None, StackedRandomGenerator('cpu', [7, 8]))
    one = EDMLoss()(net, images[1:2], None, StackedRandomGenerator('cpu', [8]))
    torch.testing.assert_close(both[1:], one)
