"""Training, sampling and likelihood of reflected diffusion together, on a density in the square."""

import pytest
import torch
from cube_densities import CORNERS

from diffusion import cube
from diffusion.mixtures import TruncatedMixture, exact_log_ratio, same_distribution_pvalue
from diffusion.reflected_sde import ReflectedVP
from networks.log_ratio import LogRatio
from networks.reflected import construct_reflected
from sampling.reflected import reflected_heun, reflected_ode, reflected_pc
from sampling.reflected_likelihood import log_likelihood
from training.discriminator import DiscriminatorLoss
from training.randomness import BatchRandom
from training.reflected import reflected_step

OTHER = TruncatedMixture(CORNERS.means, [0.2, 0.3, 0.5], [0.12, 0.1, 0.3])  # another density in the square


@pytest.fixture(scope='module')
def net():
    """A network for images of one pixel with two channels, after 1000 steps."""
    torch.manual_seed(0)
    net = construct_reflected(dict(img_resolution=1, img_channels=2, model_channels=32, channel_mult=[1], num_blocks=1,
                                   attn_resolutions=[], dropout=0.0, sigma_max=2.0)).train()
    step, generator = reflected_step(net, reduce_mean=True), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for i in range(1000):
        images = CORNERS.sample(256, generator).to(torch.float32).reshape(-1, 2, 1, 1) * 2 - 1
        loss, _ = step(images, None, BatchRandom(0, i, 256, torch.device('cpu')))
        optimizer.param_groups[0]['lr'] = 2e-3 * (1 - i / 1000)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize('sampler, options', [
    (reflected_heun, {}), (reflected_pc, dict(num_steps=100, denoiser='mean', randn_like=torch.randn_like)),
    (reflected_ode, dict(rtol=1e-4, atol=1e-4))])
def test_samples_of_a_trained_network_follow_the_density(net, sampler, options):
    images = sampler(net, torch.randn([400, 2, 1, 1]), **options)
    assert same_distribution_pvalue(images, CORNERS.sample(400)) > 0.01
    assert same_distribution_pvalue(images, torch.rand([400, 2])) < 0.01


@pytest.mark.slow
def test_only_the_mollified_flow_is_a_density(net):
    """By Gibbs' inequality no density is larger on average than the data's own. An imperfect flow crosses the walls."""
    x = CORNERS.sample(400, torch.Generator().manual_seed(1)).reshape(-1, 2, 1, 1)
    probes = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).reshape(2, 1, 2, 1, 1).expand(2, 400, 2, 1, 1)

    def nats(moll):
        return sum(log_likelihood(net, x, probe, moll=moll, rtol=1e-4, atol=1e-4) for probe in probes).mean() / 2

    exact = CORNERS.log_density(x, net.sigma_min).mean()
    assert exact - 0.5 < nats(200) < exact < nats(0) < exact + 0.3


class Logit(torch.nn.Module):
    """A small network of a point in [-1, 1]^2 and the logarithm of its time."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64),
                                          torch.nn.SiLU(), torch.nn.Linear(64, 1))

    def forward(self, x, t, condition=None):
        return self.layers(torch.cat([x.flatten(1), t.float().log()[:, None]], dim=1))


@pytest.mark.slow
def test_a_discriminator_learns_the_log_ratio_of_reflected_densities():
    """Against the exact one, at levels where it says something: error and size of the log-ratio, in nats."""
    torch.manual_seed(0)
    net, generator = Logit(), torch.Generator().manual_seed(0)
    loss = DiscriminatorLoss(net, lambda x, t: x, ReflectedVP())
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    targets = torch.tensor([[1], [0]]).repeat_interleave(512, 0)
    for i in range(600):
        points = torch.cat([mixture.sample(512, generator) for mixture in (CORNERS, OTHER)])
        optimizer.param_groups[0]['lr'] = 5e-3 * (1 - i / 600)
        optimizer.zero_grad()
        loss(2 * points.float().reshape(-1, 2, 1, 1) - 1, targets, BatchRandom(0, i, 1024, torch.device('cpu')))[
            0].mean().backward()
        optimizer.step()
    log_ratio = LogRatio(lambda x, timesteps, feature: x, net, reflected=True)
    for sigma in torch.tensor([0.1, 0.2, 0.4, 2.0], dtype=torch.float64):
        x = cube.perturb(CORNERS.sample(1000, generator), sigma, torch.randn([1000, 2], generator=generator)).double()
        x = x.reshape(-1, 2, 1, 1)
        exact = exact_log_ratio(CORNERS, OTHER)(x, sigma)
        error = (log_ratio.value(x, sigma) - exact).square().mean().sqrt()
        assert error < 0.1 + 0.2 * exact.std(), (sigma, error, exact.std())
