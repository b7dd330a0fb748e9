"""Winograd's convolution against torch's: closed form in float64, rounding in bfloat16, and where networks use it."""

import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import networks
from networks import winograd
from networks.layers import Conv2d

SIGMA = torch.tensor(0.7)
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
    """Up to twice as far from the exact result as the direct convolution in the same precision."""
    noise, weight, _ = images_and_filters(4, 128, 128, 16, 16, torch.float32)
    for x in (noise, F.silu(noise), noise + 3):
        exact = F.conv2d(x.double(), weight.double(), padding=1)
        direct = F.conv2d(x.to(dtype), weight.to(dtype), padding=1)
        found = winograd.conv2d(x, winograd.transform_filters(weight).to(dtype))
        assert found.dtype == torch.float32
        assert (found - exact).norm() < 1.9 * (direct - exact).norm()


@pytest.mark.skipif(shutil.which('g++') is None or not Path(sysconfig.get_path('include'), 'Python.h').is_file(),
                    reason='needs a C++ compiler and the headers of Python')
def test_compiled():
    """The compiler's result: it chooses the strides of the padded images itself."""
    x, weight, bias = images_and_filters(2, 24, 40, 12, 8, torch.float32)
    filters = winograd.transform_filters(weight)
    torch.compiler.reset()
    found = torch.compile(lambda x: F.silu(winograd.conv2d(F.silu(x), filters, bias)), dynamic=False)(x)
    expected = F.silu(F.conv2d(F.silu(x), weight, bias, padding=1))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def everywhere(monkeypatch):
    """Any number of channels is enough, on any CPU."""
    monkeypatch.setattr(winograd, 'pays', lambda *channels: True)


def small_network(levels):
    """6x6 images, of which a second level has 3x3; few layers, since tracing takes as long as there are layers."""
    torch.manual_seed(0)
    net = networks.construct('EDMPrecond', dict(img_resolution=6, img_channels=3, model_type='SongUNet',
                                                model_channels=16, channel_mult=[1] * levels, num_blocks=0,
                                                attn_resolutions=[]))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for middle in ('in0', 'in1'):
        del net.model.dec[f'{12 // 2**levels}x{12 // 2**levels}_{middle}']
    return net.eval().requires_grad_(False)


def compiled(net, x, second=SIGMA):
    """The result of a compiled network or block, and the number of batched matrix products that the compiler sees."""
    seen = []
    torch.compiler.reset()
    called = torch.compile(net, dynamic=False, fullgraph=True, backend=lambda graph, _: seen.extend(
        node.target for node in graph.graph.nodes) or graph.forward)
    return called(x, second), seen.count(torch.bmm)


@torch.no_grad()
def test_compiled_networks_take_it(everywhere):
    """Two convolutions in each block at 6x6; not at 3x3, at the image, in resampling ones, uncompiled."""
    net, x = networks.set_precision(small_network(levels=2), torch.bfloat16), torch.randn(2, 3, 6, 6)
    found, products = compiled(net, x)
    blocks = [name for name in net.state_dict() if name.endswith('conv0.weight') and '3x3' not in name]
    resampling = [name for name in blocks if name.endswith(('_down.conv0.weight', '_up.conv0.weight'))]
    assert products == 2 * len(blocks) - len(resampling) == 3
    plain = net(x, SIGMA)
    assert (found - plain).norm() < 0.02 * plain.norm()


@torch.no_grad()
@pytest.mark.parametrize(('dtype', 'training'), [(torch.float32, False), (torch.bfloat16, True)])
def test_who_keeps_to_the_published_order(everywhere, dtype, training):
    """Float32, also after bfloat16, and training, where weights change; a block of two convolutions."""
    net = networks.set_precision(small_network(levels=1), torch.bfloat16)
    block = net.model.dec['6x6_block0']
    assert all(layer.winograd_filters is not None for layer in (block.conv0, block.conv1))
    networks.set_precision(net, dtype, training)
    assert compiled(block, torch.randn(2, block.in_channels, 6, 6), torch.randn(2, 64))[1] == 0


def test_filters_are_no_part_of_files(everywhere):
    layer = Conv2d(4, 6, kernel=3)
    layer.transform_filters(torch.bfloat16)
    assert layer.winograd_filters.shape == (16, 4, 6)
    assert set(layer.state_dict()) == {'weight', 'bias'}


@pytest.mark.parametrize(('flags', 'channels', 'pays'), [
    ({'avx512_bf16'}, (64, 128), True), ({'avx512_bf16'}, (64, 64), False), ({'avx512_bf16'}, (3, 256), False),
    ({'avx512_bf16', 'amx_bf16'}, (256, 256), False), ({'avx2'}, (256, 256), False), (set(), (256, 256), False)])
def test_where_it_pays(monkeypatch, flags, channels, pays):
    monkeypatch.setattr(winograd, 'cpu_flags', lambda: flags)
    assert winograd.pays(*channels) is pays
