"""Images in any usual form give the same uint8 pictures."""

import types

import numpy as np
import pytest
import torch

from torch_utils.images import as_uint8, from_uint8, to_uint8


@pytest.mark.parametrize('channels', [1, 3])
def test_every_form_gives_the_same_images(channels):
    expected = np.random.default_rng(0).integers(0, 256, [5, 6, 7, channels], dtype=np.uint8)  # [N, H, W, C]
    nchw = torch.from_numpy(expected).permute(0, 3, 1, 2)
    floats = from_uint8(nchw).double()
    for images in (expected, torch.from_numpy(expected), nchw, nchw.numpy(), floats, floats.numpy(),
                   types.SimpleNamespace(images=floats), floats.requires_grad_()):
        np.testing.assert_array_equal(as_uint8(images), expected)


def test_floats_are_converted_as_when_they_are_saved():
    x = torch.randn(4, 3, 8, 8)  # also beyond [-1, 1], as samplers return them
    np.testing.assert_array_equal(as_uint8(x), to_uint8(x))


@pytest.mark.parametrize('images, message', [
    (torch.zeros(3, 8, 8), r'float32 \[3, 8, 8\]'),
    (torch.zeros(2, 8, 8, 3), r'float32 \[2, 8, 8, 3\]'),
    (torch.zeros(2, 3, 8, 8, dtype=torch.int64), 'int64'),
    (torch.zeros(2, 4, 8, 8, dtype=torch.uint8), r'uint8 \[2, 4, 8, 8\]'),
    (torch.full((2, 3, 8, 8), float('nan')), 'NaN'),
])
def test_what_is_not_images(images, message):
    with pytest.raises(ValueError, match=message):
        as_uint8(images)
