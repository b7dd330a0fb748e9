"""Scores of a discriminator on held-out images, and what its run does with them after each epoch."""

import math
import re
from collections.abc import Callable

import numpy as np
import torch

from torch_utils import distributed as dist
from torch_utils.images import from_uint8
from torch_utils.rng import step_generator
from training.discriminator import DiscriminatorLoss, Pairs, split_targets
from training.run import TickContext

PICTURE = 'training.png'
LORA_FILES = ('lora_adm_final.pt', 'lora_adm_final.safetensors', 'lora_best.pt', 'lora_best.safetensors')
# sigma = std / mean of VP noise, the noise level in EDM's terms; importance sampling of t is uniform in log sigma.
SIGMA_EDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 160.0)


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: P(score of a positive > that of a negative), ties half; nan if a side is empty."""
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
    """Logits, targets, noise levels sigma and, if the loss has a `denoise`, errors of the correction of the held-out
    images: numpy arrays [M] (else None); the same noise each call.

    Times are stratified draws from the training distribution, always the same, so that two calls differ only by what
    the discriminator has learned in between. The ranks divide the work; each gets the whole result. Noise is drawn for
    `batch_size` images at once, of which `batch_gpu` (None: all) go through the networks at a time; that changes only
    rounding.
    """
    count, size = len(held_out), batch_gpu or batch_size
    generator = step_generator(seed, 11)
    strata = torch.randperm(count, generator=generator)
    times = loss.times((strata + torch.rand(count, generator=generator)) / count)
    logits, errors = torch.zeros([2, count], dtype=torch.float64, device=device)
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
            given = images, classes, times[part].to(device), noise[low - start:part.stop - start]
            if loss.denoise is None:
                logits[part] = loss.logits(*given).double()
            else:
                logits[part], errors[part], _ = loss.correction_error(*given)
    dist.all_reduce_(logits)
    dist.all_reduce_(errors)
    mean, std = loss.sde.marginal(times.double())
    return (logits.cpu().numpy(), held_out.is_real.numpy(), (std / mean).numpy(),
            None if loss.denoise is None else errors.cpu().numpy())


def held_out_scores(logits: np.ndarray, target: np.ndarray, sigma: np.ndarray,
                    errors: np.ndarray | None = None) -> dict:
    """Loss (BCE), accuracy, AUC, ECE and, if `errors` are given, `correction` over all held-out images, and all but the
    loss per noise level (`levels`). The correction is the mean error of real images, negative where guidance helps."""
    loss = np.logaddexp(0, logits) - target * logits
    probability = np.exp(-np.logaddexp(0, -logits))

    def scores(chosen):
        right = (logits[chosen] > 0) == (target[chosen] > 0.5)
        found = dict(loss=float(loss[chosen].mean()), accuracy=float(right.mean()),
                     auc=area_under_curve(logits[chosen], target[chosen]),
                     ece=calibration_error(probability[chosen], target[chosen]))
        real = chosen & (target > 0.5)
        return found if errors is None or not real.any() else found | dict(correction=float(errors[real].mean()))

    result = scores(np.ones(len(logits), dtype=bool))
    result['levels'] = []
    for low, high in zip(SIGMA_EDGES[:-1], SIGMA_EDGES[1:], strict=True):
        chosen = (sigma >= low) & (sigma < high)
        if chosen.any():
            result['levels'].append(dict(sigma_from=low, sigma_to=high, count=int(chosen.sum()), **scores(chosen)))
    return result


def scores_table(scores: dict) -> str:
    """Held-out scores per noise level as text, with a note on why 0.5 is expected at large noise."""
    corrected = 'correction' in scores
    lines = [f'{"sigma":>15}  {"images":>6}  {"accuracy":>8}  {"AUC":>6}  {"ECE":>6}'
             + f'  {"correction":>10}' * corrected]
    for level in scores['levels']:
        span = f'{level["sigma_from"]:g} - {level["sigma_to"]:g}'
        lines.append(f'{span:>15}  {level["count"]:6d}  {level["accuracy"]:8.3f}  {level["auc"]:6.3f}  '
                     f'{level["ece"]:6.3f}' + f'  {level.get("correction", math.nan):10.5f}' * corrected)
    lines.append('At large noise real and generated images are alike: accuracy and AUC of 0.5 are expected there.')
    return '\n'.join(lines)


class EpochHooks:
    """`on_tick` and `on_snapshot` of a discriminator's run, once per epoch: measure, keep the best network, stop early.

    Args:
        loss, held_out: what is measured, and the images; if there are none, nothing is measured. The best network
            has the least error of the correction if the loss can measure it, else the least BCE.
        batch_size, seed: of the run; they fix the noise on the held-out images.
        epoch_nimg, epochs: images per epoch, and the number of epochs of the run.
        patience: stop after this many epochs without a better network; 0 = never.
        save_every: epochs between files discriminator_<epoch>.pt; the last epoch always gets one.
        save: `save(name, net, **measured)` writes a network file of this name.
    """

    def __init__(self, loss: DiscriminatorLoss, held_out: Pairs, batch_size: int, seed: int, epoch_nimg: int,
                 epochs: int, patience: int, save_every: int, save: Callable[..., None]):
        self.loss, self.held_out, self.batch_size, self.seed = loss, held_out, batch_size, seed
        self.epoch_nimg, self.epochs, self.patience, self.save_every = epoch_nimg, epochs, patience, save_every
        self.save = save

    def on_tick(self, context: TickContext) -> dict:
        epoch = context.nimg // self.epoch_nimg
        if not len(self.held_out):
            return dict(epoch=epoch)
        device = next(context.module.parameters()).device
        scores = held_out_scores(*held_out_logits(self.loss, self.held_out, self.batch_size, self.seed, device,
                                                  context.batch_gpu))
        memory = context.memory
        measure = 'correction' if 'correction' in scores else 'loss'
        if scores[measure] < memory.get('best_loss', math.inf):
            memory.update(best_loss=scores[measure], best_measure=measure, best_epoch=epoch)
            if dist.get_rank() == 0:
                for name in ('best.pt', 'best.safetensors'):
                    self.save(name, context.module, **{'epoch': epoch, f'held_out_{measure}': scores[measure]})
        dist.print0(f'epoch {epoch}, held out:\n{scores_table(scores)}')
        if self.patience and epoch - memory.get('best_epoch', 0) >= self.patience:
            dist.print0(f'no better held-out {measure} for {self.patience} epochs: stopping')
            context.stop()
        return dict(epoch=epoch) | {f'held_out_{name}': value for name, value in scores.items()}

    def on_snapshot(self, net: torch.nn.Module, nimg: int) -> None:
        epoch, beyond = divmod(nimg, self.epoch_nimg)
        if beyond == 0 and (epoch % self.save_every == 0 or epoch == self.epochs):
            self.save(f'discriminator_{epoch}.pt', net)


def owns(config: dict, name: str) -> bool:
    """Whether a run of train.py writes a file of this name; discriminators of later epochs may be published ones."""
    numbered = re.fullmatch(r'(discriminator|lora_adm)_(\d+)\.(pt|safetensors)', name)
    if numbered:
        return int(numbered[2]) <= config.get('epoch', 0)
    return name in ('best.pt', 'best.safetensors', PICTURE, *LORA_FILES)
