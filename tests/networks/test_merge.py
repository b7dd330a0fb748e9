"""networks/merge.py and its command: exact weights, refusals."""

import pytest
import torch
from converting import convert
from goldens import recipe_

import networks
from networks.merge import merge_

SMALL = dict(img_resolution=8, img_channels=1, label_dim=0, model_type='SongUNet', model_channels=4, channel_mult=[1],
             num_blocks=1, attn_resolutions=[])


def network(seed, **kwargs):
    return recipe_(networks.construct('EDMPrecond', SMALL | kwargs), seed)


@pytest.mark.parametrize('w', [-1.0, -0.5, 0.0, 1.5])
def test_weights(w):
    a, b = network(0), network(1)
    merged = dict(merge_(network(0), b, w).named_parameters())
    for (name, ours), theirs in zip(a.named_parameters(), b.parameters(), strict=True):
        expected = ((1 + w) * ours.double() - w * theirs.double()).float()
        torch.testing.assert_close(merged[name], expected, rtol=0, atol=0)


def test_command(tmp_path):
    for name, seed in dict(a=0, b=1).items():
        networks.save_network(tmp_path / f'{name}.safetensors', network(seed))
    arguments = [str(tmp_path / f'{name}.safetensors') for name in ('a', 'b', 'c')]
    code, output = convert('merge', *arguments, '--w=0.5')
    assert code == 0 and 'EDMPrecond of SongUNet' in output, output
    x, sigma = torch.randn([2, 1, 8, 8]), torch.tensor(0.7)
    found = networks.load_network(arguments[2])
    torch.testing.assert_close(found(x, sigma), merge_(network(0), network(1), 0.5).eval()(x, sigma), rtol=0, atol=1e-6)
    assert found.metadata['merged'].startswith('(1 + 0.5)')


def test_what_does_not_correspond_is_refused(tmp_path):
    with pytest.raises(ValueError, match='architecture'):
        merge_(network(0), network(1, model_channels=8), 1)
    fourier = dict(embedding_type='fourier', channel_mult_noise=2)
    with pytest.raises(ValueError, match='map_noise.freqs'):
        merge_(network(0, **fourier), network(1, **fourier), 1)
    networks.save_network(tmp_path / 'a.safetensors', network(0))
    networks.save_network(tmp_path / 'b.safetensors', network(0, model_channels=8))
    arguments = [str(tmp_path / f'{name}.safetensors') for name in ('a', 'b', 'c')]
    code, output = convert('merge', *arguments, '--w=0.5')
    assert code == 1 and output.startswith('Error: B: the networks differ in architecture')
