"""DINOv2 against timm's network with the same weights, and the published resampling of its positions."""

import goldens
import numpy as np
import pytest
import torch

from metrics.detectors import DETECTORS, load_detector
from metrics.dinov2 import resample_positions

WIDTH, LAYERS = 128, 2


def state_dict(patches=16):
    """A small network under the published names, with recipe weights."""
    block = {'norm1.weight': (WIDTH,), 'norm1.bias': (WIDTH,), 'attn.qkv.weight': (3 * WIDTH, WIDTH),
             'attn.qkv.bias': (3 * WIDTH,), 'attn.proj.weight': (WIDTH, WIDTH), 'attn.proj.bias': (WIDTH,),
             'ls1.gamma': (WIDTH,), 'norm2.weight': (WIDTH,), 'norm2.bias': (WIDTH,),
             'mlp.fc1.weight': (4 * WIDTH, WIDTH), 'mlp.fc1.bias': (4 * WIDTH,), 'mlp.fc2.weight': (WIDTH, 4 * WIDTH),
             'mlp.fc2.bias': (WIDTH,), 'ls2.gamma': (WIDTH,)}
    shapes = {'cls_token': (1, 1, WIDTH), 'pos_embed': (1, 1 + patches ** 2, WIDTH),
              'patch_embed.proj.weight': (WIDTH, 3, 14, 14), 'patch_embed.proj.bias': (WIDTH,),
              'norm.weight': (WIDTH,), 'norm.bias': (WIDTH,)}
    shapes |= {f'blocks.{layer}.{name}': shape for layer in range(LAYERS) for name, shape in block.items()}
    return {name: goldens.recipe_tensor(name, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize('name, resize', [('dinov2', 'torch'), ('dinov2-pil', 'pil')])
def test_agrees_with_timm(tmp_path, name, resize):
    torch.save(state_dict() | dict(mask_token=torch.zeros(1, WIDTH)), tmp_path / 'dinov2.pth')
    detector = load_detector(name, path=tmp_path / 'dinov2.pth')
    golden = goldens.load('dinov2/features.npz')
    found = detector(torch.from_numpy(golden['images']))
    np.testing.assert_allclose(found.numpy(), golden[resize], rtol=1e-4, atol=1e-4)
    assert (detector.name, detector.distance, detector.feature_dim) == (name, 'FD-DINOv2', WIDTH)
    assert detector.classify is None and len(detector.fingerprint) == 8


def cubic(distance):
    """The kernel of torch's bicubic interpolation, Keys 1981 with a = -0.75."""
    d, a = np.abs(distance), -0.75
    near, far = (a + 2) * d ** 3 - (a + 3) * d ** 2 + 1, a * d ** 3 - 5 * a * d ** 2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def test_positions_are_resampled_as_published():
    """Patch k of 16 is taken at (k + 1/2) 37 / 16.1 - 1/2 of 37, edges repeated."""
    rng = np.random.RandomState(0)
    values = rng.standard_normal([37, 37])
    places = (np.arange(16) + 0.5) * 37 / 16.1 - 0.5
    padded = np.arange(-2, 39)
    weights = cubic(places[:, None] - padded)  # [16, 41]
    weights = np.stack([weights[:, padded.clip(0, 36) == i].sum(axis=1) for i in range(37)], axis=1)  # [16, 37]
    positions = torch.from_numpy(np.concatenate([[7], values.ravel()])).float().reshape(1, -1, 1)
    found = resample_positions(positions)
    assert found.shape == (1, 257, 1) and float(found[0, 0]) == 7
    np.testing.assert_allclose(found[0, 1:, 0].reshape(16, 16), weights @ values @ weights.T, atol=1e-5)
    same = torch.randn(1, 257, 4)
    assert resample_positions(same) is same


def test_foreign_files(tmp_path):
    assert 'dinov2' in DETECTORS
    lacking = state_dict()
    del lacking['blocks.1.mlp.fc2.bias']
    for state in (lacking, dict(a=torch.zeros(1)), [torch.zeros(1)]):
        torch.save(state, tmp_path / 'other.pth')
        with pytest.raises(ValueError, match='does not hold a'):
            load_detector('dinov2', path=tmp_path / 'other.pth')
