"""Training of denoising MCMC's noise-level model (Kim and Ye, ICML 2023), which tells the noise level of an image."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from torch_utils import distributed as dist
from torch_utils.images import from_uint8
from torch_utils.rng import step_generator
from training.augment import mirror_and_shift

MEASURED_LEVELS = 24  # at which held-out images are measured
MEASURED_IMAGES = 200  # at each of them


class NoiseLevelLoss:
    """Cross-entropy of net(x) -> logits [N, K], x = y + sigma_k z with k uniform: `sigmas` [K] from the largest down.

    The model thus learns p(sigma | x) for a uniform prior over its levels. xflip mirrors half of the images, shift
    moves them by up to this many pixels.
    """

    def __init__(self, net: Callable, sigmas: torch.Tensor, xflip: bool = True, shift: int = 0):
        self.net, self.sigmas, self.xflip, self.shift = net, sigmas.to(torch.float32), xflip, shift

    def __call__(self, images, labels, rng):
        """(loss [N], {'octaves': [N]}) for images in [-1, 1]: by how many factors of 2 the likeliest level is off."""
        images = mirror_and_shift(images, rng, self.xflip, self.shift)
        level = (len(self.sigmas) * rng.rand([len(images)])).long().clamp(max=len(self.sigmas) - 1)
        sigma = self.sigmas.to(images.device)[level]
        logits = self.net(images + sigma[:, None, None, None] * rng.randn_like(images)).float()
        found = self.sigmas.to(images.device)[logits.argmax(1)]
        return F.cross_entropy(logits, level, reduction='none'), dict(octaves=(found / sigma).log2().abs())

    def measure(self, net, images, labels, batch_gpu: int | None = None) -> dict:
        """Held-out `calibration` (see there), and the mean error in octaves over its levels; also printed."""
        found = calibration(net, self.sigmas, images)
        off = sum(abs(row['octaves']) for row in found) / len(found)
        wide = sum(row['spread'] for row in found) / len(found)
        dist.print0(f'held-out levels: off by {off:.3f} octaves, with a spread of {wide:.3f}')
        return dict(held_out_octaves=off, held_out_spread=wide, calibration=found)


@torch.no_grad()
def calibration(net: Callable, sigmas: torch.Tensor, images: torch.Tensor) -> list[dict]:
    """What `net` predicts for uint8 images at some of the levels `sigmas`, with the same noise in each call.

    For each level: `sigma`; the 5 %, 50 % and 95 % quantiles of the predicted mean of log sigma, as levels; `octaves`,
    by how much the mean is off; `spread`, the standard deviation that the model itself expects.
    """
    device = next(net.parameters()).device
    sigmas, logs = sigmas.to(device, torch.float64), sigmas.to(device, torch.float64).log2()
    x = from_uint8(images[:MEASURED_IMAGES].to(device))
    rows = []
    for level in torch.linspace(0, len(sigmas) - 1, MEASURED_LEVELS).round().long().tolist():
        noise = torch.randn(x.shape, generator=step_generator(0, 18, level, device=device), device=device)
        p = net(x + sigmas[level].float() * noise).to(torch.float64).softmax(1)
        mean = p @ logs  # [N]
        spread = (p @ logs**2 - mean**2).clamp(min=0).sqrt()
        low, median, high = (2 ** mean.quantile(torch.tensor([0.05, 0.5, 0.95], device=device,
                                                             dtype=torch.float64))).tolist()
        rows.append(dict(sigma=sigmas[level].item(), low=low, median=median, high=high,
                         octaves=(mean - logs[level]).mean().item(), spread=spread.mean().item()))
    return rows
