"""Winograd's convolution against torch's: closed form in float64, rounding in bfloat16, and where networks take it."""

import pytest
import torch
import torch.nn.functional as F

import networks
from networks import winograd
from networks.layers import Conv2d

SHAPES = [(2, 5, 7, 8, 6), (1, 3, 4, 2, 2), (3, 4, 1, 12, 10)]  # images, channels in and out, height, width


def images_and_filters(n, channels, out, height, width, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, channels, height, width, dtype=dtype, generator=generator)
    weight = torch.randn(out, channels, 3, 3, dtype=dtype, generator=generator) / (9 * channels) ** 0.5
    return x.to(memory_format=torch.channels_last), weight, torch.randn(out, dtype=dtype, generator=generator)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('layout', [torch.channels_last, torch.contiguous_format])
def test_it_is_the_convolution(shape, layout):
    x, weight, bias = images_and_filters(*shape, torch.float64)
    filters = winograd.transform_filters(weight)
    for b in (bias, None):
        expected = F.conv2d(x, weight, b, padding=1)
        found = winograd.conv2d(x.to(memory_format=layout), filters, b)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_rounding(dtype):
    """No more than 1.5 times as far from the exact result as the direct convolution in the same precision."""
    x, weight, bias = images_and_filters(4, 128, 128, 16, 16, torch.float32)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    direct = F.conv2d(x.to(dtype), weight.to(dtype), bias.to(dtype), padding=1)
    found = winograd.conv2d(x, winograd.transform_filters(weight).to(dtype), bias)
    assert found.dtype == torch.float32
    assert (found - exact).norm() < 1.5 * (direct - exact).norm()


@pytest.fixture
def everywhere(monkeypatch):
    """As if on a CPU without AMX, and with channels enough."""
    monkeypatch.setattr(winograd, 'pays', lambda *channels: True)


def small_network(dtype):
    torch.manual_seed(0)
    net = networks.construct('EDMPrecond', dict(img_resolution=12, img_channels=3, model_type='SongUNet',
                                                model_channels=16, channel_mult=[1, 2, 2], num_blocks=1,
                                                attn_resolutions=[6]))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return networks.set_precision(net, dtype).eval().requires_grad_(False)


def compiled(net, x):
    """What a compiled network gives, and the functions that compilers see in it."""
    seen = []
    torch.compiler.reset()
    called = torch.compile(net, dynamic=False, fullgraph=True, backend=lambda graph, _: seen.extend(
        node.target for node in graph.graph.nodes) or graph.forward)
    return called(x, torch.tensor(0.7)), seen


@torch.no_grad()
def test_compiled_networks_take_it(everywhere):
    """At 12x12 and 6x6, not at 3x3, at the image, in the resampling convolutions or uncompiled."""
    net, x = small_network(torch.bfloat16), torch.randn(2, 3, 12, 12)
    found, seen = compiled(net, x)
    assert seen.count(torch.bmm) == sum(module.winograd_filters is not None and '3x3' not in name
                                    for name, module in net.named_modules() if isinstance(module, Conv2d)) > 0
    plain = net(x, torch.tensor(0.7))
    assert 0 < (found - plain).norm() < 0.02 * plain.norm()


@torch.no_grad()
def test_float32_keeps_to_the_published_order(everywhere):
    net, x = small_network(torch.float32), torch.randn(2, 3, 12, 12)
    assert torch.bmm not in compiled(net, x)[1]


def test_filters_are_no_part_of_files(everywhere):
    layer = Conv2d(4, 6, kernel=3)
    layer.transform_filters(torch.bfloat16)
    assert layer.winograd_filters.shape == (16, 4, 6)
    assert set(layer.state_dict()) == {'weight', 'bias'}


@pytest.mark.parametrize(('amx', 'channels', 'pays'), [
    (False, (128, 128), True), (False, (32, 32), False), (False, (3, 256), False), (True, (256, 256), False)])
def test_where_it_pays(monkeypatch, amx, channels, pays):
    monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: amx)
    assert winograd.pays(*channels) is pays
