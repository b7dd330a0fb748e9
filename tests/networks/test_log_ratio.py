"""The log-ratio and its gradient against DG's and DiffRS's numbers; files of classifiers and discriminators."""

import copy
import functools
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dg_goldens import classifier, discriminator
from goldens import load, recipe_

import classifier_lib
from diffusion import cube
from diffusion.reflected_sde import ReflectedVP
from diffusion.vpsde import VPSDE
from guided_diffusion import create_classifier
from networks import LogRatio, load_log_ratio, load_network
from networks.classifiers import load_classifier, load_discriminator, time_convention
from networks.log_ratio import clipped_logit
from torch_utils import checkpoint
from torch_utils.compiler import compiled_or_plain
from training.discriminator import DiscriminatorLoss

IN_RANGE = slice(1, 4)  # of the five noise levels: 0.03 lies below time_min, 200 above time_max
CASES = [(repo, kind, res) for repo in ('dg', 'diffrs') for kind in ('uncond', 'cond') for res in (32, 64)]
NET = SimpleNamespace(img_resolution=32, img_channels=3, label_dim=0)
NET10 = SimpleNamespace(img_resolution=32, img_channels=3, label_dim=10)


def log_ratio(kind, res=32, clip=False):
    return LogRatio(classifier(), discriminator(kind), time='cosine' if res == 64 else 'linear', clip=clip,
                        conditional=kind == 'cond')


def compile_to(monkeypatch, forward, backward):
    """Let torch.compile trace as usual, but call what these give for a graph and its inputs."""
    # Imported here, since these two take three seconds, in each process that collects tests.
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    backend = aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(forward(graph, inputs)),
                           bw_compiler=lambda graph, inputs: make_boxed_func(backward(graph, inputs)))
    compile = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda function, dynamic: compile(
        function, dynamic=dynamic, fullgraph=True, backend=backend))


def test_compiled(monkeypatch):
    """One graph of both networks for the value, one more for the gradient, and the numbers of the plain ones.

    Small networks, since tracing takes as long as there are layers: the classifier halves its images and doubles its
    channels once and has attention, the discriminator has labels and one block.
    """
    graphs = []

    def forward(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_to(monkeypatch, forward, lambda graph, inputs: graph.forward)
    nets = [recipe_(create_classifier(16, 32, 1, '', channel_mult=[1, 2])),
            recipe_(create_classifier(8, 64, 0, in_channels=64, out_channels=1, num_classes=10))]
    del nets[0].input_blocks[1], nets[0].middle_block[2], nets[1].middle_block[1:]  # more of the same
    plain, compiled = (LogRatio(*(net.eval().requires_grad_(False) for net in nets), conditional=True)
                       for _ in range(2))
    compiled.compile()
    noise, labels = torch.randn(2, 3, 16, 16), torch.eye(10)[[3, 7]]
    for sigma in torch.tensor([0.1, 1.0, 20.0]):
        arguments = sigma * noise, sigma, labels
        torch.testing.assert_close(compiled.value(*arguments), plain.value(*arguments))
        (value, gradient), (_, expected) = compiled.value_and_grad(*arguments), plain.value_and_grad(*arguments)
        torch.testing.assert_close(value, plain.value(*arguments))
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        assert expected.abs().max() > 0
    assert len(graphs) == 2


@pytest.mark.parametrize('mode', ['auto', 'on'])
def test_a_compiler_that_fails_backwards(monkeypatch, capsys, mode):
    """It sees the backward pass only when that is first computed, after the forward pass."""
    def broken(graph, inputs):
        raise RuntimeError('no backward pass')

    def features_of(x, timesteps, feature):
        return x.sin() * timesteps[:, None, None, None]

    def logit_of(features, timesteps, condition):
        return features.flatten(1).sum(1)

    compile_to(monkeypatch, lambda graph, inputs: graph.forward, broken)
    plain, ours = LogRatio(features_of, logit_of), LogRatio(features_of, logit_of)
    ours.compile(functools.partial(compiled_or_plain, mode))
    x, sigma = torch.randn(2, 3, 4, 4), torch.tensor(1.0)
    torch.testing.assert_close(ours(x, sigma), plain(x, sigma))
    if mode == 'on':
        with pytest.raises(RuntimeError, match='no backward pass'):
            ours.value_and_grad(x, sigma)
        return
    for _ in range(2):
        assert torch.equal(ours.value_and_grad(x, sigma)[1], plain.value_and_grad(x, sigma)[1])
    assert capsys.readouterr().out == 'torch.compile does not work here (RuntimeError); continuing without it\n'


def assert_score(actual, expected):
    """rtol 2e-4, atol 2e-4 of the largest entry at this noise level."""
    torch.testing.assert_close(actual.float(), expected.float(), rtol=2e-4, atol=2e-4 * float(expected.abs().max()))


@pytest.mark.parametrize('source', ['file', 'new'])
@pytest.mark.parametrize('eval', [True, False])
def test_networks_are_frozen_to_be_used_and_trainable_to_be_trained(dg_files, source, eval):
    """From files or new; for use, their convolutions are stored in the chosen precision."""
    paths = (dg_files[0], dg_files[1]['uncond']) if source == 'file' else (None, None)
    nets = [load_classifier(paths[0], 32, 'cpu', eval, dtype=torch.bfloat16)]
    nets.append(load_discriminator(paths[1], 'cpu', False, eval, nets[0].feature_channels, dtype=torch.bfloat16))
    for net in nets:
        assert net.training == (not eval) and all(p.requires_grad == (not eval) for p in net.parameters())
        assert any(p.dtype == torch.bfloat16 for p in net.parameters()) == eval


@pytest.mark.parametrize('repo, kind, res', CASES)
def test_golden_log_ratio_and_gradient(dg, repo, kind, res):
    """-sigma^2 times our gradient in x is the published correction, which is taken in mean(tau) x."""
    ours = log_ratio(kind, res, clip=repo == 'dg')
    name = f'{repo}_{kind}_res{res}'
    for index in range(5)[IN_RANGE]:
        sigma = dg['sigma'][index]
        x = dg['x0'] + sigma * dg['noise']
        value, gradient = ours.value_and_grad(x, sigma, dg['class_labels'])
        assert value.shape == (2,) and gradient.shape == x.shape and gradient.dtype == torch.float32
        torch.testing.assert_close(value, dg[f'{name}_log_ratio'][index], rtol=0, atol=5e-4)
        if f'{name}_score' in dg:
            assert_score(-sigma**2 * gradient, dg[f'{name}_score'][index])


@pytest.mark.parametrize('kind, res', [('uncond', 32), ('cond', 64)])
def test_diffrs_log_ratio_at_every_noise_level(dg, kind, res):
    ours = log_ratio(kind, res)
    for sigma, expected in zip(dg['sigma'], dg[f'diffrs_{kind}_res{res}_log_only']):
        value = ours.value(dg['x0'] + sigma * dg['noise'], sigma, dg['class_labels'])
        torch.testing.assert_close(value, expected, rtol=0, atol=5e-4)


def test_three_ways_to_ask(dg):
    ours = log_ratio('cond')
    sigma = dg['sigma'][[1, 2]]
    x = (dg['x0'] + sigma[:, None, None, None] * dg['noise']).requires_grad_()
    labels = dg['class_labels']
    value, gradient = ours.value_and_grad(x, sigma, labels)
    called = ours(x, sigma, labels)
    assert torch.equal(called.detach(), value) and torch.equal(ours.value(x, sigma, labels), value)
    by_autograd, = torch.autograd.grad(called.sum(), x)
    torch.testing.assert_close(by_autograd.float(), gradient, rtol=1e-5, atol=1e-7)
    assert not value.requires_grad and not gradient.requires_grad and not ours.value(x, sigma, labels).requires_grad
    # rows are independent; labels by index; one level for all
    for k in range(2):
        one = slice(k, k + 1)
        torch.testing.assert_close(ours.value(x[one], sigma[k], labels[one].argmax(1)), value[one],
                                   rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match='needs class labels'):
        ours(x, sigma)
    with torch.no_grad():  # a sampler's
        assert torch.equal(ours.value_and_grad(x, sigma, labels)[1], gradient)


def test_an_unconditional_one_ignores_labels(dg):
    ours = log_ratio('uncond')
    x = dg['x0'] + dg['noise']
    assert torch.equal(ours.value(x, torch.tensor(1.0), dg['class_labels']), ours.value(x, torch.tensor(1.0)))


def test_golden_clip():
    arrays = load('dg/log_ratio_clip.npz')
    probability = torch.as_tensor(arrays['probability'])
    torch.testing.assert_close(clipped_logit(probability), torch.as_tensor(arrays['log_ratio']),
                               rtol=1e-5, atol=1e-5)


def test_what_the_clip_does_at_saturation(dg):
    """Both variants agree within the clip; beyond it the clipped value stays at 11.5 and its gradient is zero."""
    sure = copy.deepcopy(discriminator('uncond'))
    sure.out[2].c_proj.weight.mul_(20)
    raw, clipped = (LogRatio(classifier(), sure, clip=clip) for clip in (False, True))
    x = dg['x0'] + 0.5 * dg['noise']
    value, gradient = raw.value_and_grad(x, torch.tensor(0.5))
    value_c, gradient_c = clipped.value_and_grad(x, torch.tensor(0.5))
    assert (value.abs() > 12).all() and gradient.flatten(1).norm(dim=1).gt(0.1).all()
    torch.testing.assert_close(value_c.abs(), torch.tensor([11.5129] * 2), rtol=1e-3, atol=0)
    assert torch.equal(value_c.sign(), value.sign()) and not gradient_c.any()


def test_unknown_time():
    with pytest.raises(ValueError, match="time 'quadratic' is not one of linear, cosine"):
        LogRatio(None, None, time='quadratic')


# Files.

def test_load_classifier(dg_files):
    net = load_classifier(dg_files[0], 32, 'cpu')
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in classifier().state_dict().items())
    assert load_classifier(dg_files[0], 32, 'cpu', eval=False).training
    with pytest.raises(ValueError, match='is for 32x32 images, these are 64x64'):
        load_classifier(dg_files[0], 64, 'cpu')


def test_new_networks_have_dgs_sizes():
    with torch.device('meta'):
        net = load_discriminator(None, 'meta', True)
    assert net.training and net.in_channels == 512 and net.model_channels == 128 and net.num_classes == 1000
    assert sum(name.endswith('in_layers.2.weight') for name in net.state_dict()) == 2 + 2  # depth 2, and the middle
    with torch.device('meta'):
        net = load_discriminator(None, 'meta', False, eval=True, channel=256, depth=4, width=64)
        assert not net.training and net.in_channels == 256 and net.num_classes == 0
        assert load_classifier(None, 32, 'meta').feature_channels == 512


def refused(message, function, *args, **kwargs):
    with pytest.raises((ValueError, OSError), match=message) as caught:
        function(*args, **kwargs)
    text = str(caught.value)
    assert '\n' not in text and len(text) < 600 and 'weights_only' not in text


def test_load_discriminator(dg_files):
    for kind, condition in (('uncond', False), ('cond', True)):
        net = load_discriminator(dg_files[1][kind], 'cpu', condition, True, 256)
        assert torch.equal(net.out[2].c_proj.weight, discriminator(kind).out[2].c_proj.weight)
        other = 'conditional; use --cond=1' if condition else 'unconditional; use --cond=0'
        refused(rf'discriminator_{kind}.pt is {other}', load_discriminator, dg_files[1][kind], 'cpu', not condition,
                True, 256)
    refused('reads 256 feature channels, the classifier has 512', load_discriminator, dg_files[1]['uncond'], 'cpu', 0)


def test_load_log_ratio(dg, dg_files):
    ours = load_log_ratio(NET10, dg_files[0], dg_files[1]['cond'], True, device='cpu')
    assert ours.time == 'linear' and not ours.clip and ours.conditional
    x, sigma = dg['x0'] + dg['noise'], torch.tensor(1.0)
    expected = log_ratio('cond').value(x, sigma, dg['class_labels'])
    torch.testing.assert_close(ours.value(x, sigma, dg['class_labels']), expected, rtol=1e-5, atol=1e-5)
    half = load_log_ratio(NET10, dg_files[0], dg_files[1]['cond'], True, torch.bfloat16, clip=True, device='cpu')
    assert half.clip and half.classifier.body_dtype == torch.float32
    assert (half.value(x, sigma, dg['class_labels']) - expected).abs().max() < 0.25


def test_bundled_networks_need_no_arguments():
    """load_network() and load_log_ratio(net): the networks of checkpoints/demo, on the device of the net."""
    net = load_network()
    ours = load_log_ratio(net)
    x = torch.randn([2, 3, 32, 32], generator=torch.Generator().manual_seed(0))
    assert (net.img_resolution, net.img_channels, net.label_dim) == (32, 3, 0) and not ours.conditional
    assert net.decode(x) is x
    value, gradient = ours.value_and_grad(x, torch.tensor(1.0))
    assert torch.equal(ours.value(x, torch.tensor(1.0)), value) and gradient.shape == x.shape
    assert next(load_log_ratio(net.to('meta')).classifier.parameters()).device.type == 'meta'


@torch.no_grad()
def test_features_of_another_size(tmp_path):
    """Images of 28 pixels have 7x7 features; a discriminator of 8x8 is refused."""
    images = create_classifier(28, 64, 1, in_channels=1)
    torch.save(images.state_dict(), tmp_path / 'c.pt')
    for size in (7, 8):
        net = create_classifier(size, 64, 1, in_channels=256, out_channels=1)
        torch.save(net.state_dict(), tmp_path / f'd{size}.pt')
    grey = SimpleNamespace(img_resolution=28, img_channels=1, label_dim=0)
    ours = load_log_ratio(grey, tmp_path / 'c.pt', tmp_path / 'd7.pt', device='cpu')
    assert ours(torch.zeros(2, 1, 28, 28), torch.tensor(1.0)).shape == (2,)
    refused('d8.pt is for 8x8 images: not a discriminator of 7x7 features', load_log_ratio, grey,
            tmp_path / 'c.pt', tmp_path / 'd8.pt', device='cpu')
    assert load_discriminator(tmp_path / 'd7.pt', 'cpu', False, True, 256).image_size == 7


def test_published_paths(dg_files, monkeypatch):
    """DG's users write /checkpoints/... for ./checkpoints/..."""
    monkeypatch.chdir(dg_files[0].parent.parent)
    folder = '/' + dg_files[0].parent.name
    load_log_ratio(NET, f'{folder}/classifier.pt', f'{folder}/discriminator_uncond.pt', device='cpu')


def test_mismatches_name_both_sides(dg_files, tmp_path):
    def load_with(net=NET10, classifier=dg_files[0], discriminator=dg_files[1]['cond'], cond=True):
        return load_log_ratio(net, classifier, discriminator, cond, device='cpu')

    refused('conditional discriminator needs a class-conditional network; use --cond=0', load_with, net=NET)
    refused('discriminator_cond.pt is conditional; use --cond=1', load_with, cond=False)
    refused('discriminator_uncond.pt is unconditional; use --cond=0', load_with, discriminator=dg_files[1]['uncond'])
    large = SimpleNamespace(img_resolution=64, img_channels=3, label_dim=10)
    refused('is for 32x32x3 images, the network draws 64x64x3', load_with, net=large)
    grey = SimpleNamespace(img_resolution=32, img_channels=1, label_dim=10)
    refused('is for 32x32x3 images, the network draws 32x32x1', load_with, net=grey)
    many = SimpleNamespace(img_resolution=32, img_channels=3, label_dim=1001)
    refused('knows 1000 classes, the network has 1001', load_with, net=many)
    refused('is for 32x32 images: a classifier, not a discriminator', load_with, discriminator=dg_files[0])
    refused('is for 8x8x256 images, the network draws 32x32x3', load_with, classifier=dg_files[1]['cond'])
    wide = create_classifier(8, 64, 1, in_channels=512, out_channels=1)
    torch.save(wide.state_dict(), tmp_path / 'wide.pt')
    refused('wide.pt reads 512 feature channels, the classifier has 256; use the classifier it was trained with',
            load_with, discriminator=tmp_path / 'wide.pt', cond=False)
    torch.save(create_classifier(8, 64, 1, in_channels=256, out_channels=10).state_dict(), tmp_path / 'ten.pt')
    refused('ten.pt has 10 outputs: a classifier', load_with, discriminator=tmp_path / 'ten.pt', cond=False)


def save_described(path, net, **metadata):
    checkpoint.save_network(path, net, 'create_classifier', {}, metadata)
    return path


def test_described_files(dg_files, tmp_path):
    """Ours record the time and the classes that they were trained with."""
    def images(**metadata):
        return save_described(tmp_path / 'classifier.safetensors', classifier(), **metadata)

    def features(**metadata):
        return save_described(tmp_path / 'discriminator.safetensors', discriminator('cond'), **metadata)

    def load_both(one, two):
        return load_log_ratio(NET10, one, two, True, device='cpu')

    assert load_both(images(time='cosine'), features(time='cosine', classes=10)).time == 'cosine'
    assert load_both(images(time='cosine'), dg_files[1]['cond']).time == 'cosine'
    assert load_both(dg_files[0], features(time='cosine')).time == 'cosine'
    assert load_both(images(), features()).time == 'linear'
    refused('classifier.safetensors was trained with cosine time, discriminator .*discriminator.safetensors with '
            'linear', load_both, images(time='cosine'), features(time='linear'))
    refused("time 'quadratic' is not one of", load_both, images(), features(time='quadratic'))
    for classes in (9, 100):
        refused(f'knows {classes} classes, the network has 10', load_both, images(), features(classes=classes))
    checkpoint.save_network(tmp_path / 'x.safetensors', classifier(), 'EDMPrecond', {})
    refused('x.safetensors is a EDMPrecond, not a classifier', load_both, tmp_path / 'x.safetensors', features())


@pytest.mark.parametrize('size', [64, 256])
def test_described_for_other_images(dg_files, tmp_path, size):
    """Features are 8x8 for all images, so only the description in the file shows the size."""
    path = save_described(tmp_path / 'd.safetensors', discriminator('uncond'), resolution=size, time='linear')
    message = f'discriminator .*d.safetensors was trained for {size}x{size} images, these are 32x32'
    refused(message, load_log_ratio, NET, dg_files[0], path, device='cpu')
    refused(message, classifier_lib.get_discriminator, dg_files[0], path, False, 32, 'cpu')
    same = save_described(tmp_path / 'same.safetensors', discriminator('uncond'), resolution=32, time='linear')
    load_log_ratio(NET, dg_files[0], same, device='cpu')
    classifier_lib.get_discriminator(dg_files[0], same, False, 32, 'cpu')


def test_described_image_size_settles_a_choice(tmp_path):
    """Without attention, 256x256 at depth 1 and 32x32 at depth 3 have the same tensors (test_guided_diffusion)."""
    net = create_classifier(256, 64, 1, '', out_channels=2)
    torch.save(net.state_dict(), tmp_path / 'c.pt')
    assert load_classifier(tmp_path / 'c.pt', 32, 'cpu').image_size == 32  # by default
    checkpoint.save_network(tmp_path / 'c.safetensors', net, 'create_classifier', dict(image_size=256))
    refused('is for 256x256 images, these are 32x32', load_classifier, tmp_path / 'c.safetensors', 32, 'cpu')
    assert load_classifier(tmp_path / 'c.safetensors', 256, 'cpu').image_size == 256


def test_time_of_the_published_files():
    assert {size: time_convention(size) for size in (32, 64, 256)} == {32: 'linear', 64: 'cosine', 256: 'linear'}


class Evil:
    def __reduce__(self):
        return exec, ("open('PWNED', 'w')",)


def test_foreign_files(dg_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(a=torch.zeros(2)), 'tensors.pt')
    torch.save([torch.zeros(2)], 'list.pt')
    torch.save(dict(epoch=3, net=classifier().state_dict()), 'snapshot.pt')
    torch.save(dict(evil=Evil()), 'evil.pt')
    np.savez('arrays.npz', a=np.zeros(2))
    for name, data in (('empty.pt', b''), ('page.pt', b'<html>'), ('text.safetensors', b'hello'),
                       ('short.pt', dg_files[0].read_bytes()[:20000]), ('edm.pkl', pickle.dumps(Evil(), protocol=4))):
        (tmp_path / name).write_bytes(data)
    state = dict(classifier().state_dict())
    torch.save({key: value for key, value in state.items() if key != 'middle_block.0.in_layers.0.weight'}, 'part.pt')
    before = {path.name for path in tmp_path.iterdir()}
    for name, message in {
            'absent.pt': 'classifier absent.pt does not exist', 'tensors.pt': "it has no tensor 'time_embed",
            'list.pt': 'is not a state dict of a classifier', 'snapshot.pt': 'is not a state dict of a classifier',
            'evil.pt': r'is not a PyTorch file of tensors .it asks for [\w.]*exec, which is refused',
            'edm.pkl': 'edm.pkl is not a PyTorch file of tensors .it holds something else',
            'arrays.npz': 'is not a PyTorch file', 'empty.pt': 'is not a PyTorch file',
            'page.pt': 'is a web page, not a PyTorch file; download it again',
            'text.safetensors': 'is not a readable safetensors file', 'short.pt': 'is not a PyTorch file',
            'part.pt': 'classifier part.pt: .*Missing key'}.items():
        refused(message, load_log_ratio, NET, name, dg_files[1]['uncond'], device='cpu')
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_reflected_log_ratio_is_the_trained_logit():
    """At a state in [0, 1] it is what training sees at this level; its gradient is that of the state."""
    net, features = discriminator('uncond'), classifier()
    log_ratio = LogRatio(features, net, reflected=True)
    loss = DiscriminatorLoss(net, functools.partial(features, feature=True), ReflectedVP())
    generator = torch.Generator().manual_seed(0)
    images = torch.rand([3, 3, 32, 32], generator=generator) * 2 - 1
    noise, t = torch.randn(images.shape, generator=generator), torch.tensor([0.05, 0.2, 0.9], dtype=torch.float64)
    mean, std = VPSDE().marginal(t)
    state = cube.perturb((images.double() + 1) / 2, std / mean / 2, noise.double())
    value, gradient = log_ratio.value_and_grad(state, std / mean / 2)
    expected = loss.logits(images, None, t.float(), noise)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-3, atol=1e-4)
    by_autograd, = torch.autograd.grad(log_ratio(state.requires_grad_(), std / mean / 2).sum(), state)
    torch.testing.assert_close(gradient, by_autograd.float(), rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))
