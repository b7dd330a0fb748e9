"""Decisions on device and precision, and memory."""

import platform

import pytest
import torch
from script_runs import run_forked

from torch_utils import device as lib

CPU, CUDA = torch.device('cpu'), torch.device('cuda')


def test_precision(monkeypatch):
    monkeypatch.setattr(lib, 'has_fast_bf16', lambda kind: kind == 'cuda')
    assert lib.select_precision('auto', CPU) == torch.float32
    assert lib.select_precision('auto', CUDA) == torch.bfloat16
    assert lib.select_precision('fp16', CUDA) == torch.float16
    assert lib.select_precision('tf32', CUDA) == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    assert lib.select_precision('fp32', CUDA) == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    for name, beside in (('fp32', False), ('auto', True), ('bf16', True), ('fp16', True), ('tf32', True)):
        lib.select_precision(name, CUDA, tf32_beside_half=True)
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == beside
    lib.select_precision('bf16', CUDA)
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    with pytest.raises(ValueError, match='fp16 needs a GPU'):
        lib.select_precision('fp16', CPU)
    with pytest.raises(ValueError, match='not a precision'):
        lib.select_precision('int8', CPU)


def test_devices_that_do_not_exist():
    assert lib.select_device('cpu') == CPU
    for name in ('tpu', 'mps', 'cuda:99'):
        with pytest.raises(ValueError, match='use'):
            lib.select_device(name)


FAULTS = '''
import resource, sys, torch
from torch_utils.device import select_device
if sys.argv[1] == 'kept':
    select_device('cpu')
for i in range(20):
    if i == 10:  # an aligned tensor does not fit exactly into what another one left, so it takes a few
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(2**24)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
'''


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another C library')
def test_freed_memory_is_used_again(tmp_path):
    """The pages of large tensors are requested from the system a few times, not each time."""
    (tmp_path / 'job.py').write_text(FAULTS)
    faults = {name: int(run_forked(tmp_path / 'job.py', [name]).stdout) for name in ('kept', 'returned')}
    assert faults['kept'] < 0.1 * faults['returned'], faults
