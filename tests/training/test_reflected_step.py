"""Constrained denoising score matching against the published loss, and what a step does with labels."""

import numpy as np
import pytest
import torch
from goldens import load
from published_run import write_run

from diffusion import cube
from networks.reflected import construct_reflected, load_reflected
from training.randomness import BatchRandom
from training.reflected import reflected_step, scaled_error


class Given:
    """The random numbers of a golden, in the order in which a step draws them."""

    def __init__(self, u, noise):
        self.u, self.noise = torch.from_numpy(u), torch.from_numpy(noise)

    def rand(self, size):
        return self.u if size == [len(self.u)] else torch.ones(size)  # labels are kept

    def randn_like(self, images):
        return self.noise


@pytest.mark.parametrize('which', ['ncsnpp', 'vdm_attn', 'adm'])
def test_published_losses(tmp_path, which):
    golden, net = load(f'reflected/{which}.npz'), load_reflected(write_run(tmp_path, which))
    images = torch.from_numpy(golden['x0']) * 2 - 1
    labels = torch.from_numpy(golden['class_labels']) if net.label_dim else None
    for likelihood in (0, 1):
        for mean in (0, 1):
            step = reflected_step(net, likelihood=bool(likelihood), reduce_mean=bool(mean))
            loss, _ = step(images, labels, Given(golden['loss_u'], golden['noise']))
            expected = golden[f'loss_likelihood{likelihood}_mean{mean}']
            np.testing.assert_allclose(loss.mean().item(), expected, rtol=2e-3 if which == 'adm' else 1e-3)


def test_the_exact_score_has_the_least_error():
    """For a single image the kernel's score is the model's: no error at any level; for others there is one."""
    images = torch.rand([1, 1, 4, 4]).expand(6, -1, -1, -1)
    sigma = torch.logspace(-4, 1, 6)

    def net(x, sigma, labels=None):
        return x + sigma.reshape(-1, 1, 1, 1)**2 * cube.kernel_score(x, images.double(), sigma)

    noise = torch.randn([6, 1, 4, 4])
    assert scaled_error(net, images, sigma, noise).abs().max() < 1e-6
    assert scaled_error(net, 1 - images, sigma, noise).abs().max() > 0.1


def test_labels_are_dropped_at_the_rate_and_weights_learn():
    torch.manual_seed(0)
    net = construct_reflected(dict(img_resolution=8, img_channels=1, label_dim=3, model_channels=8, num_blocks=1,
                                   channel_mult=[1], attn_resolutions=[], dropout=0.0))
    seen = []
    net.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    step = reflected_step(net, drop_label=0.25, xflip=True)
    images, labels = torch.rand([400, 1, 8, 8]) * 2 - 1, torch.arange(400) % 3
    loss, stats = step(images, labels, BatchRandom(0, 0, 400, torch.device('cpu')))
    assert loss.shape == (400,) and set(stats) == {'loss'}
    kept = seen[0].sum(1)
    assert abs(kept.mean() - 0.75) < 0.08
    assert torch.equal(seen[0][kept > 0].argmax(1), labels[kept > 0])
    loss.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
