"""LoRA adapters of the ADM classifier against loralib's numbers; their files, and files that do not fit.

Goldens: tests/goldens/lora, rtol 1e-4, atol 5e-4 on features (up to 9 in size).
"""

from types import SimpleNamespace

import pytest
import torch
from dg_goldens import classifier, discriminator, write_files
from goldens import GOLDENS, load

from guided_diffusion import create_classifier
from networks import LogRatio, load_log_ratio, lora
from networks.classifiers import load_classifier
from torch_utils.checkpoint import save_network

PUBLISHED = GOLDENS / 'lora' / 'lora_adm_final.pt'
NET = SimpleNamespace(img_resolution=32, img_channels=3, label_dim=0)
NET10 = SimpleNamespace(img_resolution=32, img_channels=3, label_dim=10)


@pytest.fixture(scope='module')
def d():
    inputs = {name: value for name, value in load('dg/networks.npz').items() if name in ('x', 't', 'class_labels')}
    return {name: torch.as_tensor(value) for name, value in (inputs | load('lora/features.npz')).items()}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp('lora'))


def apart():
    """The golden classifier with the golden adapters, not merged."""
    net = create_classifier(32, 64, 1)
    net.load_state_dict(classifier().state_dict())
    found = lora.read_adapters(PUBLISHED)
    lora.add_adapters(net, found.rank)
    rest = net.load_state_dict(found.state, strict=False)
    assert not rest.unexpected_keys and lora.adapters_of(net).keys() == found.state.keys()
    return net


@torch.no_grad()
@pytest.mark.parametrize('kind', ['uncond', 'cond'])
def test_published_adapters(d, files, kind):
    """Merged into the weights: features, and probabilities of the discriminators that read them."""
    ours = load_log_ratio(NET10, files[0], files[1][kind], conditional=kind == 'cond', device='cpu', lora=PUBLISHED,
                          lora_rank=4)
    features = ours.classifier(d['x'], d['t'], feature=True)
    torch.testing.assert_close(features, d['features_lora'], rtol=1e-4, atol=5e-4)
    logit = ours.discriminators[0](features, d['t'], condition=d['class_labels'] if kind == 'cond' else None)
    torch.testing.assert_close(logit.sigmoid().flatten(), d[f'prob_{kind}'], rtol=1e-4, atol=1e-4)


def test_apart_is_merged(d):
    """For training; only adapters get gradients, and gradients of all of them are those of the merged weight."""
    net = apart()
    features = net(d['x'], d['t'], feature=True)
    torch.testing.assert_close(features, d['features_lora'], rtol=1e-4, atol=5e-4)
    features.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == ('lora_' in name), name
    layer = net.middle_block[0].in_layers[2]
    assert layer.lora_A.grad.abs().max() > 0 and layer.lora_B.grad.abs().max() > 0


def test_new_adapters_change_nothing_until_they_are_trained(d):
    net = create_classifier(32, 64, 1)
    net.load_state_dict(classifier().state_dict())
    lora.add_adapters(net, 8)
    assert torch.equal(net(d['x'], d['t'], feature=True), classifier()(d['x'], d['t'], feature=True))
    shapes = {name: tuple(value.shape) for name, value in lora.adapters_of(net).items()}
    assert len(shapes) == 14 and shapes['input_blocks.3.0.in_layers.2.lora_A'] == (24, 192)
    assert shapes['input_blocks.3.0.in_layers.2.lora_B'] == (384, 24)
    with pytest.raises(ValueError, match='rank 0'):
        lora.add_adapters(net, 0)


def test_our_files_are_read_as_published_ones(tmp_path):
    net = apart()
    lora.save_adapters(tmp_path / 'a.safetensors', net, dict(classifier='c'))
    ours, published = lora.read_adapters(tmp_path / 'a.safetensors'), lora.read_adapters(PUBLISHED, rank=4)
    assert ours.rank == published.rank == 4
    assert all(torch.equal(ours.state[name], value) for name, value in published.state.items())


@pytest.mark.parametrize('kind, message', [
    ('empty', 'empty.pt has no LoRA adapters in it, 0 other tensors'),
    ('plain', 'plain.pt has no LoRA adapters in it, 111 other tensors'),
    ('short', "short.pt lack input_blocks.1.0.in_layers.2.lora_A; the classifier has this layer"),
    ('long', "long.pt have 'middle_block.9.lora_A'; the classifier has no such layer"),
    ('unlike', 'unlike.pt has adapters of different ranks: 3, 4'),
    ('narrow', r'input_blocks.1.0.in_layers.2.lora_A is \[12, 96\], this one needs \[12, 192\]'),
    ('other', 'other.safetensors is a create_classifier, not LoRA adapters'),
    ('list', 'list.pt is not a file of LoRA adapters'),
    ('nowhere', 'nowhere.pt does not exist'),
])
def test_files_that_do_not_fit(files, tmp_path, kind, message):
    state = torch.load(PUBLISHED, weights_only=True)
    first = 'input_blocks.1.0.in_layers.2.lora_A'
    path = tmp_path / f'{kind}.pt'
    if kind == 'other':
        path = tmp_path / 'other.safetensors'
        save_network(path, discriminator('uncond'), 'create_classifier', {})
    elif kind != 'nowhere':
        torch.save(dict(empty={}, plain=classifier().state_dict(), list=[1],
                        short={name: value for name, value in state.items() if name != first},
                        long=state | {'middle_block.9.lora_A': torch.zeros(12, 3)},
                        unlike=state | {first: state[first][:9]}, narrow=state | {first: state[first][:, :96]})[kind],
                   path)
    with pytest.raises((ValueError, OSError), match=message):
        load_log_ratio(NET, files[0], files[1]['uncond'], device='cpu', lora=path)


def test_another_rank(files):
    with pytest.raises(ValueError, match='has adapters of rank 4, not 16'):
        load_log_ratio(NET, files[0], files[1]['uncond'], device='cpu', lora=PUBLISHED, lora_rank=16)


@pytest.mark.parametrize('rank', [0, 4, 8])
def test_our_discriminators_know_their_adapters(files, tmp_path, rank):
    kwargs = dict(image_size=8, in_channels=256, out_channels=1, classifier_width=64, classifier_depth=2)
    path = tmp_path / 'd.safetensors'
    save_network(path, discriminator('uncond'), 'create_classifier', kwargs,
                 dict(classes=0) | (dict(lora_rank=rank) if rank else {}))
    for given in (None, PUBLISHED):
        if rank == (4 if given else 0):
            assert load_log_ratio(NET, files[0], path, device='cpu', lora=given).discriminator_calls == 1
            continue
        with pytest.raises(ValueError, match='was trained with .*LoRA adapters.*, and .*LoRA adapters.* are given'):
            load_log_ratio(NET, files[0], path, device='cpu', lora=given)


def test_in_half_precision_the_sum_is_rounded_once(d):
    """A bfloat16 weight would swallow a small adapter if it were added there."""
    net = load_classifier(None, 32, 'cpu', dtype=torch.bfloat16)
    lora.add_adapters(net, 2)
    layer = net.middle_block[0].in_layers[2]
    weight = lora.adapted(layer.weight, layer.lora_A, layer.lora_B + 1e-4)
    assert layer.weight.dtype == torch.bfloat16 and weight.dtype == torch.float32
    expected = ((layer.lora_B + 1e-4) @ layer.lora_A).view(weight.shape) / 2
    torch.testing.assert_close(weight - layer.weight.float(), expected, rtol=0, atol=1e-8)
    assert 1e-6 < expected.abs().mean() < 1e-3
    assert layer.lora_A.dtype == torch.float32 and layer(torch.zeros(1, 512, 8, 8)).dtype == torch.bfloat16


def test_several_discriminators_are_averaged(d):
    """Value and gradient; with DG's form each is clipped separately."""
    x, sigma = d['x'], torch.tensor(0.7)
    nets = [discriminator('uncond'), create_classifier(8, 64, 2, in_channels=256, out_channels=1).eval()]
    torch.nn.init.normal_(nets[1].out[2].c_proj.weight, std=20)  # reaches the clip
    for clip in (False, True):
        singles = [LogRatio(classifier(), net, clip=clip) for net in nets]
        both = LogRatio(classifier(), nets, clip=clip)
        value, gradient = both.value_and_grad(x, sigma)
        expected = [single.value_and_grad(x, sigma) for single in singles]
        torch.testing.assert_close(value, (expected[0][0] + expected[1][0]) / 2)
        torch.testing.assert_close(gradient, (expected[0][1] + expected[1][1]) / 2, rtol=1e-4, atol=1e-5)
        assert both.discriminator_calls == 2 and singles[0].discriminator_calls == 1
