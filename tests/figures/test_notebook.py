"""Grids from Python: every sample in its place, pixel by pixel."""

import types

import numpy as np
import pytest
import torch

import figures
from torch_utils.images import image_grid, to_uint8


@pytest.mark.parametrize('columns', [None, 2, 5])
def test_show_draws_samples(columns):
    x = torch.rand(5, 3, 8, 6, dtype=torch.float64) * 2 - 1
    expected = image_grid(to_uint8(x), columns)
    for samples in (x, types.SimpleNamespace(images=x), torch.from_numpy(to_uint8(x))):
        np.testing.assert_array_equal(np.asarray(figures.show(samples, columns)), expected)


def test_grey_samples():
    x = torch.rand(4, 1, 8, 8) * 2 - 1
    np.testing.assert_array_equal(np.asarray(figures.show(x)), image_grid(to_uint8(x))[:, :, 0])


def test_nothing_to_show():
    with pytest.raises(ValueError, match='no samples'):
        figures.show(torch.zeros(0, 3, 8, 8))
