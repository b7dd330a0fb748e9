"""The noise-level model: published files of both sizes, our own files, and other files."""

import pytest
import torch
from goldens import load, recipe_

from networks.noise_level import PUBLISHED, NoiseLevelNet, load_noise_level, save_noise_level


def arrays():
    return {key: torch.as_tensor(value) for key, value in load('dmcmc/noise_classifier.npz').items()}


def published_file(path, net):
    """A file as the published code writes it, in half precision."""
    state = {name: value.half() for name, value in net.state_dict().items()}
    torch.save(dict(epoch=200, opt=dict(state={}, param_groups=[]), net=state), path)
    return path


def test_32_pixels():
    d = arrays()
    net = recipe_(NoiseLevelNet(levels=len(d['rows'])), half=True)
    with torch.no_grad():
        net.fc.weight.copy_(d['fc_weight'])
        net.fc.bias.copy_(d['fc_bias'])
    logits = net(2 * d['x'] - 1)
    assert (logits - d['logits']).abs().max() < 1e-5 * d['logits'].abs().max()


def test_256_pixels(tmp_path):
    d = arrays()
    whole = recipe_(NoiseLevelNet(**PUBLISHED['celebahq-256']), int(d['seed256']))
    torch.testing.assert_close(whole(2 * d['x256'].float() - 1), d['logits256'], rtol=0, atol=2e-4)
    net = load_noise_level(published_file(tmp_path / '100.pt', whole), 'celebahq-256')
    torch.testing.assert_close(net(2 * d['x256'].float() - 1), d['logits256'], rtol=0, atol=2e-3)


@pytest.mark.parametrize('name, largest', [('cifar10-32', '50'), ('celebahq-256', '348')])
def test_levels_are_twice_the_published_ones(name, largest):
    net = NoiseLevelNet(**PUBLISHED[name])
    torch.testing.assert_close(net.sigmas / 2, arrays()[f'sigma_grid_{largest}'].double(), rtol=1e-5, atol=0)


def test_own_files(tmp_path):
    net = recipe_(NoiseLevelNet(sigma_min=0.01, sigma_max=20.0, levels=50))
    save_noise_level(tmp_path / 'net.safetensors', net)
    found, x = load_noise_level(tmp_path / 'net.safetensors'), torch.randn(2, 3, 32, 32)
    assert torch.equal(found(x), net(x)) and torch.equal(found.sigmas, net.sigmas)
    assert found.sigmas[0] == 20 and found.sigmas[-1] == pytest.approx(0.01 * 2000**1e-3)
    with pytest.raises(ValueError, match='describes itself; leave out the name'):
        load_noise_level(tmp_path / 'net.safetensors', 'cifar10-32')


def test_bad_files(tmp_path, files):
    path = published_file(tmp_path / '200.pt', NoiseLevelNet(levels=1000))
    with pytest.raises(ValueError, match='neither its resolution nor its levels.*cifar10-32 or celebahq-256'):
        load_noise_level(path)
    with pytest.raises(ValueError, match='not a published noise-level model'):
        load_noise_level(files / 'classifier.pt', 'cifar10-32')
    with pytest.raises(ValueError, match='not a noise-level model.*size mismatch'):
        load_noise_level(published_file(tmp_path / 'small.pt', NoiseLevelNet(levels=10)), 'cifar10-32')
    with pytest.raises(ValueError, match='holds a EDMPrecond, not a noise-level model'):
        load_noise_level(files / 'uncond.safetensors')
    with pytest.raises(ValueError, match='16x16 images is not known'):
        NoiseLevelNet(16)
    with pytest.raises(ValueError, match='are not a range'):
        NoiseLevelNet(sigma_min=80)
