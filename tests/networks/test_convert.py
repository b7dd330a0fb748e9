"""python -m networks.convert: any readable score network to safetensors."""

import os
import re

import pytest
import torch
from click.testing import CliRunner
from goldens import GOLDENS

import networks
from networks.convert import main

PICKLE = GOLDENS / 'edm' / 'ddpmpp_cond.pkl'


def call(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_a_pickle_becomes_safetensors(tmp_path):
    path = tmp_path / 'new' / 'net.safetensors'
    result = call(PICKLE, path)
    assert result.exit_code == 0, result.output
    assert 'EDMPrecond of SongUNet, 32x32x3, 10 classes, 0.2 M parameters' in result.output
    old, new = networks.load_network(PICKLE), networks.load_network(path)
    assert new.init_kwargs == old.init_kwargs and new.metadata == dict(source='ddpmpp_cond.pkl')
    assert all(torch.equal(new.state_dict()[key], value) for key, value in old.state_dict().items())
    # and again from safetensors, in half
    result = call(path, tmp_path / 'half.safetensors', '--half')
    assert result.exit_code == 0 and os.path.getsize(tmp_path / 'half.safetensors') < 0.6 * path.stat().st_size
    half = networks.load_network(tmp_path / 'half.safetensors')
    assert all(torch.equal(half.state_dict()[key], value.half().float()) for key, value in old.named_parameters())


@pytest.mark.parametrize('source, dest, message', [
    (GOLDENS / 'edm' / 'malicious.pkl', 'net.safetensors', 'Error: SRC: .*is refused: it asks for posix.system'),
    (GOLDENS / 'edm' / 'ddpmpp_cond.npz', 'net.safetensors', 'Error: SRC: .*is a zip archive'),
    ('absent.pkl', 'net.safetensors', 'Error: SRC: absent.pkl does not exist'),
    (PICKLE, 'net.pt', 'Error: DST: net.pt must end in .safetensors'),
    (PICKLE, 'file/net.safetensors', 'Error: DST: '),
])
def test_bad_input_ends_in_one_line_and_writes_nothing(tmp_path, monkeypatch, source, dest, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').write_bytes(b'')
    result = call(source, dest)
    assert result.exit_code == 1 and len(result.output.splitlines()) == 1
    assert re.search(message, result.output), result.output
    assert [path.name for path in tmp_path.iterdir()] == ['file']
