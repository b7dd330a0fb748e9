"""Training of the noise-level model: its loss, its measurements, and the files of the script."""

import json

import numpy as np
import torch
from click.testing import CliRunner
from torch.nn import functional as F

import train_classifier
from networks.noise_level import load_noise_level
from training.noise_level import NoiseLevelLoss, calibration
from training.randomness import BatchRandom

SIGMAS = torch.logspace(1, -1, 40, dtype=torch.float64)


class ByVariance(torch.nn.Module):
    """The likelihood of each level for grey images: x is N(0, sigma^2) in every pixel."""

    def __init__(self):
        super().__init__()
        self.sharpness = torch.nn.Parameter(torch.ones([]))

    def forward(self, x):
        mean = x.double().square().flatten(1).sum(1, keepdim=True)
        return (-0.5 * mean / SIGMAS**2 - x[0].numel() * SIGMAS.log()) * self.sharpness


def test_loss_is_cross_entropy_at_uniform_levels():
    rng = BatchRandom(0, 0, 64, torch.device('cpu'))
    loss, stats = NoiseLevelLoss(ByVariance(), SIGMAS, xflip=False)(torch.zeros(64, 3, 8, 8), None, rng)
    again = BatchRandom(0, 0, 64, torch.device('cpu'))
    level = (40 * again.rand([64])).long()
    x = SIGMAS.float()[level][:, None, None, None] * again.randn([64, 3, 8, 8])
    torch.testing.assert_close(loss, F.cross_entropy(ByVariance()(x).float(), level, reduction='none'))
    assert len(set(level.tolist())) > 25 and stats['octaves'].max() < 0.6


def test_calibration_of_the_exact_posterior():
    """The expected spread is the observed one: about 1 / sqrt(2 d) in log sigma, d = 192."""
    rows = calibration(ByVariance(), SIGMAS, torch.full([200, 3, 8, 8], 127, dtype=torch.uint8))
    middle = rows[4:-4]
    assert np.allclose([row['median'] for row in middle], [row['sigma'] for row in middle], rtol=0.02)
    assert np.allclose([row['spread'] for row in middle], 1 / np.sqrt(384) / np.log(2), rtol=0.2)
    assert all(row['low'] < row['sigma'] < row['high'] for row in middle)


def test_script(tmp_path):
    """It needs no labels; generate_dmcmc.py reads the file; another range is another run."""
    np.savez(tmp_path / 'data.npz', samples=np.random.RandomState(0).randint(256, size=[60, 32, 32, 3], dtype=np.uint8))
    common = [f'--outdir={tmp_path / "run"}', '--task=noise_level', f'--data={tmp_path / "data.npz"}', '--kimg=0.1',
              '--batch=50', '--classes=30', '--device=cpu', '--val_fraction=0.1']
    result = CliRunner().invoke(train_classifier.main, [*common, '--sigma_min=0.02', '--sigma_max=50'])
    assert result.exit_code == 0, result.output
    net = load_noise_level(tmp_path / 'run' / 'noise_level.safetensors')
    assert len(net.sigmas) == 30 and net.sigmas[0] == 50 and (tmp_path / 'run' / 'calibration.png').is_file()
    line = json.loads((tmp_path / 'run' / 'stats.jsonl').read_text().splitlines()[-1])
    assert len(line['calibration']) == 24 and line['held_out_octaves'] > 0
    result = CliRunner().invoke(train_classifier.main, [*common, '--sigma_max=40'])
    assert result.exit_code == 1 and '--outdir: ' in result.output and 'sigma_m' in result.output
    result = CliRunner().invoke(train_classifier.main, [*common[:1], common[2], '--sigma_max=40'])
    assert result.exit_code == 1 and '--sigma_max: belongs to --task=noise_level' in result.output
