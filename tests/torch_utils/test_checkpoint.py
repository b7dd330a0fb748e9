"""State files: what is read, what is refused, and networks that are no larger than their file."""

import pytest
import torch
from torch import nn

from torch_utils import checkpoint
from torch_utils.checkpoint import limited, load_state, save_state_dict


def test_the_prefix_of_distributed_training_is_taken_away(tmp_path):
    net = nn.Linear(2, 3)
    save_state_dict(tmp_path / 'plain.pt', net)
    torch.save({f'module.{key}': value for key, value in net.state_dict().items()}, tmp_path / 'ddp.pt')
    for name in ('plain.pt', 'ddp.pt'):
        found = load_state(tmp_path / name)
        assert found.keys() == {'weight', 'bias'} and torch.equal(found['weight'], net.weight)
    state = {'module': {'a': torch.ones(1)}, 'module.x': torch.ones(1)}  # a training state is left alone
    torch.save(state, tmp_path / 'state.pt')
    assert load_state(tmp_path / 'state.pt').keys() == state.keys()


@pytest.mark.parametrize('zipped', [True, False])
def test_states_of_both_formats(tmp_path, zipped):
    """Tensors that share a storage, nested containers, numbers, and a key of a tuple."""
    whole = torch.arange(12.0)
    state = dict(a=whole[:6].view(2, 3), b=[whole[6:], 3, 'text', None], step=7,
                 c={(1, 'x'): torch.tensor(2, dtype=torch.bfloat16)})
    torch.save(state, tmp_path / 'state.pt', _use_new_zipfile_serialization=zipped)
    found = load_state(tmp_path / 'state.pt')
    assert torch.equal(found['a'], state['a']) and torch.equal(found['b'][0], whole[6:])
    assert found['b'][1:] == [3, 'text', None] and found['c'][1, 'x'] == 2 and found['step'] == 7


@pytest.mark.parametrize('name, blob, message', [
    ('page.pt', b'\n<!DOCTYPE html>', 'page.pt is a web page, not a PyTorch file; download it again'),
    ('x.pt', b'version https://git-lfs.github.com/spec/v1', 'is a Git LFS pointer'),
    ('x.pt', b'', 'is not a PyTorch file of tensors')])
def test_other_files(tmp_path, name, blob, message):
    (tmp_path / name).write_bytes(blob)
    with pytest.raises(ValueError, match=message):
        load_state(tmp_path / name)


def test_a_torch_that_corrupts_memory_reads_none(tmp_path, monkeypatch):
    save_state_dict(tmp_path / 'a.pt', nn.Linear(1, 1))
    for version, safe in (('2.9.1+cu128', False), ('2.10.0', True), ('3.0.0a0', True)):
        monkeypatch.setattr(checkpoint.torch, '__version__', version)
        if safe:
            load_state(tmp_path / 'a.pt')
        else:
            with pytest.raises(ValueError, match='before torch 2.10 .*this is 2.9.1'):
                load_state(tmp_path / 'a.pt')


@pytest.mark.parametrize('make', [
    lambda: nn.Linear(10**6, 10**6), lambda: nn.ModuleList(nn.Linear(1, 1) for _ in range(10**9)),
    lambda: torch.zeros(10**5, 10**5), lambda: torch.empty([10**12]), lambda: torch.arange(10**12),
    lambda: torch.rand(size=(10**6, 10**6)), lambda: torch.eye(10**6), lambda: nn.Conv2d(10**5, 10**5, 3),
    lambda: nn.Embedding(10**10, 100)])
def test_networks_that_are_larger_than_their_file(make):
    with pytest.raises(ValueError, match='larger than the one it holds'):
        with limited(nn.Linear(10, 10).state_dict()):
            make()


def test_networks_of_the_size_of_their_file():
    """The limits end with the block."""
    net = nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64), nn.Linear(1000, 1000))
    with limited(net.state_dict()):
        nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64), nn.Linear(1000, 1000))
        nn.Linear(10, 10)  # a missing one is named
    nn.ModuleList(nn.Linear(1, 1) for _ in range(300))
