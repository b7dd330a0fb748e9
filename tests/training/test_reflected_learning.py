"""Training, sampling and likelihood of reflected diffusion together, on a density in the square."""

import pytest
import torch
from cube_densities import CORNERS

from diffusion.mixtures import same_distribution_pvalue
from networks.reflected import construct_reflected
from sampling.reflected import reflected_heun, reflected_ode, reflected_pc
from sampling.reflected_likelihood import log_likelihood
from training.randomness import BatchRandom
from training.reflected import reflected_step


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
