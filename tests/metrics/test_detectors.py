"""Detectors: Inception-v3 with published names, folded normalisation, the shipped feature network."""

import copy
import types

import goldens
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from metrics import detectors, inception
from metrics.feature_net import FeatureNet, load_feature_net, save_feature_net
from metrics.reference import Reference, load_reference


def recipe_net(net):
    """Recipe weights, with normalisation statistics that make errors of folding visible."""
    goldens.recipe_(net)
    for key, buffer in net.named_buffers():
        if key.endswith('running_mean'):
            buffer.copy_(goldens.recipe_tensor(key, buffer.shape))
        elif key.endswith('running_var'):
            buffer.copy_(1 + goldens.recipe_tensor(key, buffer.shape).abs())
    return net.eval().requires_grad_(False)


def images(count=2, size=32):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


@pytest.fixture(scope='module')
def inception_net():
    return recipe_net(inception.InceptionV3())


@pytest.fixture
def feature_file(tmp_path):
    path = tmp_path / 'features.safetensors'
    save_feature_net(path, recipe_net(FeatureNet(widths=(16, 24), blocks=(1, 1))), dict(note='test'))
    return path


@pytest.fixture(scope='module')
def torchvision_inception(inception_net):
    """torchvision's network, of which pytorch-fid's is a variant with other pooling, with our weights."""
    from torchvision.models.inception import Inception3

    net = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    net.load_state_dict(inception_net.state_dict(), strict=True)
    return net.eval().requires_grad_(False)


def test_inception_state_dict_has_the_published_names(inception_net, torchvision_inception):
    """pytorch-fid's variants change the pooling of torchvision's blocks and no parameter."""
    state, expected = inception_net.state_dict(), torchvision_inception.state_dict()
    assert len(state) == 566
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}


def test_inception_agrees_with_torchvision_but_for_the_pooling(inception_net, torchvision_inception, monkeypatch):
    from torchvision.models import inception as published

    net = torchvision_inception
    in_last_block = []
    net.Mixed_7c.register_forward_pre_hook(lambda *_: in_last_block.append(True))

    def pool(x, kernel_size, stride, padding):
        if in_last_block:  # pytorch-fid: max instead of average, only in Mixed_7c
            return F.max_pool2d(x, kernel_size, stride, padding)
        return F.avg_pool2d(x, kernel_size, stride, padding, count_include_pad=False)

    patched = types.SimpleNamespace(relu=F.relu, max_pool2d=F.max_pool2d, avg_pool2d=pool)
    monkeypatch.setattr(published, 'F', patched)
    net.fc = torch.nn.Identity()
    u = images(1, 40)
    x = F.interpolate(u.float() / 255, size=(299, 299), mode='bilinear', align_corners=False)
    torch.testing.assert_close(inception_net(u), net(2 * x - 1), rtol=1e-4, atol=1e-5)


def test_folded_inception_is_the_same_function(inception_net):
    folded = detectors.prepare_(copy.deepcopy(inception_net), 'cpu', torch.float32)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    u = images(1)
    f, expected = folded(u), inception_net(u)
    assert f.shape == (1, 2048) and f.dtype == torch.float32
    torch.testing.assert_close(f, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_inception_file_without_batch_counters(inception_net, tmp_path):
    """The published file predates num_batches_tracked."""
    state = {k: v for k, v in inception_net.state_dict().items() if not k.endswith('num_batches_tracked')}
    torch.save(state, tmp_path / 'pt_inception.pth')
    detector = detectors.load_detector('inception', path=tmp_path / 'pt_inception.pth')
    u = images(1)
    expected = inception_net(u)
    assert (detector.name, detector.distance, detector.feature_dim) == ('inception', 'FID', 2048)
    torch.testing.assert_close(detector(u), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))

    # Other weights under the same name are detected; the same ones in another order or with counters are not.
    assert detector.fingerprint
    torch.save({k: state[k] for k in sorted(state)} | {'Conv2d_1a_3x3.bn.num_batches_tracked': torch.tensor(7)},
               tmp_path / 'same.pth')
    torch.save(state | {'fc.bias': state['fc.bias'] + 1e-3}, tmp_path / 'other.pth')
    same, other = (detectors.load_detector('inception', path=tmp_path / name) for name in ('same.pth', 'other.pth'))
    assert same.fingerprint == detector.fingerprint != other.fingerprint
    made = reference(2048, detector='inception', fingerprint=detector.fingerprint)
    assert made.check(same) == ''
    with pytest.raises(ValueError, match=f'inception {detector.fingerprint}, the weights at hand'):
        made.check(other)
    assert reference(2048, detector='inception').check(other) == ''  # from before there were fingerprints
    assert 'not identical' in reference(2048).check(detector)  # published ones name no detector


def test_foreign_inception_files(tmp_path):
    torch.save(dict(a=torch.zeros(1)), tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='does not hold the Inception-v3'):
        detectors.load_detector('inception', path=tmp_path / 'other.pth')
    (tmp_path / 'inception.pkl').write_bytes(b'\x80\x04.')
    with pytest.raises(ValueError, match='pickle'):
        detectors.load_detector('inception', path=tmp_path / 'inception.pkl')
    with pytest.raises(FileNotFoundError):
        detectors.load_detector('inception', path=tmp_path / 'missing.pth')


def test_nvidia_needs_trust_and_torchscript(tmp_path):
    with pytest.raises(ValueError, match='--allow_code'):
        detectors.load_detector('nvidia')
    with pytest.raises(ValueError, match='leave out --precision'):
        detectors.load_detector('nvidia', dtype=torch.bfloat16, allow_code=True)
    (tmp_path / 'inception.pkl').write_bytes(b'\x80\x04.')
    with pytest.raises(ValueError, match='pickle, which this project never loads'):
        detectors.load_detector('nvidia', path=tmp_path / 'inception.pkl', allow_code=True)


class ScriptedDetector(torch.nn.Module):
    def forward(self, img, return_features: bool = False):
        return img.float().mean(dim=[2, 3]) if return_features else img


@pytest.mark.filterwarnings('ignore:.*torch.jit')
def test_nvidia_torchscript_file_runs(tmp_path):
    torch.jit.script(ScriptedDetector()).save(str(tmp_path / 'detector.pt'))
    detector = detectors.load_detector('nvidia', path=tmp_path / 'detector.pt', allow_code=True)
    u = images()
    torch.testing.assert_close(detector(u), u.float().mean(dim=[2, 3]))
    assert len(detector.fingerprint) == 8
    (tmp_path / 'text.pt').write_text('no network')
    with pytest.raises(ValueError, match='not a TorchScript file'):
        detectors.load_detector('nvidia', path=tmp_path / 'text.pt', allow_code=True)


def test_feature_net_inputs_agree():
    net = recipe_net(FeatureNet())
    u = images(3)
    features = net(u, features=True)
    assert features.shape == (3, 128) and bool((features >= 0).all())
    torch.testing.assert_close(net(u.float() / 127.5 - 1, features=True), features)
    assert net(u).shape == (3, 10)
    assert 0.5e6 < sum(p.numel() for p in net.parameters()) < 1.5e6
    with pytest.raises(ValueError, match=r'\[N, 3, 32, 32\], not \[3, 3, 40, 40\]'):
        net(images(3, 40))


def test_feature_net_file(feature_file):
    net = load_feature_net(feature_file)
    expected = recipe_net(FeatureNet(widths=(16, 24), blocks=(1, 1)))
    u = images(5)
    assert not net.training and torch.equal(net(u, features=True), expected(u, features=True))
    detector = detectors.load_detector('cifar10', path=feature_file)
    assert (detector.name, detector.distance, detector.feature_dim) == ('cifar10', 'FD-CIFAR10', 24)
    torch.testing.assert_close(detector(u), expected(u, features=True), rtol=1e-4, atol=1e-5)
    assert detector.fingerprint == detectors.fingerprint(expected)


def test_feature_detector_in_bf16_is_near(feature_file):
    u = images(16)
    exact = detectors.load_detector('cifar10', path=feature_file)(u)
    rough = detectors.load_detector('cifar10', path=feature_file, dtype=torch.bfloat16)(u)
    assert rough.dtype == torch.float32
    assert float((rough - exact).norm() / exact.norm()) < 0.02


def test_fingerprint_follows_the_weights(tmp_path):
    net = recipe_net(FeatureNet(widths=(16, 24), blocks=(1, 1)))
    before = detectors.fingerprint(net)
    net.head.bias[0] += 1e-3
    assert detectors.fingerprint(net) != before


def test_foreign_feature_files(tmp_path):
    from torch_utils import checkpoint

    path = tmp_path / 'other.safetensors'
    checkpoint.save_network(path, dict(a=torch.zeros(1)), 'EDMPrecond', {})
    with pytest.raises(ValueError, match='holds a EDMPrecond, not a FeatureNet'):
        detectors.load_detector('cifar10', path=path)
    net = FeatureNet(widths=(16, 24), blocks=(1, 1), img_resolution=64)
    save_feature_net(path, net)
    with pytest.raises(ValueError, match='32x32'):
        detectors.load_detector('cifar10', path=path)
    checkpoint.save_network(path, net, 'FeatureNet', dict(widths=[8], blocks=[1]))
    with pytest.raises(ValueError, match='does not fit'):
        detectors.load_detector('cifar10', path=path)
    with pytest.raises(ValueError, match="'vgg' is not a detector"):
        detectors.load_detector('vgg')


def reference(dim=24, **kwargs):
    return Reference(np.zeros(dim), np.eye(dim), **kwargs)


def test_statistics_and_detector_must_agree(feature_file):
    detector = detectors.load_detector('cifar10', path=feature_file)
    assert reference(detector='cifar10', fingerprint=detector.fingerprint).check(detector) == ''
    with pytest.raises(ValueError, match='made with the detector inception, not cifar10'):
        reference(detector='inception').check(detector)
    with pytest.raises(ValueError, match='2048 features, the detector cifar10 24'):
        reference(2048).check(detector)
    with pytest.raises(ValueError, match='made with cifar10 00000000'):
        reference(detector='cifar10', fingerprint='00000000').check(detector)
    published = reference(2048)
    assert published.default_detector() == 'inception'
    fake = detectors.Detector('inception', 'FID', 2048, torch.device('cpu'), lambda x: x)
    assert 'not identical' in published.check(fake)
    with pytest.raises(ValueError, match='say which made them'):
        reference(24).default_detector()


def test_reference_round_trip(tmp_path):
    made = reference(detector='cifar10', fingerprint='abcdef01', count=7, source='here',
                     features=np.ones([3, 24], np.float16))
    made.save(tmp_path / 'stats.npz')
    read = load_reference(tmp_path / 'stats.npz')
    for name in Reference.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))


def test_published_reference_layout():
    read = load_reference(goldens.GOLDENS / 'fid/stats_ref.npz')
    golden = goldens.load('fid/stats_ref.npz')
    np.testing.assert_array_equal(read.mu, golden['mu'])
    np.testing.assert_array_equal(read.sigma, golden['sigma'])
    assert (read.detector, read.count, read.features) == ('', 0, None)


def test_references_of_adm_are_named(tmp_path):
    """VIRTUAL_*.npz: moments of pooled and of spatial features, and images."""
    np.savez(tmp_path / 'VIRTUAL.npz', mu=np.zeros(2048), sigma=np.zeros([2048, 2048]), mu_s=np.zeros(2023),
             sigma_s=np.zeros([2023, 2023]), arr_0=np.zeros([2, 8, 8, 3], np.uint8))
    read = load_reference(tmp_path / 'VIRTUAL.npz')
    assert (read.source, read.default_detector(), read.count) == ('ADM', 'inception', 0)
    fake = detectors.Detector('inception', 'FID', 2048, torch.device('cpu'), lambda x: x)
    assert "ADM's" in read.check(fake)
