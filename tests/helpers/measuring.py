"""A working folder for the measuring scripts."""

import goldens
import numpy as np
import torch

from dnnlib import demo
from metrics.detectors import load_detector
from metrics.feature_net import FeatureNet, save_feature_net
from metrics.reference import Reference


def make_place(tmp_path, monkeypatch):
    """Makes `tmp_path` that folder: a detector, statistics of it and shards of 60 samples, as if they were the demo."""
    net = goldens.recipe_(FeatureNet(widths=(8, 12), blocks=(1, 1))).eval()
    save_feature_net(tmp_path / 'features.safetensors', net)
    monkeypatch.setattr(demo, 'DEMO_FEATURES', tmp_path / 'features.safetensors')
    monkeypatch.setattr(demo, 'DEMO_STATS', tmp_path / 'stats/demo.npz')
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / 'samples/run').mkdir(parents=True)
    for first in range(0, 60, 20):
        samples = rng.integers(0, 200, [20, 32, 32, 3], dtype=np.uint8)
        np.savez(tmp_path / f'samples/run/samples_{first:08d}.npz', samples=samples)
    real = rng.integers(0, 256, [80, 32, 32, 3], dtype=np.uint8)
    detector = load_detector('cifar10')
    f = detector(torch.from_numpy(real).permute(0, 3, 1, 2))
    Reference(f.double().mean(0).numpy(), np.cov(f.double().numpy(), rowvar=False), 'cifar10', detector.fingerprint,
              80, 'noise', f.half().numpy()).save(tmp_path / 'stats/demo.npz')
    return tmp_path
