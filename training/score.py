"""Score networks in the training loop: step, learning rate, network files."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from training.augment import mirror


def score_step(net: torch.nn.Module, loss_fn, xflip: bool = False, augment=None) -> Callable:
    """`step_loss` of TrainRun for denoising score matching.

    The gradient is that of the error summed over pixels, as in EDM; the mean over pixels is reported.

    Args:
        net: denoiser net(x, sigma, class_labels, augment_labels=...) with `label_dim`.
        loss_fn: one of diffusion.losses.
        xflip: mirror half of the images.
        augment: an AugmentPipe, or None.
    """
    def step_loss(images, labels, rng):
        one_hot = F.one_hot(labels, net.label_dim).to(torch.float32) if net.label_dim else None
        augment_labels = None
        if xflip:
            images = mirror(images, rng)
        if augment is not None:
            images, augment_labels = augment(images, rng)
        loss = loss_fn(net, images, one_hot, rng, augment_labels)
        return loss * images[0].numel(), dict(loss=loss)

    return step_loss


def learning_rate(lr: float, rampup_nimg: float, total_nimg: int, decay: float) -> Callable[[int], float]:
    """Linear from 0 to `lr` over `rampup_nimg`, then constant, then half a cosine to 0 over the last fraction `decay`.

    decay = 0 is EDM's schedule, for long runs, in which averaging removes enough of the noise of the last steps.
    """
    def at(nimg: int) -> float:
        ramp = min(nimg / max(rampup_nimg, 1e-8), 1)
        left = (1 - nimg / total_nimg) / decay if decay > 0 else 1
        return lr * ramp * (0.5 - 0.5 * math.cos(math.pi * min(max(left, 0), 1)))

    return at


class Snapshots:
    """`on_snapshot` of TrainRun: writes network-<kimg>.safetensors and removes older ones.

    Args:
        save: `save(path, module, metadata)` writes one file, whole or not at all.
        keep_kimg: files at multiples of this many thousand images are kept; with 0 only the newest.
    """

    def __init__(self, outdir, save: Callable, keep_kimg: int = 0, metadata: dict | None = None):
        self.outdir, self.save, self.keep_kimg, self.metadata = Path(outdir), save, keep_kimg, metadata or {}

    def __call__(self, module: torch.nn.Module, nimg: int) -> None:
        kimg = nimg // 1000
        self.save(self.outdir / f'network-{kimg:06d}.safetensors', module, self.metadata | dict(nimg=nimg))
        for path in self.outdir.glob('network-*.safetensors'):
            match = re.fullmatch(r'network-(\d{6,})\.safetensors', path.name)
            if match and int(match[1]) < kimg and not (self.keep_kimg and int(match[1]) % self.keep_kimg == 0):
                path.unlink()
