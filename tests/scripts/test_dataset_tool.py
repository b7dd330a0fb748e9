"""dataset_tool.py: every output holds the images of its source, and reads back through the project."""

import json
import zipfile

import goldens
import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from script_runs import watch_rank0_first

import dataset_tool
from dnnlib import demo
from metrics.detectors import load_detector
from metrics.feature_net import FeatureNet, save_feature_net
from metrics.measure import sample_positions
from metrics.reference import load_reference
from metrics.sources import open_source
from training.data import ImageData


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with 24 labelled images as `source.npz`."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 256, [24, 32, 32, 3], dtype=np.uint8)
    np.savez('source.npz', samples=samples, label=np.arange(24) % 5)
    return tmp_path


@pytest.fixture
def source(place):
    with np.load('source.npz', allow_pickle=False) as file:
        return dict(file)


def run(*args):
    result = CliRunner().invoke(dataset_tool.main, [str(arg) for arg in args])
    if result.exit_code:
        assert isinstance(result.exception, SystemExit) and 'Traceback' not in result.output
    return result


def loaded(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def test_npz_as_the_published_scripts_want_it(place, source):
    result = run('npz', '--source=source.npz')
    assert result.exit_code == 0, result.output
    plain, labelled = loaded('data/true_data.npz'), loaded('data/true_data_label.npz')
    assert plain.keys() == {'arr_0'} and labelled.keys() == {'samples', 'label'}
    np.testing.assert_array_equal(plain['arr_0'], source['samples'])
    np.testing.assert_array_equal(labelled['samples'], source['samples'])
    np.testing.assert_array_equal(labelled['label'], source['label'])
    assert plain['arr_0'].dtype == np.uint8 and labelled['label'].dtype.kind == 'i'


def test_zip_as_edm_lays_it_out(place, source):
    result = run('zip', '--source=source.npz', '--dest=out/a.zip')
    assert result.exit_code == 0, result.output
    with zipfile.ZipFile('out/a.zip') as archive:
        names = archive.namelist()
        labels = json.loads(archive.read('dataset.json'))['labels']
    assert names[0] == '00000/img00000000.png' and names[-1] == 'dataset.json' and len(names) == 25
    assert labels == [[name, int(label)] for name, label in zip(names[:-1], source['label'])]
    data = ImageData('out/a.zip', quiet=True)
    np.testing.assert_array_equal(data.images.permute(0, 2, 3, 1), source['samples'])
    np.testing.assert_array_equal(data.labels, source['label'])
    first = (place / 'out/a.zip').read_bytes()
    run('zip', '--source=out/a.zip', '--dest=out/a.zip')
    assert (place / 'out/a.zip').read_bytes() == first  # made again from itself, and nothing changed


def test_source_without_labels(place):
    np.savez('plain.npz', arr_0=np.zeros([3, 8, 8, 3], np.uint8))
    result = run('npz', '--source=plain.npz')
    assert result.exit_code == 0 and 'no labels' in result.output
    assert (place / 'data/true_data.npz').exists() and not (place / 'data/true_data_label.npz').exists()
    run('zip', '--source=plain.npz', '--dest=plain.zip')
    with zipfile.ZipFile('plain.zip') as archive:
        assert json.loads(archive.read('dataset.json')) == dict(labels=None)


def test_folder_of_classes(place):
    for name, value in (('cat', 10), ('dog', 20)):
        (place / 'photos' / name).mkdir(parents=True)
        for index in range(2):
            PIL.Image.new('RGB', (8, 8), (value, index, 0)).save(place / 'photos' / name / f'{index}.png')
    run('npz', '--source=photos', '--name=pets', '--outdir=d')
    labelled = loaded('d/pets_label.npz')
    np.testing.assert_array_equal(labelled['label'], [0, 0, 1, 1])
    np.testing.assert_array_equal(labelled['samples'][:, 0, 0, 0], [10, 10, 20, 20])


def test_statistics(place, source, monkeypatch):
    net = goldens.recipe_(FeatureNet(widths=(8, 12), blocks=(1, 1))).eval()
    save_feature_net('features.safetensors', net)
    monkeypatch.setattr(demo, 'DEMO_FEATURES', place / 'features.safetensors')
    result = run('stats', '--source=source.npz', '--dest=stats/s.npz', '--features=10', '--batch=7')
    assert result.exit_code == 0, result.output
    made = load_reference('stats/s.npz')
    detector = load_detector('cifar10')
    f = detector(torch.from_numpy(source['samples']).permute(0, 3, 1, 2)).double()
    np.testing.assert_allclose(made.mu, f.mean(0), rtol=1e-5)
    np.testing.assert_allclose(made.sigma, np.cov(f, rowvar=False), rtol=1e-3, atol=1e-8)
    np.testing.assert_allclose(made.features, f[sample_positions(24, 10)], rtol=2e-3, atol=1e-6)
    assert (made.detector, made.fingerprint, made.count, made.source) == ('cifar10', detector.fingerprint, 24, 'source')
    assert made.check(detector) == ''


def test_cifar10_is_downloaded_once(place, monkeypatch):
    import torchvision

    calls = []

    class Fake:
        def __init__(self, root, train, download):
            calls.append((train, download))
            self.data, self.targets = np.zeros([4, 32, 32, 3], np.uint8), [3, 1, 2, 0]

    monkeypatch.setattr(torchvision.datasets, 'CIFAR10', Fake)
    for _ in range(2):
        assert run('npz', '--source=cifar10', '--max_images=3').exit_code == 0
    assert run('zip', '--source=cifar10-test', '--dest=t.zip').exit_code == 0
    assert calls == [(True, True), (False, True)]
    assert len(open_source('data/true_data.npz')) == 3


def test_one_rank_downloads_before_the_others(place, monkeypatch):
    """Images and weights: all ranks would write into the same files."""
    save_feature_net('f.safetensors', FeatureNet(widths=(8, 12), blocks=(1, 1)))
    calls = watch_rank0_first(monkeypatch, dataset_tool, download_cifar10=lambda **kwargs: 'source.npz',
                              load_detector=dataset_tool.load_detector)
    result = run('stats', '--source=cifar10', '--dest=s.npz', '--detector_ckpt=f.safetensors')
    assert result.exit_code == 0, result.output
    assert sorted(calls) == [('download_cifar10', True), ('load_detector', True)]


@pytest.mark.parametrize('args, parts', [
    (['npz', '--source=nowhere'], ['--source', 'nowhere does not exist']),
    (['npz', '--source=text.zip'], ['--source', 'text.zip']),
    (['zip', '--source=source.npz', '--dest=text.zip/a.zip'], ['--dest']),
    (['npz', '--source=source.npz', '--outdir=text.zip'], ['--outdir']),
    (['stats', '--source=source.npz', '--dest=s.npz', '--detector_ckpt=none.safetensors'], ['--detector', 'none']),
    (['stats', '--source=big.npz', '--dest=s.npz', '--detector_ckpt=f.safetensors'], ['--source', '[N, 3, 32, 32]']),
    (['stats', '--source=source.npz', '--dest=s.npz', '--detector=nvidia'], ['--detector', '--allow_code']),
])
def test_bad_input(place, args, parts):
    (place / 'text.zip').write_text('no zip')
    save_feature_net('f.safetensors', FeatureNet(widths=(8, 12), blocks=(1, 1)))
    np.savez('big.npz', samples=np.zeros([4, 64, 64, 3], np.uint8))
    before = sorted(place.rglob('*'))
    result = run(*args)
    assert result.exit_code == 1, result.output
    error = [line for line in result.output.splitlines() if line.startswith('Error')]
    assert len(error) == 1
    for part in parts:
        assert part in error[0]
    assert sorted(place.rglob('*')) == before


def test_no_network_is_one_line(place, monkeypatch):
    import torchvision

    def refuse(*args, **kwargs):
        raise RuntimeError('no route to host')

    monkeypatch.setattr(torchvision.datasets, 'CIFAR10', refuse)
    result = run('npz', '--source=cifar10')
    assert result.exit_code == 1 and '--source: CIFAR-10 could not be downloaded (no route to host)' in result.output
