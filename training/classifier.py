"""Classifiers of images: the ADM classifier on noisy images, and the clean one whose features FD-CIFAR10 uses."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from diffusion.vpsde import VPSDE
from torch_utils import distributed as dist
from torch_utils.images import from_uint8
from torch_utils.rng import step_generator

# Noise levels sigma = std / mean at which held-out accuracy is reported; 0 is the clean image.
SIGMA_LEVELS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
MEASURED_BATCH = 500  # held-out images that share a draw of noise


def augment(images: torch.Tensor, rng, xflip: bool = True, shift: int = 0) -> torch.Tensor:
    """Mirror each image with probability 1/2 and move it by up to `shift` pixels, edges reflected.

    images: [N, C, H, W] of any dtype; rng: `training.randomness.BatchRandom`.
    """
    count, _, height, width = images.shape
    device = images.device

    def moved(size):
        place = (torch.arange(size, device=device) + rng.randint(2 * shift + 1, size=[count, 1]) - shift).abs()
        return (size - 1) - ((size - 1) - place).abs()  # [N, size]

    if not xflip and not shift:
        return images
    rows, columns = moved(height), moved(width)
    if xflip:
        columns = torch.where(rng.rand([count, 1]) < 0.5, width - 1 - columns, columns)
    every = torch.arange(count, device=device)[:, None, None]
    return images[every, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # [N, H, W, C] -> [N, C, H, W]


class NoisyClassifierLoss:
    """Cross-entropy at VP noise, as ADM's classifier (Dhariwal & Nichol 2021, arXiv:2105.05233, appendix H).

    net(x_t, time) -> logits. t is uniform on [t_min, 1], as ADM's timesteps; time_map turns it into the time that
    the network is fed (identity, or `VPSDE.t_cos`). xflip mirrors half of the images, shift moves them by up to so
    many pixels.
    """

    def __init__(self, net: Callable, sde: VPSDE, time_map: Callable | None = None, xflip: bool = True,
                 shift: int = 0, t_min: float = 1e-5):
        self.net, self.sde, self.t_min = net, sde, t_min
        self.time_map = time_map or (lambda t: t)
        self.xflip, self.shift = xflip, shift

    def __call__(self, images, labels, rng):
        """(loss [N], {'accuracy': [N]}) for images in [-1, 1] and class indices [N]."""
        images = augment(images, rng, self.xflip, self.shift)
        t = self.t_min + (1 - self.t_min) * rng.rand([len(images)])
        logits = self.net(self.sde.perturb(images, t, rng.randn_like(images)), self.time_map(t)).float()
        return F.cross_entropy(logits, labels, reduction='none'), dict(accuracy=(logits.argmax(1) == labels).float())


class CleanClassifierLoss:
    """Cross-entropy of net(x) -> logits on clean images, with label smoothing.

    xflip mirrors half of the images, shift moves them by up to so many pixels.
    """

    def __init__(self, net: Callable, xflip: bool = True, shift: int = 0, label_smoothing: float = 0.1):
        self.net = net
        self.xflip, self.shift, self.label_smoothing = xflip, shift, label_smoothing

    def __call__(self, images, labels, rng):
        """(loss [N], {'accuracy': [N]}) for images in [-1, 1] and class indices [N]."""
        logits = self.net(augment(images, rng, self.xflip, self.shift)).float()
        loss = F.cross_entropy(logits, labels, reduction='none', label_smoothing=self.label_smoothing)
        return loss, dict(accuracy=(logits.argmax(1) == labels).float())


def _accuracy(net: Callable, inputs: Callable, images, labels, batch_gpu: int | None, device) -> float:
    """The share of uint8 `images` that `net` classifies correctly; the ranks divide the work.

    `inputs(number, x)` turns the images of a batch into what `net` is called with, `batch_gpu` (None: all) at a time.
    """
    right = torch.zeros([], dtype=torch.float64, device=device)
    starts = range(0, len(images), MEASURED_BATCH)
    size = min(batch_gpu or MEASURED_BATCH, MEASURED_BATCH)
    for number in range(dist.get_rank(), len(starts), dist.get_world_size()):
        part = slice(starts[number], starts[number] + MEASURED_BATCH)
        batch = inputs(number, from_uint8(images[part].to(device)))
        logits = torch.cat([net(*rows) for rows in zip(*(tensor.split(size) for tensor in batch), strict=True)])
        right += (logits.argmax(1) == labels[part].to(device)).sum()
    return float(dist.all_reduce_(right)) / len(images)


@torch.no_grad()
def accuracy(net: Callable, images: torch.Tensor, labels: torch.Tensor, device, batch_gpu: int | None = None) -> float:
    """Share of clean uint8 images [N, C, H, W] that `net(images)` classifies correctly, `batch_gpu` at a time."""
    return _accuracy(net, lambda _, x: [x], images, labels, batch_gpu, device)


@torch.no_grad()
def accuracy_by_noise(net: Callable, images: torch.Tensor, labels: torch.Tensor, sde: VPSDE, device,
                      time_map: Callable | None = None, batch_gpu: int | None = None) -> dict[float, float]:
    """Accuracy of `net(x_t, time)` on uint8 images at each of SIGMA_LEVELS, with the same noise in each call.

    At most `batch_gpu` images go through the network at a time, with the same noise.
    """
    time_map = time_map or (lambda t: t)
    result = {}
    for level, sigma in enumerate(SIGMA_LEVELS):
        tau = sde.tau(torch.tensor(sigma, dtype=torch.float64)).float().to(device)

        def noisy(number, x, level=level, tau=tau):
            generator = step_generator(0, 17, level, number, device=device)
            noise = torch.randn(x.shape, generator=generator, device=device)
            t = tau.expand(len(x))
            return sde.perturb(x, t, noise), time_map(t)

        result[sigma] = _accuracy(net, noisy, images, labels, batch_gpu, device)
    return result
