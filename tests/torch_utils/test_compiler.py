"""Whether compiling pays."""

import pytest
import torch
import torch._inductor.config as inductor

from torch_utils import compiler as lib

CPU, CUDA = torch.device('cpu'), torch.device('cuda')


def product():
    """2 * 10 * 20 * 30 = 12,000 operations."""
    return torch.ones(10, 20) @ torch.ones(20, 30)


def test_flops_of_a_product():
    assert lib.count_flops(product) == 12000


def test_compiling_is_for_long_runs(monkeypatch):
    monkeypatch.setattr(lib.shutil, 'which', lambda name: f'/bin/{name}')
    needed = {device: round(lib.COMPILE_FLOPS[device.type] / 12000) for device in (CPU, CUDA)}
    for device, evaluations in needed.items():
        assert lib.select_compile('auto', device, product, evaluations + 1)
        assert not lib.select_compile('auto', device, product, evaluations - 1)
        assert lib.select_compile('on', device, product, 1)
        assert not lib.select_compile('off', device, product, 2 * evaluations)
    assert needed[CPU] < needed[CUDA]


def test_no_compiler_no_compiling(monkeypatch):
    monkeypatch.setattr(lib.shutil, 'which', lambda name: None)
    assert not lib.select_compile('auto', CPU, product, 10**15)
    assert not lib.select_compile('auto', CUDA, product, 10**15)
    monkeypatch.setattr(lib.shutil, 'which', lambda name: '/bin/clang' if name == 'clang' else None)
    monkeypatch.delenv('CC', raising=False)
    assert lib.select_compile('auto', CUDA, product, 10**15)


@pytest.mark.skipif(not hasattr(inductor, 'deterministic'), reason='this torch chooses kernels by their time')
def test_reproducible_kernels():
    with inductor.patch(deterministic=False):
        lib.prepare_compiler()
        assert not inductor.deterministic
        lib.prepare_compiler(reproducible=True)
        assert inductor.deterministic
