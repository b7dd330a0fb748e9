"""Score networks against EDM's outputs; precision, gradients, construction, and files of them."""

import copy
import functools
import json

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from goldens import load, recipe_

import networks
from networks.layers import Conv2d, GroupNorm, UNetBlock
from torch_utils import checkpoint

NAMES = ('ddpmpp_uncond', 'ddpmpp_cond', 'ncsnpp_uncond', 'ncsnpp_skip', 'adm_cond', 'adm_multihead', 'vp_ddpmpp',
         've_ncsnpp', 'iddpm_adm')
LABELLED = ('ddpmpp_cond', 'ncsnpp_skip', 'adm_cond', 'adm_multihead', 'iddpm_adm')


@functools.cache
def golden(name):
    """(network with the recipe's weights, its arrays as tensors)."""
    arrays = load(f'edm/{name}.npz')
    made = json.loads(str(arrays.pop('constructor')))
    net = recipe_(networks.construct(made['class_name'], made['kwargs'])).eval().requires_grad_(False)
    return net, {key: torch.as_tensor(value) for key, value in arrays.items()}


def assert_denoised(actual, expected, sigma):
    """rtol 1e-4, atol 1e-4 max(1, sigma): VP, VE and iDDPM subtract sigma times the network's output."""
    assert actual.dtype == torch.float32 and actual.shape == expected.shape
    bound = 1e-4 * sigma.clamp(min=1).reshape(-1, 1, 1, 1) + 1e-4 * expected.abs()
    assert ((actual - expected).abs() <= bound).all(), f'off by {(actual - expected).abs().max():.3g}'


@pytest.mark.parametrize('name', NAMES)
def test_golden(name):
    net, d = golden(name)
    labels = d.get('class_labels')
    assert_denoised(net(d['x'], d['sigma'], labels), d['denoised'], d['sigma'])
    scalar = torch.tensor(0.7)
    assert_denoised(net(d['x'], scalar, labels), d['denoised_scalar_sigma'], scalar)
    assert ('denoised_no_label' in d) == (name in LABELLED)
    if 'denoised_no_label' in d:
        assert_denoised(net(d['x'], d['sigma']), d['denoised_no_label'], d['sigma'])
        assert_denoised(net(d['x'], d['sigma'], torch.zeros_like(labels)), d['denoised_no_label'], d['sigma'])
        assert (d['denoised'] - d['denoised_no_label']).abs().max() > 1e-2
    if 'denoised_augmented' in d:
        augmented = net(d['x'], d['sigma'], labels, augment_labels=d['augment_labels'])
        assert_denoised(augmented, d['denoised_augmented'], d['sigma'])


@pytest.mark.parametrize('name', NAMES)
def test_range_and_rounding_of_noise_levels(name):
    net, d = golden(name)
    np.testing.assert_allclose(net.sigma_min, d['sigma_min'], rtol=1e-6)
    np.testing.assert_allclose(net.sigma_max, d['sigma_max'], rtol=1e-6)
    rounded = net.round_sigma(d['round_sigma_in'])
    assert rounded.dtype == torch.float64 and rounded.shape == d['round_sigma_in'].shape
    np.testing.assert_allclose(rounded, d['round_sigma_out'], rtol=1e-6)
    assert net.round_sigma(0.3).shape == () and net.round_sigma(torch.ones(2, 3)).shape == (2, 3)


def test_vp_keeps_the_published_smallest_level():
    """With its float32 cancellation: 0.0009766, while the formula gives 0.0010005."""
    net, _ = golden('vp_ddpmpp')
    assert net.sigma_min == pytest.approx(0.0009766, rel=1e-4)
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(net.sigma_inv(net.sigma(t).double()), t, rtol=1e-4, atol=0)


def test_iddpm_noise_levels():
    net, d = golden('iddpm_adm')
    torch.testing.assert_close(net.u, d['u'], rtol=1e-6, atol=0)
    assert 'u' in net.state_dict() and net.u[-1] == 0 and (net.u.diff() < 0).all()
    levels = net.u[:-1].double()
    assert torch.equal(net.round_sigma(levels * (1 + 1e-5)), levels)
    # a file's own table decides, and the range follows it
    other = copy.deepcopy(net)
    other.load_state_dict(net.state_dict() | dict(u=2 * net.u))
    assert other.sigma_max == 2 * net.sigma_max and other.sigma_min == 2 * net.sigma_min


def test_adm_heads():
    """64 channels to a head, and below 64 channels no attention at all."""
    heads = {name: sorted({m.num_heads for m in golden(name)[0].modules() if hasattr(m, 'num_heads')})
             for name in ('adm_cond', 'adm_multihead', 'iddpm_adm')}
    assert heads == dict(adm_cond=[0, 1], adm_multihead=[0, 2], iddpm_adm=[0])


def test_a_batch_is_its_rows():
    net, d = golden('ncsnpp_skip')
    whole = net(d['x'], d['sigma'], d['class_labels'])
    for k in range(len(whole)):
        one = slice(k, k + 1)
        torch.testing.assert_close(net(d['x'][one], d['sigma'][one], d['class_labels'][one]), whole[one],
                                   rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['ddpmpp_cond', 'ncsnpp_skip', 'adm_multihead', 'vp_ddpmpp'])
def test_bf16_body(name):
    """Relative L2 error of the denoised images, in units of the network's contribution where sigma is large."""
    net, d = golden(name)
    half = networks.set_precision(copy.deepcopy(net), torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16, torch.float32}  # embeddings stay float32
    out = half(d['x'], d['sigma'], d.get('class_labels'))
    assert out.dtype == torch.float32
    error = (out - d['denoised']).flatten(1).norm(dim=1)
    assert (error < 1e-2 * torch.maximum(d['denoised'].flatten(1).norm(dim=1), d['x'].flatten(1).norm(dim=1))).all()


def test_fp32_is_unaffected_by_set_precision():
    net, d = golden('ddpmpp_uncond')
    same = networks.set_precision(copy.deepcopy(net), torch.float32)
    torch.testing.assert_close(same(d['x'], d['sigma']), net(d['x'], d['sigma']), rtol=1e-5, atol=1e-5)


def test_training_keeps_float32_weights_and_gradients():
    net = copy.deepcopy(golden('ddpmpp_cond')[0]).train().requires_grad_(True)
    d = golden('ddpmpp_cond')[1]
    networks.set_precision(net, torch.bfloat16, training=True)
    net(d['x'], d['sigma'], d['class_labels'], augment_labels=d['augment_labels']).square().mean().backward()
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())
    assert all(p.grad.abs().max() > 0 for p in net.parameters())


@pytest.mark.parametrize('name', ['ddpmpp_uncond', 'adm_multihead', 've_ncsnpp'])
def test_gradient_reaches_the_input(name):
    """In every pixel, and with the norm that the central difference along it gives."""
    net, d = golden(name)
    labels, sigma = d.get('class_labels'), torch.full([4], 0.5)
    labels = None if labels is None else labels[:1]
    x = d['x'][1:2].clone().requires_grad_()
    weight = torch.randn(x.shape)

    def value(x):
        return (net(x, sigma[:1], labels) * weight).sum()

    gradient, = torch.autograd.grad(value(x), x)
    assert (gradient != 0).all()
    h = 0.03 * gradient / gradient.norm()
    with torch.no_grad():
        numeric = (value(x + h) - value(x - h)) / 0.06
    torch.testing.assert_close(gradient.norm(), numeric, rtol=1e-2, atol=0)


@pytest.mark.parametrize('heads', [1, 2, 4])
def test_attention_is_the_explicit_softmax(heads):
    """Outputs and gradients in float64, on an image that is not square."""
    block = UNetBlock(64, 64, 16, attention=True, num_heads=heads)
    qkv = torch.randn(3, 64 * 3, 5, 7, dtype=torch.float64, requires_grad=True)
    q, k, v = qkv.reshape(3, heads, 64 // heads, 3, 35).unbind(3)  # [N, heads, channels, H * W]
    weights = torch.softmax(q.transpose(2, 3) @ k / (64 / heads) ** 0.5, dim=3)
    plain = (v @ weights.transpose(2, 3)).reshape(3, 64, 5, 7)
    out = block._attention(qkv)
    torch.testing.assert_close(out, plain, rtol=1e-10, atol=1e-12)
    direction = torch.randn_like(plain)
    ours, theirs = (torch.autograd.grad((y * direction).sum(), qkv)[0] for y in (out, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_a_pointwise_convolution_comes_before_repetition():
    layer = Conv2d(6, 4, kernel=1, up=True)
    x = torch.randn(2, 6, 5, 5)
    shapes = []
    layer._convolve = lambda x, padding: shapes.append(x.shape) or Conv2d._convolve(layer, x, padding)
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode='nearest'), layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    assert shapes == [x.shape]  # a quarter of the pixels


@torch.no_grad()
@pytest.mark.parametrize('bias', [True, False])
def test_repetition_and_convolution_are_one(bias):
    layer = Conv2d(6, 4, kernel=3, up=True, bias=bias)
    if bias:
        torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 6, 5, 7)
    expected = layer(x)
    layer.merge_repetition()
    layer._convolve = None  # no longer called
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert set(layer.state_dict()) == {'weight', 'resample_filter'} | ({'bias'} if bias else set())


@torch.no_grad()
def test_group_norm_when_compiled():
    layer = GroupNorm(24, num_groups=4).eval()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    graphs = []
    compiled = torch.compile(layer, backend=lambda graph, inputs: graphs.append(graph.code) or graph.forward)
    for mean, tolerance in ((0, 1e-5), (3, 1e-3)):  # float32 cancels where the mean is large
        x = mean + 0.1 * torch.randn(2, 24, 5, 7)
        torch.testing.assert_close(compiled(x), layer(x), rtol=tolerance, atol=tolerance)
    assert 'group_norm' not in graphs[0]


@pytest.mark.parametrize('name', ['ncsnpp_skip', 'adm_cond', 'vp_ddpmpp'])
def test_one_graph(name):
    """torch.compile sees the whole forward pass without a break; a break is an error with fullgraph.

    Networks like the golden ones with fewer blocks, since tracing takes as long as there are layers.
    """
    like = golden(name)[0]
    net = networks.construct(like.constructor, like.init_kwargs | dict(channel_mult=[1, 1], num_blocks=0))
    middle = next(key for key in net.model.dec if key.endswith('_in1'))
    del net.model.dec[middle]  # as the blocks behind it
    recipe_(net).eval().requires_grad_(False)
    size, labels = net.img_resolution, torch.eye(10)[[3, 7]] if net.label_dim else None
    torch.compiler.reset()
    compiled = torch.compile(net, backend='eager', fullgraph=True)  # only traces, without a compiler
    arguments = torch.randn(2, 3, size, size), torch.tensor([0.5, 8.0]), labels
    assert_denoised(compiled(*arguments), net(*arguments), arguments[1])


def test_one_graph_of_a_table_of_levels():
    """The U-Net behind it is adm_cond's above."""
    net, sigma = golden('iddpm_adm')[0], torch.tensor([0.5, 8.0]).reshape(2, 1, 1, 1)
    for ours, plain in zip(torch.compile(net.coefficients, backend='eager', fullgraph=True)(sigma),
                           net.coefficients(sigma), strict=True):
        torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(plain))


def test_label_dropout_hides_labels_of_single_rows_in_training_only():
    net = copy.deepcopy(golden('ddpmpp_cond')[0])
    net.model.label_dropout = 0.5
    for module in net.modules():
        if hasattr(module, 'dropout'):
            module.dropout = 0.0
    x, labels = torch.randn(1, 3, 32, 32).expand(32, -1, -1, -1), torch.eye(10)[[3]].expand(32, -1)
    sigma = torch.tensor(1.0)
    with_label, without = net(x[:1], sigma, labels[:1]), net(x[:1], sigma)
    torch.testing.assert_close(net(x, sigma, labels), with_label.expand(32, -1, -1, -1), rtol=1e-4, atol=1e-4)
    out = net.train()(x, sigma, labels)
    hidden = (out - without).flatten(1).abs().amax(1) < 1e-4
    kept = (out - with_label).flatten(1).abs().amax(1) < 1e-4
    assert (hidden ^ kept).all() and 6 <= hidden.sum() <= 26


def test_new_networks_start_near_the_skip_connection():
    """As EDM initialises: the last convolution of every block is (nearly) zero, so F is, too."""
    for kwargs, bound in [(dict(model_type='SongUNet', model_channels=16, channel_mult=[1, 2], num_blocks=1), 1e-3),
                          (dict(model_type='DhariwalUNet', model_channels=32, channel_mult=[1, 2], num_blocks=1), 0)]:
        net = networks.construct('EDMPrecond', dict(img_resolution=16, img_channels=3, **kwargs)).eval()
        F_x = net.model(torch.randn(2, 3, 16, 16), torch.zeros(2), None)
        assert F_x.abs().max() <= bound


@pytest.mark.parametrize('constructor, kwargs, message', [
    ('GANPrecond', {}, "'GANPrecond' is not a score network; known are EDMPrecond"),
    ('EDMPrecond', dict(img_resolution=16), 'img_channels'),
    ('EDMPrecond', dict(img_resolution=16, img_channels=3, colour=1), 'colour'),
    ('EDMPrecond', dict(img_resolution=16, img_channels=3, model_type='UNet'), "model_type 'UNet' is not one of"),
    ('VPPrecond', dict(img_resolution=16, img_channels=3, embedding_type='rotary'), 'embedding_type'),
    ('VPPrecond', dict(img_resolution=30, img_channels=3), '30x30 images cannot be halved 3 times'),
    ('EDMPrecond', dict(img_resolution=30, img_channels=3, model_type='DhariwalUNet'), 'cannot be halved 3 times'),
    ('VPPrecond', dict(img_resolution=16, img_channels=3, model_channels=30), '30 channels cannot be normalised in 7'),
    ('VEPrecond', dict(img_resolution=16, img_channels=3, encoder_type='deep'), 'encoder_type'),
    ('VEPrecond', dict(img_resolution=16, img_channels=3, decoder_type='deep'), 'decoder_type'),
])
def test_construct_errors(constructor, kwargs, message):
    with pytest.raises(ValueError, match=message):
        networks.construct(constructor, kwargs)


@pytest.mark.parametrize('name', ['ddpmpp_cond', 'iddpm_adm', 've_ncsnpp'])
def test_round_trip(tmp_path, name):
    net, d = golden(name)
    args = d['x'], d['sigma'], d.get('class_labels')
    networks.save_network(tmp_path / 'net.safetensors', net, dict(note='x'))
    back = networks.load_network(tmp_path / 'net.safetensors')
    assert type(back) is type(net) and back.init_kwargs == net.init_kwargs and back.metadata == dict(note='x')
    assert not back.training and not any(p.requires_grad for p in back.parameters())
    state = back.state_dict()
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    assert_denoised(back(*args), d['denoised'], d['sigma'])


@pytest.mark.parametrize('name', ['iddpm_adm', 've_ncsnpp'])
def test_half_round_trip(tmp_path, name):
    """Parameters come back rounded to float16; tables (noise levels, Fourier frequencies) to the last bit."""
    net, d = golden(name)
    networks.save_network(tmp_path / 'whole.safetensors', net)
    networks.save_network(tmp_path / 'half.safetensors', net, half=True)
    assert (tmp_path / 'half.safetensors').stat().st_size < 0.6 * (tmp_path / 'whole.safetensors').stat().st_size
    back = networks.load_network(tmp_path / 'half.safetensors')
    for key, value in net.named_parameters():
        assert torch.equal(dict(back.named_parameters())[key], value.half().float())
    for key, value in net.named_buffers():
        assert torch.equal(dict(back.named_buffers())[key], value)
    out = back(d['x'], d['sigma'], d.get('class_labels'))
    assert (out - d['denoised']).norm() < 2e-3 * d['denoised'].norm()


def test_load_in_bf16(tmp_path):
    net, d = golden('ddpmpp_uncond')
    networks.save_network(tmp_path / 'net.safetensors', net)
    half = networks.load_network(str(tmp_path / 'net.safetensors'), dtype=torch.bfloat16)
    assert half.body_dtype == torch.float32
    assert (half(d['x'], d['sigma']) - d['denoised']).norm() < 1e-2 * d['denoised'].norm()


def test_files_that_do_not_describe_themselves(tmp_path):
    net, _ = golden('ddpmpp_uncond')
    path = tmp_path / 'net.safetensors'
    state = net.state_dict()
    for broken in (dict(list(state.items())[1:]), state | dict(more=torch.zeros(1)),
                   state | {'model.out': torch.zeros(1)}):
        checkpoint.save_network(path, broken, 'EDMPrecond', net.init_kwargs)
        with pytest.raises(ValueError, match=r'net.safetensors does not fit its own description: [^\n]*$'):
            networks.load_network(path)
    checkpoint.save_network(path, state, 'FeatureNet', {})
    with pytest.raises(ValueError, match='is a FeatureNet, not a score network'):
        networks.load_network(path)
    checkpoint.save_network(path, state, 'EDMPrecond', dict(img_resolution='large', img_channels=3))
    with pytest.raises(ValueError, match='does not fit its own description'):
        networks.load_network(path)


@pytest.mark.parametrize('network, message', [
    (None, 'holds tensors but no description of a network'), ('{', 'has a damaged description'),
    ('3', 'has a damaged description'), ('{}', 'has a damaged description'),
    ('{"format": "network-v9"}', "has format 'network-v9', this version reads 'network-v1'"),
    ('{"format": "network-v1", "constructor": "EDMPrecond"}', 'has a damaged description')])
def test_descriptions(tmp_path, network, message):
    metadata = None if network is None else dict(network=network)
    safetensors.torch.save_file(dict(a=torch.zeros(1)), tmp_path / 'net.safetensors', metadata)
    with pytest.raises(ValueError, match=f'net.safetensors {message}') as caught:
        networks.load_network(tmp_path / 'net.safetensors')
    assert str(caught.value).isprintable()


def test_a_safetensors_file_is_known_whatever_its_length_looks_like(tmp_path):
    """It begins with the length of its header, whose bytes can read 'PK' (a zip) or ' <' (a web page)."""
    net, d = golden('ddpmpp_uncond')
    path = tmp_path / 'net.safetensors'
    networks.save_network(path, net)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], 'little')
    for wanted in (0x3c20, 0x4b50):
        padding = wanted - size
        while padding < 0:
            padding += 1 << 16
        header = data[8:8 + size] + b' ' * padding
        path.write_bytes(len(header).to_bytes(8, 'little') + header + data[8 + size:])
        assert path.read_bytes()[:2] in (b' <', b'PK')
        assert_denoised(networks.load_network(path)(d['x'], d['sigma']), d['denoised'], d['sigma'])


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('name', NAMES)
def test_golden_on_the_gpu(name):
    net, d = golden(name)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    labels = d.get('class_labels')
    out = copy.deepcopy(net).cuda()(d['x'].cuda(), d['sigma'].cuda(), None if labels is None else labels.cuda())
    assert_denoised(out.cpu(), d['denoised'], d['sigma'])
