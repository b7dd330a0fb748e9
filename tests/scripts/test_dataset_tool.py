"""dataset_tool.py: every output holds the images of its source, and reads back through the project."""

import gzip
import io
import json
import struct
import tarfile
import zipfile

import goldens
import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from script_runs import watch_rank0_first

import dataset_tool
from commands import images
from dnnlib import demo
from metrics.detectors import load_detector
from metrics.feature_net import FeatureNet, save_feature_net
from metrics.measure import sample_positions
from metrics.reference import load_reference
from metrics.sources import open_source
from torch_utils.image_transforms import make_transform
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


@pytest.mark.parametrize('module, name', [(images, 'download_cifar10'), (dataset_tool, 'load_detector')])
def test_one_rank_downloads_before_the_others(place, monkeypatch, module, name):
    """Images and weights: all ranks would write into the same files."""
    save_feature_net('f.safetensors', FeatureNet(widths=(8, 12), blocks=(1, 1)))
    monkeypatch.setattr(images, 'download_cifar10', lambda **kwargs: 'source.npz')
    calls = watch_rank0_first(monkeypatch, module, **{name: getattr(module, name)})
    result = run('stats', '--source=cifar10', '--dest=s.npz', '--detector_ckpt=f.safetensors')
    assert result.exit_code == 0, result.output
    assert calls == [(name, True)]


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

#----------------------------------------------------------------------------
# Conversions as in EDM.

def photos(folder, files):
    """Image files by name: arrays uint8 [H, W] or [H, W, C]."""
    for name, pixels in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels).save(folder / name)


def in_zip(path):
    """(images [H, W, C] by name, dataset.json) of an EDM-style zip."""
    with zipfile.ZipFile(path) as archive:
        text = json.loads(archive.read('dataset.json'))
        return {name: np.atleast_3d(np.asarray(PIL.Image.open(archive.open(name)))) for name in archive.namelist()
                if name != 'dataset.json'}, text


def pixels(*shape):
    return np.random.RandomState(1).randint(256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize('command', [[], ['convert'], ['zip']])
def test_the_published_commands(place, command):
    """EDM's has no subcommand, EDM2's is called convert."""
    files = {'ant/a.png': pixels(12, 10, 3), 'bee/b.png': pixels(9, 9), 'bee/c.png': pixels(8, 30, 3)}
    photos(place / 'raw', files)
    result = run(*command, '--source=raw', '--dest=datasets/x.zip', '--resolution=8x8', '--transform=center-crop')
    assert result.exit_code == 0, result.output
    images, text = in_zip('datasets/x.zip')
    crop = make_transform('center-crop', (8, 8))
    assert list(images) == [f'00000/img0000000{i}.png' for i in range(3)]
    for found, raw in zip(images.values(), files.values()):
        np.testing.assert_array_equal(found, crop(np.atleast_3d(raw)))
    assert text == dict(labels=[[name, label] for name, label in zip(images, [0, 1, 1])],
                        classes=[[0, 'ant', 1], [1, 'bee', 2]])
    assert 'raw: 2 classes: 0 ant (1), 1 bee (2)' in result.output and 'x.zip: 3 images, 2 classes' in result.output


def test_options_of_conversions(place):
    photos(place / 'raw', {f'{i}.png': pixels(12 + i, 12) for i in range(5)})
    run('zip', '--source=raw', '--dest=a.zip', '--resolution=4,4', '--max-images=3')
    images, text = in_zip('a.zip')
    assert len(images) == 3 and text == dict(labels=None)  # the first ones, as in EDM
    np.testing.assert_array_equal(images['00000/img00000002.png'], make_transform(None, (4, 4))(pixels(14, 12, 1)))
    result = run('zip', '--source=raw', '--dest=b.zip', '--resolution=12x9', '--transform=center-crop-wide')
    images, _ = in_zip('b.zip')
    assert len(images) == 5 and all(image.shape == (12, 12, 3) for image in images.values()), result.output
    result = run('zip', '--source=raw', '--dest=c.zip', '--resolution=12x13', '--transform=center-crop-wide')
    assert result.exit_code == 1 and '--transform' in result.output
    result = run('zip', '--source=raw', '--dest=d.zip', '--resolution=12x12', '--transform=center-crop-wide')
    images, _ = in_zip('d.zip')  # as published, an image that is left out leaves its number out
    assert len(images) == 5
    photos(place / 'raw', {'1.png': pixels(12, 11)})
    result = run('zip', '--source=raw', '--dest=e.zip', '--resolution=12x12', '--transform=center-crop-wide')
    assert list(in_zip('e.zip')[0]) == [f'00000/img0000000{i}.png' for i in (0, 2, 3, 4)]
    assert '4 images, no labels; 1 are smaller than --resolution and left out' in result.output


def test_colours_on_request(place):
    photos(place / 'raw', {'a.png': pixels(8, 8), 'b.png': np.array([[[9, 8, 7, 0]] * 8] * 8, np.uint8),
                           'c.png': pixels(8, 8, 3)})
    result = run('zip', '--source=raw', '--dest=a.zip')
    assert result.exit_code == 1 and 'mixed image shapes' in result.output and '--rgb=white' in result.output
    assert run('zip', '--source=raw', '--dest=a.zip', '--rgb=#010203').exit_code == 0
    images = list(in_zip('a.zip')[0].values())
    np.testing.assert_array_equal(images[0], pixels(8, 8, 1).repeat(3, axis=2))
    assert (images[1] == [1, 2, 3]).all() and np.array_equal(images[2], pixels(8, 8, 3))
    result = run('zip', '--source=raw', '--dest=a.zip', '--rgb=colour')
    assert result.exit_code == 1 and 'Error: --rgb' in result.output


def test_a_folder_as_destination(place):
    run('zip', '--source=source.npz', '--dest=out/a.zip')
    result = run('zip', '--source=source.npz', '--dest=out/a')
    assert result.exit_code == 0, result.output
    a, b = ImageData('out/a', quiet=True), ImageData('out/a.zip', quiet=True)
    assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    before = sorted(place.rglob('*'))
    result = run('zip', '--source=source.npz', '--dest=out/a')
    assert result.exit_code == 1 and '--dest: out/a is not an empty folder' in result.output
    result = run('zip', '--source=source.npz', '--dest=out/b', '--resolution=8x4')
    assert result.exit_code == 1 and 'not a square' in result.output and sorted(place.rglob('*')) == before


@pytest.mark.parametrize('command', [['zip', '--dest=x.zip', '--labels=names'],
                                     ['npz', '--outdir=x', '--labels=names']])
def test_labels_from_names(place, command):
    photos(place / 'raw', {'10_a.png': pixels(4, 4, 3), '9_a.png': pixels(4, 4, 3), '9_b.png': pixels(4, 4, 3)})
    assert run(*command, '--source=raw').exit_code == 0
    data = ImageData('x.zip' if command[0] == 'zip' else 'x/true_data_label.npz', quiet=True)
    assert data.labels.tolist() == [0, 0, 1] and data.classes == [[0, '9', 2], [1, '10', 1]]


def test_names_of_classes_lie_beside_an_npz(place):
    photos(place / 'raw', {'cat/a.png': pixels(4, 4, 3), 'ant/a.png': pixels(4, 4, 3)})
    run('npz', '--source=raw', '--outdir=.')
    with open('true_data_label.json') as file:
        assert json.load(file) == dict(classes=[[0, 'ant', 1], [1, 'cat', 1]])
    assert ImageData('true_data_label.npz', quiet=True).classes == [[0, 'ant', 1], [1, 'cat', 1]]


def cifar_batch(images, labels):
    """A pickle as Python 2 wrote it: an array [N, 3072] of bytes and its labels."""
    raw = images.transpose(0, 3, 1, 2).tobytes()
    array = (b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I%d\nI3072\ntcnumpy\ndtype\n'
             b'(U\x02u1I0\nI1\ntR(I3\nU\x01|NNNI-1\nI-1\nI0\ntbI00\nT' % len(images))
    return (b'(U\x04data' + array + len(raw).to_bytes(4, 'little') + raw + b'tbsU\x06labels(l'
            + b''.join(b'I%d\na' % label for label in labels) + b's.').replace(b'(U\x04data', b'}U\x04data', 1)


def test_cifar10_as_published(place):
    images = pixels(10, 32, 32, 3)
    with tarfile.open('cifar-10-python.tar.gz', 'w:gz') as archive:
        for batch in range(5):
            blob = cifar_batch(images[2 * batch:2 * batch + 2], [batch, 9])
            info = tarfile.TarInfo(f'cifar-10-batches-py/data_batch_{batch + 1}')
            info.size = len(blob)
            archive.addfile(info, io.BytesIO(blob))
    result = run('--source=cifar-10-python.tar.gz', '--dest=c.zip')
    assert result.exit_code == 0, result.output
    found, text = in_zip('c.zip')
    np.testing.assert_array_equal(list(found.values()), images)
    assert [label for _, label in text['labels']] == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert text['classes'][9] == [9, 'truck', 5]


def test_mnist_as_published(place):
    images, labels = pixels(3, 28, 28), bytes([7, 0, 2])
    with gzip.open('train-images-idx3-ubyte.gz', 'w') as file:
        file.write(struct.pack('>4i', 0x803, 3, 28, 28) + images.tobytes())
    with gzip.open('train-labels-idx1-ubyte.gz', 'w') as file:
        file.write(struct.pack('>2i', 0x801, 3) + labels)
    assert run('--source=train-images-idx3-ubyte.gz', '--dest=m.zip').exit_code == 0
    found, text = in_zip('m.zip')
    expected = np.zeros([3, 32, 32, 1], np.uint8)
    expected[:, 2:30, 2:30, 0] = images
    np.testing.assert_array_equal(list(found.values()), expected)
    assert [label for _, label in text['labels']] == [7, 0, 2]


def test_an_lmdb_is_refused(place):
    (place / 'cat_lmdb').mkdir()
    (place / 'cat_lmdb/data.mdb').write_bytes(b'')
    result = run('--source=cat_lmdb', '--dest=m.zip')
    assert result.exit_code == 1 and 'no images' in result.output and 'data.mdb' in result.output
