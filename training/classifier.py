"""Classifiers of images: the ADM classifier on noisy images, and the clean one whose features FD-CIFAR10 uses."""

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from diffusion.vpsde import VPSDE
from torch_utils import distributed as dist
from torch_utils.image_store import take
from torch_utils.images import from_uint8
from torch_utils.rng import step_generator
from training.augment import mirror_and_shift
from training.run import TickContext

# Noise levels sigma = std / mean at which held-out accuracy is reported; 0 is the clean image.
SIGMA_LEVELS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
MEASURED_BATCH = 500  # held-out images whose noise is drawn at once


class NoisyClassifierLoss:
    """Cross-entropy at VP noise, as ADM's classifier (Dhariwal & Nichol 2021, arXiv:2105.05233, appendix H).

    net(x_t, time) -> logits. t is uniform on [t_min, 1], like ADM's timesteps; time_map turns it into the time that
    the network is given (identity, or `VPSDE.t_cos`). xflip mirrors half of the images, shift moves them by up to this
    many pixels.
    """

    def __init__(self, net: Callable, sde: VPSDE, time_map: Callable | None = None, xflip: bool = True,
                 shift: int = 0, t_min: float = 1e-5):
        self.net, self.sde, self.t_min = net, sde, t_min
        self.time_map = time_map or (lambda t: t)
        self.xflip, self.shift = xflip, shift

    def __call__(self, images, labels, rng):
        """(loss [N], {'accuracy': [N]}) for images in [-1, 1] and class indices [N]."""
        images = mirror_and_shift(images, rng, self.xflip, self.shift)
        t = self.t_min + (1 - self.t_min) * rng.rand([len(images)])
        logits = self.net(self.sde.perturb(images, t, rng.randn_like(images)), self.time_map(t)).float()
        return F.cross_entropy(logits, labels, reduction='none'), dict(accuracy=(logits.argmax(1) == labels).float())

    def measure(self, net, images, labels, batch_gpu: int | None = None) -> dict[str, float]:
        """Accuracy of `net` by noise level on held-out uint8 images; also printed."""
        found = accuracy_by_noise(net, images, labels, self.sde, _device(net), self.time_map, batch_gpu)
        dist.print0('held-out accuracy: ' + ', '.join(f'{value:.3f} at sigma {s:g}' for s, value in found.items()))
        return {f'accuracy_sigma_{sigma:g}': value for sigma, value in found.items()}


class CleanClassifierLoss:
    """Cross-entropy of net(x) -> logits on clean images, with label smoothing.

    xflip mirrors half of the images, shift moves them by up to this many pixels.
    """

    def __init__(self, net: Callable, xflip: bool = True, shift: int = 0, label_smoothing: float = 0.1):
        self.net = net
        self.xflip, self.shift, self.label_smoothing = xflip, shift, label_smoothing

    def __call__(self, images, labels, rng):
        """(loss [N], {'accuracy': [N]}) for images in [-1, 1] and class indices [N]."""
        logits = self.net(mirror_and_shift(images, rng, self.xflip, self.shift)).float()
        loss = F.cross_entropy(logits, labels, reduction='none', label_smoothing=self.label_smoothing)
        return loss, dict(accuracy=(logits.argmax(1) == labels).float())

    def measure(self, net, images, labels, batch_gpu: int | None = None) -> dict[str, float]:
        """Accuracy of `net` on held-out uint8 images; also printed."""
        found = accuracy(net, images, labels, _device(net), batch_gpu)
        dist.print0(f'held-out accuracy: {found:.4f}')
        return dict(held_out_accuracy=found)


def measure_hook(loss, held_out: tuple | None) -> Callable[[TickContext], dict]:
    """`on_tick` of TrainRun: `loss.measure` on the held-out (images, labels), if there are any."""
    return lambda context: {} if held_out is None else loss.measure(context.module, *held_out, context.batch_gpu)


def learning_rate(schedule: str, lr: float, batch_size: int, total_nimg: int) -> Callable[[int], float]:
    """Learning rate by number of images: a short warm-up, then constant or half a cosine; or one cycle up and down."""
    def at(nimg: int) -> float:
        done = nimg / total_nimg
        if schedule == 'one-cycle':
            return lr * min((done + 1e-3) / 0.2, (1 - done) / 0.8)
        warm = min((nimg + batch_size) / min(200 * batch_size, 0.1 * total_nimg), 1.0)
        return lr * warm * (1.0 if schedule == 'constant' else 0.5 + 0.5 * math.cos(math.pi * done))

    return at


def hold_out(data, val_fraction: float, val_images: int, seed: int) -> tuple[tuple, tuple | None]:
    """((training images, labels), (held-out images, labels) or None): `val_fraction` of `data`, at most `val_images`.

    data: `images` (uint8 [N, C, H, W]) and `labels` (int64 [N]), as `training.data.ImageData`. Raises ValueError if
    nothing is left to train on.
    """
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    split = round(len(data) * val_fraction)
    if len(data) - split < 1:
        raise ValueError(f'nothing is left to train on of {len(data)} images')
    train_rows, rows = order[split:], order[:split][:val_images]
    held_out = (take(data.images, rows), data.labels[rows]) if split else None
    return (take(data.images, train_rows), data.labels[train_rows]), held_out


def _device(net: torch.nn.Module) -> torch.device:
    return next(net.parameters()).device


def _accuracy(net: Callable, inputs: Callable, images, labels, batch_gpu: int | None, device) -> float:
    """Share of uint8 `images` that `net` classifies correctly; the ranks divide the work.

    `inputs(number, x)` turns the images of batch `number` into the arguments of `net`, which is called with `batch_gpu`
    (None: all) at a time.
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

    At most `batch_gpu` images go through the network at a time.
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
