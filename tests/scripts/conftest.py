"""Images that the training scripts are tested with."""

import numpy as np
import pytest


@pytest.fixture(scope='session')
def images():
    """uint8 [40, 8, 8, 3]."""
    return np.random.RandomState(0).randint(256, size=[40, 8, 8, 3], dtype=np.uint8)


@pytest.fixture
def data(tmp_path, images):
    """--data with `images`, of four classes, in tmp_path / 'data.npz'."""
    np.savez(tmp_path / 'data.npz', samples=images, label=np.arange(40) % 4)
    return f'--data={tmp_path / "data.npz"}'
