"""The training step of reflected diffusion: constrained denoising score matching."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from diffusion import cube
from diffusion.reflected_sde import ReflectedVE
from training.augment import mirror

TIME_MIN = 1e-5  # as published


def reflected_step(net: torch.nn.Module, likelihood: bool = False, reduce_mean: bool = False, drop_label: float = 0.0,
                   xflip: bool = False) -> Callable:
    """`step_loss` of TrainRun: half the weighted squared error of the score (Lou and Ermon, ICML 2023, eq. 12).

    The target is the score of the cube's heat kernel around the clean image, the weight sigma^2 or g^2. With the
    published SDE the two differ only by the factor 2 log(sigma_max / sigma_min), which does not matter to Adam.

    Args:
        net: net(x, sigma, labels) = x + sigma^2 score with x in [0, 1], and `label_dim`, `sigma_min`, `sigma_max`.
        likelihood: weight g^2, the bound on the likelihood, instead of sigma^2.
        reduce_mean: the mean over pixels without the half, instead of half their sum.
        drop_label: probability of the empty label, for classifier-free guidance.
        xflip: mirror half of the images.
    """
    sde = ReflectedVE(net.sigma_min, net.sigma_max)

    def step_loss(images, labels, rng):
        if xflip:
            images = mirror(images, rng)
        one_hot = None
        if net.label_dim:
            keep = rng.rand([len(labels), 1]) >= drop_label
            one_hot = F.one_hot(labels, net.label_dim) * keep.to(torch.float32)
        sigma = sde.sigma(TIME_MIN + (1 - TIME_MIN) * rng.rand([len(images)]))
        error = scaled_error(net, (images + 1) / 2, sigma, rng.randn_like(images), one_hot)
        mean = error.square().flatten(1).mean(1)  # of sigma^2 |score - target|^2
        factor = 2 * sde.log_ratio if likelihood else 1.0
        loss = factor * mean * (1 if reduce_mean else 0.5 * images[0].numel())
        return loss, dict(loss=mean)

    return step_loss


def scaled_error(net, images, sigma, noise, labels=None) -> torch.Tensor:
    """sigma times (score - heat kernel's score) [N, C, H, W], float64; images in [0, 1], sigma [N].

    Outside the network in float64: in float32 the difference of two pixels is wrong by 6e-4 at sigma 1e-4.
    """
    clean = images.to(torch.float64)
    x = cube.perturb(clean, sigma, noise.to(torch.float64))
    scale = sigma.to(torch.float64).reshape(-1, 1, 1, 1)
    return (net(x, sigma, labels) - x) / scale - scale * cube.kernel_score(x, clean, sigma)
