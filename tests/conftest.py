"""Settings for all tests: one thread in each process, since `make test` runs two processes side by side."""

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')  # for the processes that tests start

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _float32_is_float32():
    """On GPUs, whose convolutions are TF32 by default."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(scope='session')
def files(tmp_path_factory):
    """A folder of tiny networks, see tiny_networks.py."""
    from tiny_networks import write_networks

    folder = tmp_path_factory.mktemp('networks')
    write_networks(folder)
    return folder
