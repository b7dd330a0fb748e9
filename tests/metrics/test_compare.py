"""Distances without files: the same images give the same distance, in any form."""

import types

import numpy as np
import pytest
import torch

import metrics
from dnnlib import demo
from metrics.compare import compare
from metrics.detectors import DETECTORS, DetectorKind, Made, load_detector
from metrics.estimate import from_terms
from metrics.evaluate import METRICS, Metric
from metrics.frechet import frechet_distance
from metrics.kid import kernel_distance
from metrics.measure import measure
from metrics.reference import Reference, load_reference
from metrics.sources import open_source
from metrics.stream import ImageStream, as_source
from torch_utils.images import from_uint8


@pytest.fixture(scope='module')
def images():
    return np.random.default_rng(0).integers(0, 256, [24, 32, 32, 3], dtype=np.uint8)


@pytest.fixture
def folder(images, tmp_path):
    np.savez(tmp_path / 'samples_00000000.npz', samples=images)
    return tmp_path


def forms(images):
    """The images as tensors, as samples and as streams of parts of different lengths."""
    nchw = torch.from_numpy(images).permute(0, 3, 1, 2)
    floats = from_uint8(nchw)
    yield floats
    yield images
    yield types.SimpleNamespace(images=floats.double())
    yield [nchw[:3], nchw[3:16], nchw[16:]]
    yield (types.SimpleNamespace(images=part) for part in floats.split(9))


def test_a_distance_needs_no_file(images, folder):
    """The bundled statistics and feature network, directly by the definitions."""
    f = load_detector('cifar10')(torch.from_numpy(images).permute(0, 3, 1, 2))
    ref = load_reference(demo.DEMO_STATS)
    distance = frechet_distance(f.double().mean(0).numpy(), np.cov(f.double().numpy(), rowvar=False), ref.mu, ref.sigma)
    kid = kernel_distance(f, torch.from_numpy(ref.features))
    for given in (str(folder), *forms(images)):
        found = metrics.distance(given, device='cpu')
        assert (found.name, found.num_samples) == ('FD-CIFAR10', 24)
        np.testing.assert_allclose([found.value, found.kid, found.kid_error], [distance, *kid], rtol=1e-4)
    assert str(found) == f'FD-CIFAR10 {distance:.4g}, KID x 1000 {1000 * kid.value:.4g} +- {1000 * kid.error:.2g} ' \
                         '(24 images)'


def test_every_metric_from_python(images, folder):
    expected = metrics.all_metrics(folder, device='cpu')
    assert set(expected) == {'FD-CIFAR10', 'KID (CIFAR10)', 'IS (CIFAR10)', 'precision (CIFAR10)', 'recall (CIFAR10)',
                             'density (CIFAR10)', 'coverage (CIFAR10)', 'MIND (CIFAR10)', 'FD-CIFAR10-inf'}
    assert expected['FD-CIFAR10'].value == pytest.approx(metrics.distance(folder, device='cpu').value, rel=1e-9)
    found = metrics.all_metrics((part for part in from_uint8(torch.from_numpy(images).permute(0, 3, 1, 2)).split(9)),
                                names=['fd', 'mind'], device='cpu')
    assert list(found) == ['FD-CIFAR10', 'MIND (CIFAR10)']
    for name, each in found.items():
        assert each.value == pytest.approx(expected[name].value, rel=1e-4)
        torch.testing.assert_close(each.terms, expected[name].terms, rtol=1e-2, atol=1e-3)


def test_a_metric_and_a_detector_of_ones_own(images, monkeypatch):
    """One entry in a table for each; nothing else changes."""
    def make(path, device, dtype):
        return Made(lambda u: u.float().mean(dim=[2, 3]) / 255, feature_dim=3, fingerprint='mean')

    def brightness(case):
        return dict(brightness=from_terms(case.x.mean(), case.x.mean(dim=1)))

    monkeypatch.setitem(DETECTORS, 'colours', DetectorKind(make, 'FD-COLOURS'))
    monkeypatch.setitem(METRICS, 'brightness', Metric({'brightness': 'brightness'}, brightness))
    ref = Reference(np.zeros(3), np.eye(3), 'colours', 'mean')
    found = metrics.all_metrics(images, ref, ['fd_colours', 'brightness'], device='cpu')
    means = images.reshape(24, -1).mean(axis=1) / 255
    assert list(found) == ['FD-COLOURS', 'brightness (COLOURS)']
    assert found['brightness (COLOURS)'].value == pytest.approx(means.mean(), rel=1e-5)
    assert found['brightness (COLOURS)'].error == pytest.approx(means.std(ddof=1) / np.sqrt(24), rel=1e-4)


def test_blocks_of_a_stream_are_those_of_the_files(images, folder):
    ref, detector = load_reference(demo.DEMO_STATS), load_detector('cifar10')
    expected, _ = compare(open_source(folder), ref, detector, num_samples=10, blocks=2)
    for given in forms(images):
        found, measured = compare(given, ref, detector, num_samples=10, blocks=2)
        assert measured.moments.count == 10 and [block['first'] for block in found['blocks']] == [0, 10]
        for key in ('distance', 'distance_deviation', 'kid'):
            assert found[key] == pytest.approx(expected[key], rel=1e-4)
    with pytest.raises(ValueError, match='gave 4 images instead of 10'):
        compare(images, ref, detector, num_samples=10, blocks=3)


class Means:
    """A detector whose features are the means of the channels."""

    feature_dim, device = 3, torch.device('cpu')

    def __call__(self, images):
        return images.float().mean([2, 3])


def test_a_part_of_the_features_of_a_stream_is_drawn_from_all_of_it():
    """Of 2,000 images with brightness k // 10, 100 are kept in their order: a fair sample, the moments are of all."""
    bright = (torch.arange(2000) // 10).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    found = measure(ImageStream(bright.split(30)), Means(), batch=16, max_features=100)
    values = found.features[:, 0]
    assert found.moments.count == 2000 and len(values) == 100
    assert float(found.moments.finish()[0][0]) == pytest.approx(99.5)
    assert bool((values.diff() >= 0).all()) and values.unique().numel() > 60
    assert abs(float(values.mean()) - 99.5) < 4 * 57.7 / 10  # four standard errors
    assert len(measure(ImageStream(bright), Means(), max_features=0).features) == 0


def test_batches_do_not_depend_on_the_parts_of_a_stream(images):
    whole = list(as_source(images).batches(0, None, 10))
    parts = list(as_source([images[:3], images[3:16], images[16:]]).batches(0, None, 10))
    assert [len(batch) for batch in whole] == [10, 10, 4] == [len(batch) for batch in parts]
    assert torch.equal(torch.cat(whole), torch.cat(parts))


def test_a_stream_is_read_once_and_in_order(images):
    stream = as_source(images)
    first = torch.cat(list(stream.batches(0, 14, 4)))
    with pytest.raises(ValueError, match='the next is 14, not 0'):
        next(stream.batches(0, 14, 4))
    rest = torch.cat(list(stream.batches(14, None, 4)))
    np.testing.assert_array_equal(torch.cat([first, rest]).permute(0, 2, 3, 1).numpy(), images)


def test_what_is_not_images():
    with pytest.raises(ValueError, match=r'float32 \[3, 32, 32\]'):
        metrics.distance([torch.zeros(3, 32, 32)], device='cpu')
    with pytest.raises(ValueError, match=r'takes images \[N, 3, 32, 32\], not \[8, 3, 16, 16\]'):
        metrics.distance(torch.zeros(8, 3, 16, 16), device='cpu')
    with pytest.raises(ValueError, match='at least 2 images'):
        metrics.distance([], device='cpu')
