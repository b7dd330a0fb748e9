"""The ADM networks against the reference's outputs, their published names and shapes, and reading shapes."""

import copy
import json

import numpy as np
import pytest
import torch
from dg_goldens import classifier, discriminator
from goldens import GOLDENS, load, recipe_

from guided_diffusion import Architecture, create_classifier, nn, read_architecture, set_precision
from guided_diffusion.script_util import default_channel_mult
from guided_diffusion.unet import EncoderUNetModel


@pytest.fixture(scope='module')
def small():
    return {key: torch.as_tensor(value) for key, value in load('dg/networks.npz').items()}


def close(actual, expected, rtol=1e-4, atol=2e-4):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def shapes(net):
    return {key: list(value.shape) for key, value in net.state_dict().items()}


@torch.no_grad()
def test_small_goldens(small):
    d = small
    close(classifier()(d['x'], d['t'], feature=True), d['features'])
    close(classifier()(d['x'], d['t']), d['class_logits'])
    net = discriminator('uncond')
    close(net(d['features'], d['t']).view(-1), d['disc_logit'])
    close(net(d['features'], d['t'], sigmoid=True).view(-1), d['disc_prob'])
    net = discriminator('cond')
    index = d['class_labels'].argmax(1)
    close(net(d['features'], d['t'], condition=d['class_labels']).view(-1), d['disc_cond_logit'])
    close(net(d['features'], d['t'], condition=index).view(-1), d['disc_cond_logit_index_labels'])
    other = net(d['features'], d['t'], condition=(index + 1) % 10).view(-1)
    assert (other - d['disc_cond_logit']).abs().min() > 1e-3
    with pytest.raises(ValueError, match='conditional: it needs class labels'):
        net(d['features'], d['t'])


@torch.no_grad()
def test_published_sizes():
    """Width 128, depth 4 on images and depth 2 on features, weights by the recipe, rounded to half."""
    d = load('dg/full_size.npz')
    t = {key: torch.as_tensor(value) for key, value in d.items() if value.dtype.kind in 'fi'}
    net = create_classifier(32, 128, 4)
    assert shapes(net) == json.loads(str(d['keys_classifier']))
    recipe_(net, int(t['seed_classifier']), half=True).eval()
    checksum = sum(p.double().sum() for p in net.parameters())
    np.testing.assert_allclose(checksum, t['checksum_classifier'], rtol=1e-9)
    features = net(t['x'], t['t'], feature=True)
    close(features, t['features'], atol=5e-4)
    close(net.out(features), t['class_logits'], atol=5e-4)
    for kind, classes, labels in (('', 0, None), ('_cond', 1000, t['label_index'])):
        net = create_classifier(8, 128, 2, in_channels=512, out_channels=1, num_classes=classes).eval()
        assert shapes(net) == json.loads(str(d[f'keys_disc{kind}']))
        recipe_(net, int(t[f'seed_disc{kind}']), half=True)
        if not classes:
            checksum = sum(p.double().sum() for p in net.parameters())
            np.testing.assert_allclose(checksum, t['checksum_disc'], rtol=1e-9)
        close(net(t['features'], t['t'], condition=labels).view(-1), t[f'disc{kind}_logit'], atol=5e-4)


@pytest.mark.parametrize('size, depth', [(16, 2), (64, 4)])
def test_names_at_other_resolutions(size, depth):
    expected = json.loads((GOLDENS / 'dg' / f'keys_{size}x{size}_classifier.json').read_text())
    with torch.device('meta'):
        net = create_classifier(size, 128, read_architecture_of(expected).depth)
    assert shapes(net) == expected
    assert read_architecture_of(expected)[:4] == (size, 128, depth, ','.join(r for r in ('32', '16', '8')
                                                                            if int(r) <= size))


def read_architecture_of(keys):
    return read_architecture({key: torch.empty(shape, device='meta') for key, shape in keys.items()})


@pytest.mark.parametrize('size', [8, 16, 32, 64, 128, 256, 512])
@pytest.mark.parametrize('depth', [1, 2, 4])
def test_architecture_from_shapes(size, depth):
    """Every attention and every kind of network; they are read from different tensors, so not every pair of both."""
    attentions = [res for res in ('', '8', '16,8', '32,16,8') if not res or int(res.split(',')[0]) <= size]
    kinds = [(1, 7, 0), (3, 1000, 0), (4, 1, 10)]
    for index in range(max(len(attentions), len(kinds))):
        attention = attentions[index % len(attentions)]
        expected = Architecture(size, 64, depth, attention, *kinds[index % len(kinds)], default_channel_mult(size))
        with torch.device('meta'):
            net = expected.build()
        state = net.state_dict()
        assert read_architecture(state, size) == expected
        if attention:
            assert read_architecture(state) == expected
        assert state['middle_block.2.in_layers.0.weight'].shape[0] == expected.feature_channels
        assert size // net.downsampling == 8


@pytest.mark.parametrize('size, mults, attention', [
    (32, (1, 2, 3), '32,16,8'), (32, (1, 2, 3), '8'), (28, (1, 2, 4), '28,14,7'), (48, (1, 2, 3, 4), '24,12,6'),
    (16, (1, 1, 2), '4'), (50, (1, 2), '25'), (7, (1,), '7'), (64, (0.5, 1.5, 2), '16')])
def test_other_multiples_and_sizes_from_shapes(size, mults, attention):
    """DG_imagenet's latent classifier has (1, 2, 3) at 32x32; 28 is MNIST."""
    expected = Architecture(size, 128, 1, attention, 3, 10, 0, mults)
    with torch.device('meta'):
        net = expected.build()
    assert read_architecture(net.state_dict(), size) == expected
    assert read_architecture(net.state_dict()) == expected
    assert (net.feature_channels, size // net.downsampling) == (expected.feature_channels, expected.feature_size)


@torch.no_grad()
def test_sizes_that_end_at_another_resolution_than_8():
    """28 -> 14 -> 7 with attention at the levels of 32 -> 16 -> 8; likewise 48 with four levels."""
    for size, levels in ((28, 3), (48, 4)):
        net = create_classifier(size, 64, 1, out_channels=5, in_channels=1)
        architecture = read_architecture(net.state_dict())
        assert architecture.attention == ','.join(str(size >> i) for i in range(levels) if size >> i < 33)
        assert net(torch.zeros(1, 1, size, size), torch.ones(1), feature=True).shape[2] == size >> levels - 1
        assert net(torch.zeros(1, 1, size, size), torch.ones(1)).shape == (1, 5)


def test_shapes_that_leave_a_choice():
    """Without attention, 32x32 at depth 3 and 256x256 at depth 1 have the same tensors."""
    with torch.device('meta'):
        small, large = create_classifier(32, 64, 3, ''), create_classifier(256, 64, 1, '')
    assert shapes(small) == shapes(large)
    sizes = {hint: read_architecture(small.state_dict(), hint)[:3] for hint in (None, 32, 256, 64)}
    assert sizes == {None: (32, 64, 3), 32: (32, 64, 3), 256: (256, 64, 1), 64: (32, 64, 3)}
    with torch.device('meta'):  # attention decides
        assert read_architecture(create_classifier(32, 64, 3).state_dict())[:3] == (32, 64, 3)
        assert read_architecture(create_classifier(256, 64, 1).state_dict())[:3] == (256, 64, 1)


def test_files_that_are_no_adm_classifier():
    state = dict(classifier().state_dict())
    for key in ('time_embed.0.weight', 'out.2.positional_embedding', 'out.2.c_proj.weight'):
        with pytest.raises(ValueError, match=f'no tensor .{key}'):
            read_architecture({k: v for k, v in state.items() if k != key})
    with pytest.raises(ValueError, match='no number of levels fits its 4 blocks of width 64 and 8x8 positions'):
        read_architecture({k: v for k, v in state.items() if not k.startswith('input_blocks.5.')})
    with pytest.raises(ValueError, match='not an ADM classifier: no number of levels fits its 5 blocks'):
        read_architecture(state | {'input_blocks.3.1.qkv.weight': torch.zeros(1)} | {
            f'input_blocks.2.1.{name}': torch.zeros(1) for name in ('qkv.weight', 'norm.weight')})
    with pytest.raises(ValueError, match='no tensor'):
        read_architecture({})


def test_unknown_options():
    for size in (0, 9, 27, 1024):
        with pytest.raises(ValueError, match=f'image size {size} is not supported; it must be even'):
            create_classifier(size, 64, 1)
    with pytest.raises(ValueError, match='images of 28 pixels cannot be halved 3 times'):
        create_classifier(28, 64, 1, channel_mult=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="pool 'max'"):
        create_classifier(8, 64, 1, classifier_pool='max')
    with pytest.raises(ValueError, match='cannot be split into heads of 64'):
        create_classifier(8, 96, 1)
    for attention in ('0', '5', '16,4', 'a'):
        with pytest.raises(ValueError, match=f"resolution '{attention[-1]}' is not possible; known are"):
            create_classifier(16, 64, 1, attention)
    with pytest.raises(ValueError, match='num_head_channels'):
        EncoderUNetModel(8, 3, 64, 10, 1, (), pool='attention')


@torch.no_grad()
def test_bf16(small):
    """Within the rounding of bfloat16: relative L2 below 1 % for features, 2 % for logits, on random weights."""
    d = small
    half = set_precision(copy.deepcopy(classifier()), torch.bfloat16)
    dtypes = [layer.weight.dtype for layer in (half.time_embed[0], half.input_blocks[0][0], half.middle_block[1].qkv)]
    assert dtypes == [torch.float32, torch.float32, torch.bfloat16]
    features = half(d['x'], d['t'], feature=True)
    assert features.dtype == torch.float32 and (features - d['features']).norm() < 0.01 * d['features'].norm()
    net = set_precision(copy.deepcopy(discriminator('cond')), torch.bfloat16)
    logit = net(d['features'], d['t'], condition=d['class_labels']).view(-1)
    assert logit.dtype == torch.float32 and (logit - d['disc_cond_logit']).norm() < 0.02 * d['disc_cond_logit'].norm()


def test_training_keeps_float32_weights(small):
    net = set_precision(copy.deepcopy(discriminator('cond')), torch.bfloat16, training=True)
    net.train().requires_grad_(True)
    net(small['features'], small['t'], condition=small['class_labels']).sum().backward()
    assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in net.parameters())
    assert all(p.grad.abs().max() > 0 for p in net.parameters())


def test_gradient_and_rows(small):
    x = small['x'].clone().requires_grad_()
    features = classifier()(x, small['t'], feature=True)
    logit = discriminator('uncond')(features, small['t']).view(-1)
    gradient, = torch.autograd.grad(logit[1], x)
    assert (gradient[1] != 0).all() and not gradient[[0, 2, 3]].any()
    for k in range(4):
        one = slice(k, k + 1)
        torch.testing.assert_close(classifier()(small['x'][one], small['t'][one], feature=True), features[one],
                                   rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('options', [dict(classifier_pool='adaptive'), dict(classifier_use_scale_shift_norm=False),
                                     dict(classifier_resblock_updown=False)])
def test_other_options(options):
    net = create_classifier(16, 64, 1, '8', out_channels=5, **options)
    assert net(torch.randn(2, 3, 16, 16), torch.rand(2)).shape == (2, 5)
    assert net(torch.randn(2, 3, 16, 16), torch.rand(2), feature=True).shape == (2, 128, 8, 8)


def test_new_networks_start_without_residuals():
    """As ADM initialises: the last layer of every residual branch is zero."""
    net = create_classifier(8, 64, 2, in_channels=4)
    assert not any(p.any() for name, p in net.named_parameters() if 'out_layers.3' in name or 'proj_out' in name)


@pytest.mark.parametrize('weights', [1, 3 * 2 * 16**2, 2**21])
def test_attention_by_parts_is_the_fused_one(monkeypatch, weights):
    """In bfloat16, with gradients, image by image, in parts of three, and all at once."""
    monkeypatch.setattr(nn, 'fused_bf16_is_slow', lambda: True)
    monkeypatch.setattr(nn, 'CACHED_WEIGHTS', weights)
    torch.manual_seed(0)
    inputs = torch.randn(3, 7, 2, 16, 8)
    results = []
    for dtype, function in ((torch.float32, torch.nn.functional.scaled_dot_product_attention),
                            (torch.bfloat16, nn.attention)):
        qkv = inputs.to(dtype).requires_grad_()
        out = function(*qkv.unbind(0))
        assert out.dtype == dtype
        results.append((out.float(), torch.autograd.grad(out.float().square().sum(), qkv)[0].float()))
    for exact, found in zip(*results):
        assert (found - exact).norm() < 0.01 * exact.norm()
