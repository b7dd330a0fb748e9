"""The time-dependent discriminator of discriminator guidance: one training loss and its held-out scores.

The discriminator tells real from generated images after both were noised alike; its logit estimates
log p_data(x; t) - log p_model(x; t) (Kim et al. 2023, "Refining Generative Process with Discriminator
Guidance in Score-based Diffusion Models", arXiv:2211.17091, eq. 9).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from diffusion.vpsde import VPSDE
from torch_utils import distributed as dist
from torch_utils.images import from_uint8
from torch_utils.rng import step_generator
from training.augment import mirror

# sigma = std / mean of VP noise, the noise level in EDM's terms; the importance sampling of t is uniform in its log.
SIGMA_EDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 160.0)


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

    @property
    def targets(self) -> torch.Tensor:
        """int64 [N, 1 or 2]: is_real and, where there is one, the class; what `DiscriminatorLoss` is called with."""
        columns = [self.is_real] if self.labels is None else [self.is_real, self.labels]
        return torch.stack(columns, dim=1)


def split_pairs(real, generated, val_fraction: float, seed: int) -> tuple[Pairs, Pairs]:
    """(train, held out): both sources, `val_fraction` of each held out, the same images for the same seed.

    real, generated: objects with `images` (uint8 [N, C, H, W]) and `labels` (int64 [N] or None), as
    `training.data.ImageData`. Raises ValueError where shapes differ or one side has labels the other lacks.
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
            part.append(Pairs(source.images[rows], torch.full([len(rows)], is_real), labels))

    def join(part):
        labels = None if part[0].labels is None else torch.cat([side.labels for side in part])
        return Pairs(torch.cat([side.images for side in part]), torch.cat([side.is_real for side in part]), labels)

    return join(parts[0]), join(parts[1])


class DiscriminatorLoss:
    """BCE with logits of one batch: draws t and noise, perturbs, extracts features, asks the discriminator.

    discriminator(features, t, condition=None) -> logits [N] or [N, 1].
    features(x_t, t) -> [N, C', H', W'] is the frozen extractor; it runs without gradients.
    time_map turns the linear VP time into the time that both networks are fed (identity, or `VPSDE.t_cos`).
    xflip mirrors half of the images (DG does not).
    """

    def __init__(self, discriminator: Callable, features: Callable, sde: VPSDE, time_map: Callable | None = None,
                 xflip: bool = False, t_min: float = 1e-5):
        self.discriminator, self.features, self.sde = discriminator, features, sde
        self.time_map = time_map or (lambda t: t)
        self.xflip, self.t_min = xflip, t_min

    def logits(self, images, classes, t, noise) -> torch.Tensor:
        """Logits [N] of `images` [N, C, H, W] in [-1, 1] at linear times `t` [N]; classes: [N] or None."""
        fed = self.time_map(t)
        with torch.no_grad():
            features = self.features(self.sde.perturb(images, t, noise), fed)
        return self.discriminator(features.float(), fed, condition=classes).flatten()

    def times(self, u: torch.Tensor) -> torch.Tensor:
        """Importance-sampled times float32 [N] from uniforms [N]."""
        return self.sde.sample_time(u, t_min=self.t_min).float()

    def __call__(self, images, targets, rng):
        """(loss [N], {'accuracy': [N]}) for images in [-1, 1] and `Pairs.targets` of the same rows."""
        if self.xflip:
            images = mirror(images, rng)
        t = self.times(rng.rand([len(images)]))
        is_real, classes = split_targets(targets)
        logits = self.logits(images, classes, t, rng.randn_like(images))
        loss = F.binary_cross_entropy_with_logits(logits, is_real, reduction='none')
        return loss, dict(accuracy=((logits > 0) == (is_real > 0.5)).float())


def split_targets(targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(is_real float32 [N], classes int64 [N] or None) of `Pairs.targets`."""
    return targets[:, 0].float(), targets[:, 1] if targets.shape[1] > 1 else None


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties half; nan if a side is empty."""
    positive = np.asarray(positive, dtype=bool)
    hits, misses = int(positive.sum()), int((~positive).sum())
    if not hits or not misses:
        return float('nan')
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # ranks from 1, averaged over ties
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


def calibration_error(probability: np.ndarray, positive: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599): mean |confidence - frequency| over 10 bins."""
    bins = 10
    if not len(probability):
        return float('nan')
    place = np.minimum((probability * bins).astype(int), bins - 1)
    gap = np.bincount(place, weights=probability - positive, minlength=bins)
    return float(np.abs(gap).sum() / len(probability))


@torch.no_grad()
def held_out_logits(loss: DiscriminatorLoss, held_out: Pairs, batch_size: int, seed: int, device,
                    batch_gpu: int | None = None):
    """Logits, targets and noise levels sigma of the held-out images: numpy arrays [M]; the same noise each call.

    Times are stratified draws from the training distribution, always the same, so that two calls differ by what the
    discriminator has learned in between. The ranks divide the work; all get the whole result. Noise is drawn for
    `batch_size` images at once, of which `batch_gpu` (None: all) go through the networks at once, which changes
    rounding alone.
    """
    count, size = len(held_out), batch_gpu or batch_size
    generator = step_generator(seed, 11)
    strata = torch.randperm(count, generator=generator)
    times = loss.times((strata + torch.rand(count, generator=generator)) / count)
    logits = torch.zeros(count, dtype=torch.float64, device=device)
    targets = held_out.targets
    for number, start in enumerate(range(0, count, batch_size)):
        if number % dist.get_world_size() != dist.get_rank():
            continue
        stop = min(start + batch_size, count)
        noise = torch.randn([stop - start, *held_out.images.shape[1:]], device=device,
                            generator=step_generator(seed, 13, number, device=device))
        for low in range(start, stop, size):
            part = slice(low, min(low + size, stop))
            images = from_uint8(held_out.images[part].to(device))
            _, classes = split_targets(targets[part].to(device))
            logits[part] = loss.logits(images, classes, times[part].to(device),
                                       noise[low - start:part.stop - start]).double()
    dist.all_reduce_(logits)
    mean, std = loss.sde.marginal(times.double())
    return logits.cpu().numpy(), held_out.is_real.numpy(), (std / mean).numpy()


def held_out_scores(logits: np.ndarray, target: np.ndarray, sigma: np.ndarray) -> dict:
    """Loss, accuracy, AUC and ECE over all held-out images, and the last three per noise level (`levels`)."""
    loss = np.logaddexp(0, logits) - target * logits
    probability = np.exp(-np.logaddexp(0, -logits))

    def scores(chosen):
        right = (logits[chosen] > 0) == (target[chosen] > 0.5)
        return dict(loss=float(loss[chosen].mean()), accuracy=float(right.mean()),
                    auc=area_under_curve(logits[chosen], target[chosen]),
                    ece=calibration_error(probability[chosen], target[chosen]))

    result = scores(np.ones(len(logits), dtype=bool))
    result['levels'] = []
    for low, high in zip(SIGMA_EDGES[:-1], SIGMA_EDGES[1:], strict=True):
        chosen = (sigma >= low) & (sigma < high)
        if chosen.any():
            result['levels'].append(dict(sigma_from=low, sigma_to=high, count=int(chosen.sum()), **scores(chosen)))
    return result


def scores_table(scores: dict) -> str:
    """The held-out scores per noise level as text, and a note on why 0.5 is expected at large noise."""
    lines = [f'{"sigma":>15}  {"images":>6}  {"accuracy":>8}  {"AUC":>6}  {"ECE":>6}']
    for level in scores['levels']:
        span = f'{level["sigma_from"]:g} - {level["sigma_to"]:g}'
        lines.append(f'{span:>15}  {level["count"]:6d}  {level["accuracy"]:8.3f}  {level["auc"]:6.3f}  '
                     f'{level["ece"]:6.3f}')
    lines.append('At large noise real and generated images are alike: accuracy and AUC of 0.5 are expected there.')
    return '\n'.join(lines)
