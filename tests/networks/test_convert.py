"""python -m networks.convert: any readable score network to safetensors."""

import os
import re

import pytest
import torch
from converting import convert
from goldens import GOLDENS

import networks

PICKLE = GOLDENS / 'edm' / 'ddpmpp_cond.pkl'


def test_a_pickle_becomes_safetensors(tmp_path):
    path = tmp_path / 'new' / 'net.safetensors'
    code, output = convert(PICKLE, path)
    assert code == 0, output
    assert 'EDMPrecond of SongUNet, 32x32x3, 10 classes, 0.2 M parameters' in output
    old, new = networks.load_network(PICKLE), networks.load_network(path)
    assert new.init_kwargs == old.init_kwargs and new.metadata == dict(source='ddpmpp_cond.pkl')
    assert all(torch.equal(new.state_dict()[key], value) for key, value in old.state_dict().items())
    # and again from safetensors, in half
    code, output = convert(path, tmp_path / 'half.safetensors', '--half')
    assert code == 0 and os.path.getsize(tmp_path / 'half.safetensors') < 0.6 * path.stat().st_size
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
    code, output = convert(source, dest)
    assert code == 1 and len(output.splitlines()) == 1
    assert re.search(message, output), output
    assert [path.name for path in tmp_path.iterdir()] == ['file']
