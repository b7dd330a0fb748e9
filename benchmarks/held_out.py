"""Which held-out measure of a discriminator predicts how much its guidance gains? Measured where the gain can be: on
mixtures of Gaussians, with discriminators that have too few images. Its results are in docs/results/README.md.

    python -m benchmarks.held_out [--json=docs/results/held-out.json]
"""

import itertools
import json
import math
from pathlib import Path

import click
import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.diffrs_mixtures import unbiased_energy_distance
from diffusion.mixtures import GaussianMixture, MixtureNet
from diffusion.vpsde import VPSDE
from dnnlib.cli import blame
from dnnlib.files import atomic_write
from sampling import DiscriminatorGuidance, edm_sampler
from torch_utils.progress import progress
from torch_utils.rng import step_generator
from training.discriminator import CorrectionLoss, DiscriminatorLoss
from training.held_out import held_out_scores
from training.randomness import BatchRandom

DIM = 4
CENTRES = torch.tensor(list(itertools.product([-0.6, 0.6], repeat=2)), dtype=torch.float64).repeat(1, DIM // 2)
DATA = GaussianMixture(CENTRES, [0.4, 0.3, 0.2, 0.1], [0.2, 0.25, 0.2, 0.3])
MODEL = GaussianMixture(0.9 * CENTRES, [0.25, 0.25, 0.25, 0.25], [0.27, 0.27, 0.27, 0.27])
BANDS = {'sigma below 0.1': (0, 0.1), '0.1 to 1': (0.1, 1), 'above 1': (1, math.inf)}
BATCH = 128
STEPS = (25, 50, 100, 200, 400, 800, 1600)  # of the optimizer, after which a discriminator is measured


class Discriminator(torch.nn.Module):
    """Logits [N] of noisy VP images [N, D, 1, 1] at times t [N]; as a log-ratio of the samplers, `log_ratio`."""

    def __init__(self):
        super().__init__()
        sizes = [DIM + 2, 128, 128, 1]
        layers = [layer for pair in itertools.pairwise(sizes) for layer in (torch.nn.Linear(*pair), torch.nn.SiLU())]
        self.layers, self.sde = torch.nn.Sequential(*layers[:-1]), VPSDE()

    def forward(self, x, t, condition=None):
        mean, std = (factor.float() for factor in self.sde.marginal(t.double()))
        return self.layers(torch.cat([x.flatten(1).float(), mean[:, None], std.log()[:, None]], dim=1))[:, 0]

    def log_ratio(self, x, sigma, class_labels=None):
        t = self.sde.tau(torch.as_tensor(sigma, dtype=torch.float64)).expand(len(x))
        return self(self.sde.marginal(t)[0][:, None, None, None] * x, t)


def images(mixture: GaussianMixture, count: int, *seeds: int) -> torch.Tensor:
    """`count` draws as float32 images [N, D, 1, 1]."""
    return mixture.sample(count, step_generator(*seeds)).float()[:, :, None, None]


def gain(net: Discriminator, count: int, seed: int) -> float:
    """1 less the energy distance of guided samples (weight 1, Heun) to the data, as a share of the unguided one's."""
    latents = torch.randn([count, DIM, 1, 1], dtype=torch.float64, generator=step_generator(seed, 0, 1))
    guidance = DiscriminatorGuidance(net.log_ratio, weight_1st=1, weight_2nd=1, time_min=0)
    real = images(DATA, 2 * count, seed, 0, 2)
    guided, unguided = (unbiased_energy_distance(edm_sampler(denoiser, latents), real)
                        for denoiser in (guidance(MixtureNet(MODEL)), MixtureNet(MODEL)))
    return 1 - guided / unguided


def measures(loss: DiscriminatorLoss, real: torch.Tensor, generated: torch.Tensor, seed: int) -> dict:
    """Every held-out measure of training/held_out.py, signed so that less is better."""
    both, target = torch.cat([real, generated]), np.repeat([1, 0], [len(real), len(generated)])
    generator = step_generator(seed, 0, 3)
    strata = torch.randperm(len(both), generator=generator)  # as in training/held_out.py
    t = loss.times((strata + torch.rand(len(both), generator=generator)) / len(both))
    logits, errors, _ = loss.correction_error(both, None, t, torch.randn(both.shape, generator=generator))
    mean, std = loss.sde.marginal(t.double())
    logits, sigma, errors = (values.double().numpy() for values in (logits, std / mean, errors.detach()))
    found = held_out_scores(logits, target, sigma, errors)
    named = {'cross-entropy': found['loss'], 'accuracy': -found['accuracy'], 'AUC': -found['auc'],
             'calibration error': found['ece'], 'correction': found['correction']}
    for name, (low, high) in BANDS.items():
        named[f'correction, {name}'] = float(errors[(target == 1) & (sigma >= low) & (sigma < high)].mean())
    return named


def train(objective: str, count: int, lr: float, seed: int, samples: int) -> list[dict]:
    """One training on `count` real and as many generated images: the measures and the gain after each of STEPS.

    Keys of random numbers are (seed, 0, ...); (seed, step) are those of the steps, from 1.
    """
    torch.manual_seed(seed)
    net = Discriminator()
    score = objective == 'score'
    loss = (CorrectionLoss if score else DiscriminatorLoss)(
        net, lambda x, t: x, VPSDE(), denoise=lambda x, sigma, classes: MODEL.denoiser(x, sigma).float())
    real, generated = (images(mixture, count, seed, 0, 4, side) for side, mixture in enumerate((DATA, MODEL)))
    held_out = [images(mixture, 500, seed, 0, 5, side) for side, mixture in enumerate((DATA, MODEL))]
    pool = real if score else torch.cat([real, generated])
    targets = torch.cat([torch.ones(len(real)), torch.zeros(len(generated))]).long()[:, None]
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    found = []
    for step in range(1, max(STEPS) + 1):
        rows = torch.randint(len(pool), [BATCH], generator=step_generator(seed, 0, 6, step))
        value, _ = loss(pool[rows], targets[rows], BatchRandom(seed, step, BATCH, 'cpu'))
        optimizer.zero_grad()
        value.mean().backward()
        optimizer.step()
        if step in STEPS:
            measured = dict(step=step, gain=gain(net, samples, seed), **measures(loss, *held_out, seed))
            found.append({name: float(f'{value:.5g}') for name, value in measured.items()})
    return found


def summary(runs: list[list[dict]]) -> dict[str, list[str]]:
    """Per measure, as words: the rank correlation with the gain, of all discriminators and, on average, of those of one
    run; the gain of the discriminators that it chooses, one of each run, and the least of these. "+-" is over runs."""
    def correlation(name, rows):
        return -float(spearmanr([row[name] for row in rows], [row['gain'] for row in rows]).statistic)

    def mean(values):
        return f'{np.mean(values):.2f} +- {np.std(values, ddof=1) / math.sqrt(len(values)):.2f}'

    choices = {name: lambda run, name=name: min(run, key=lambda row: row[name])
               for name in runs[0][0] if name not in ('step', 'gain')}
    table = {}
    others = {'the last': lambda run: run[-1], 'the best': lambda run: max(run, key=lambda row: row['gain'])}
    for name, choose in (choices | others).items():
        gains = [choose(run)['gain'] for run in runs]
        table[name] = ['', '', mean(gains), f'{min(gains):.2f}']
        if name in choices:
            table[name][:2] = (f'{correlation(name, list(itertools.chain(*runs))):.2f}',
                               mean([correlation(name, run) for run in runs]))
    return table


@click.command()
@click.option('--repeats', help='Trainings of each setting', metavar='INT', type=click.IntRange(min=1), default=3,
              show_default=True)
@click.option('--samples', help='Samples whose distance is measured', metavar='INT', type=click.IntRange(min=100),
              default=2000, show_default=True)
@click.option('--json', 'path', help='Also write all numbers there', metavar='FILE', type=click.Path(dir_okay=False))
def main(repeats, samples, path):
    """Train discriminators on mixtures, measure each of them often, and tabulate which measure predicts its gain."""
    torch.set_num_threads(1)
    if path and not Path(path).parent.is_dir():  # before the work, not after it
        raise click.ClickException(f'--json: {Path(path).parent} is not a folder')
    # A seed for each: both objectives see the same images, and no two trainings of one objective do.
    settings = list(enumerate(itertools.product([100, 400, 1600], [1e-3, 4e-3], range(repeats))))
    results = {'bce': [], 'score': []}
    with progress(total=2 * len(settings), desc='held_out', unit='run') as bar:
        for (seed, (count, lr, _)), objective in itertools.product(settings, results):
            results[objective].append(train(objective, count, lr, seed, samples))
            bar.update()
    for objective, runs in results.items():
        print(f'\n--loss={objective}, {len(runs)} trainings')
        print('| measure | all | within a run | gain of its choice | least |\n|---|---|---|---|---|')
        for name, words in summary(runs).items():
            print(f'| {name} | ' + ' | '.join(words) + ' |')
    if path:
        with blame('--json'), atomic_write(path) as file:
            file.write(json.dumps(results).encode())


if __name__ == '__main__':
    main()
