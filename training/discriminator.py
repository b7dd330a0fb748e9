"""The time-dependent discriminator of discriminator guidance: its images and its training loss.

The discriminator tells real from generated images after both were noised alike; its logit estimates
log p_data(x; t) - log p_model(x; t) (Kim et al. 2023, "Refining Generative Process with Discriminator
Guidance in Score-based Diffusion Models", arXiv:2211.17091, eq. 9).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion.vpsde import VPSDE
from torch_utils.image_store import join, take
from torch_utils.rng import step_generator
from training.augment import mirror


@dataclass(frozen=True)
class Pairs:
    """Real and generated images together, on the host.

    images: uint8 [N, C, H, W]; is_real: int64 [N], 1 real and 0 generated; labels: class indices int64 [N], or None.
    """

    images: torch.Tensor
    is_real: torch.Tensor
    labels: torch.Tensor | None

    def __len__(self):
        return len(self.images)

    def only_real(self) -> 'Pairs':
        """The real ones of them."""
        rows = self.is_real.nonzero()[:, 0]
        return Pairs(take(self.images, rows), self.is_real[rows], None if self.labels is None else self.labels[rows])

    @property
    def targets(self) -> torch.Tensor:
        """int64 [N, 1 or 2]: is_real and, if there are labels, the class; what `DiscriminatorLoss` is called with."""
        columns = [self.is_real] if self.labels is None else [self.is_real, self.labels]
        return torch.stack(columns, dim=1)


def split_pairs(real, generated, val_fraction: float, seed: int) -> tuple[Pairs, Pairs]:
    """(train, held out): both sources, `val_fraction` of each held out, the same images for the same seed.

    real, generated: objects with `images` (uint8 [N, C, H, W]) and `labels` (int64 [N] or None), as
    `training.data.ImageData`. Raises ValueError if shapes differ or one side has labels that the other lacks.
    """
    if real.images.shape[1:] != generated.images.shape[1:]:
        raise ValueError(f'real images are {list(real.images.shape[1:])}, '
                         f'generated ones {list(generated.images.shape[1:])}')
    if (real.labels is None) != (generated.labels is None):
        raise ValueError('only one of real and generated images have labels')
    parts: tuple[list, list] = ([], [])
    for is_real, source in ((1, real), (0, generated)):
        count = len(source.images)
        order = torch.randperm(count, generator=step_generator(seed, is_real, 7))
        split = round(count * val_fraction)
        for part, rows in zip(parts, (order[split:], order[:split]), strict=True):
            labels = None if source.labels is None else source.labels[rows]
            part.append(Pairs(take(source.images, rows), torch.full([len(rows)], is_real), labels))

    def joined(part):
        labels = None if part[0].labels is None else torch.cat([side.labels for side in part])
        return Pairs(join([side.images for side in part]), torch.cat([side.is_real for side in part]), labels)

    return joined(parts[0]), joined(parts[1])


class DiscriminatorLoss:
    """BCE with logits of one batch: draws t and noise, perturbs, extracts features, asks the discriminator.

    discriminator(features, t, condition=None) -> logits [N] or [N, 1].
    features(x_t, t) -> [N, C', H', W'] is the extractor; whatever of it requires gradients (adapters) gets them.
    time_map turns the linear VP time into the time that both networks are fed (identity, or `VPSDE.t_cos`).
    xflip mirrors half of the images (DG does not); augment(images, rng) -> (images, ...) changes real and generated
    ones alike.
    denoise(x, sigma, classes) is the score network whose samples the generated images are, in the variance-exploding
    space, classes being indices [N] or None: with it, `correction_error` can be measured.
    """

    def __init__(self, discriminator: Callable, features: Callable, sde: VPSDE, time_map: Callable | None = None,
                 xflip: bool = False, augment: Callable | None = None, denoise: Callable | None = None,
                 t_min: float = 1e-5):
        self.discriminator, self.features, self.sde = discriminator, features, sde
        self.time_map = time_map or (lambda t: t)
        self.xflip, self.augment, self.denoise, self.t_min = xflip, augment, denoise, t_min

    def logits(self, images, classes, t, noise) -> torch.Tensor:
        """Logits [N] of `images` [N, C, H, W] in [-1, 1] at linear times `t` [N]; classes: [N] or None."""
        return self._logits(self.sde.perturb(images, t, noise), classes, t)

    def _logits(self, perturbed, classes, t) -> torch.Tensor:
        fed = self.time_map(t)
        return self.discriminator(self.features(perturbed, fed).float(), fed, condition=classes).flatten()

    def correction_error(self, images, classes, t, noise, create_graph: bool = False):
        """(logits [N], error [N], error without guidance [N]) of the guided denoised images; for real images.

        The last two are the mean squares, over pixels, of (D + sigma^2 grad L - y) / sigma and of (D - y) / sigma, the
        first of them less the second: negative where guidance helps. On average over real images and the times of
        training, the error bounds the KL divergence of the guided model from the data (docs/equations.md).
        """
        mean, std = (factor.to(images)[:, None, None, None] for factor in self.sde.marginal(t))
        perturbed, sigma = mean * images + std * noise, std / mean
        with torch.no_grad():
            missing = (images - self.denoise(perturbed / mean, sigma.flatten(), classes)) / sigma
        # fused attention has no second derivative
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            perturbed.requires_grad_()
            logits = self._logits(perturbed, classes, t)
            gradient, = torch.autograd.grad(logits.sum(), perturbed, create_graph=create_graph)
        correction = std * gradient  # sigma grad L, in the units of `missing`
        error = (correction.square() - 2 * correction * missing).flatten(1).mean(1)
        return logits.detach(), error, missing.square().flatten(1).mean(1)

    def times(self, u: torch.Tensor) -> torch.Tensor:
        """Importance-sampled times float32 [N] from uniforms [N]."""
        return self.sde.sample_time(u, t_min=self.t_min).float()

    def __call__(self, images, targets, rng):
        """(loss [N], {'accuracy': [N]}) for images in [-1, 1] and `Pairs.targets` of the same rows."""
        images, t, noise = self._draw(images, rng)
        is_real, classes = split_targets(targets)
        logits = self.logits(images, classes, t, noise)
        loss = F.binary_cross_entropy_with_logits(logits, is_real, reduction='none')
        return loss, dict(accuracy=((logits > 0) == (is_real > 0.5)).float())

    def _draw(self, images, rng):
        """The images as they are used, times [N] and noise."""
        if self.xflip:
            images = mirror(images, rng)
        if self.augment is not None:
            images = self.augment(images, rng)[0]
        return images, self.times(rng.rand([len(images)])), rng.randn_like(images)


class CorrectionLoss(DiscriminatorLoss):
    """Score matching of the correction: what guidance by the gradient of the logit leaves of the score's error.

    It needs `denoise`, and only real images. Its minimiser has the gradient of the log-ratio of data and score network;
    the logit itself stays unknown up to a function of the time.
    """

    def __call__(self, images, targets, rng):
        """(loss [N], {'unguided_error': [N]}) for real images in [-1, 1] and their `Pairs.targets`."""
        images, t, noise = self._draw(images, rng)
        _, error, unguided = self.correction_error(images, split_targets(targets)[1], t, noise, create_graph=True)
        return error, dict(unguided_error=unguided)


class WithAdapters(torch.nn.Module):
    """A discriminator and the parameters of its feature extractor that are trained, and saved, together with it."""

    def __init__(self, discriminator: torch.nn.Module, adapters):
        super().__init__()
        self.discriminator, self.adapters = discriminator, torch.nn.ParameterList(adapters)

    def forward(self, features, t, condition=None):
        return self.discriminator(features, t, condition=condition)


def epoch_length(count: int, batch_size: int) -> int:
    """Images per epoch of `count` images: whole batches, as DG, which drops the rest. Raises ValueError for none."""
    if count < batch_size:
        raise ValueError(f'a batch of {batch_size} needs at least as many images; there are {count} to train on')
    return count // batch_size * batch_size


def split_targets(targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(is_real float32 [N], classes int64 [N] or None) of `Pairs.targets`."""
    return targets[:, 0].float(), targets[:, 1] if targets.shape[1] > 1 else None
