"""Classifier-free guidance against the published weighted score."""

import numpy as np
import pytest
import torch
from goldens import load
from published_run import write_run

from networks.reflected import load_reflected
from sampling.classifier_free import ClassifierFree
from sampling.denoiser import Denoiser


@pytest.mark.parametrize('empty', ['weighted_score_fp32', 'output_no_label_fp32'])
def test_weighted_score(tmp_path, empty):
    """The published code takes class 0 for the empty label; training used the zero vector."""
    golden, net = load('reflected/adm.npz'), load_reflected(write_run(tmp_path, 'adm'))
    x, std = (torch.from_numpy(golden[name]).to(torch.float64) for name in ('x', 'std'))
    labels = torch.eye(10)[torch.from_numpy(golden['class_labels'])]
    weights = golden['weight'].reshape(-1, 1, 1, 1)
    expected = golden[empty] if empty == 'weighted_score_fp32' else (
        (1 + weights) * golden['output_ema_weights_fp32'] - weights * golden[empty])
    for row, w in enumerate(golden['weight']):
        guidance = ClassifierFree(w, torch.eye(10)[0] if empty == 'weighted_score_fp32' else None)
        denoise, rows = Denoiser(net, 1), slice(row, row + 1)
        score = (guidance(denoise)(x[rows], std[rows], labels[rows]) - x[rows]) / std[row]**2
        np.testing.assert_allclose(score, expected[rows], rtol=2e-4, atol=2e-4 * np.abs(expected[row]).max())
        assert denoise.costs['nfe'][0] == 2
