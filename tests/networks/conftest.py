"""DG's golden log-ratios, and the files of its networks."""

import pytest
import torch
from dg_goldens import write_files
from goldens import load


@pytest.fixture(scope='session')
def dg():
    """Log-ratios and gradients of DG and DiffRS at five noise levels, as tensors by name."""
    return {key: torch.as_tensor(value) for key, value in load('dg/grad_log_ratio.npz').items()}


@pytest.fixture(scope='session')
def dg_files(tmp_path_factory):
    """(classifier.pt, {'uncond': ..., 'cond': ...})."""
    return write_files(tmp_path_factory.mktemp('dg'))
