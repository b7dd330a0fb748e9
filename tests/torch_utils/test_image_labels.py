"""Which images a place has and which class each has: the same in folders and zips, for training and for measuring."""

import io
import json
import os
import zipfile

import numpy as np
import PIL.Image
import pytest

from metrics.sources import open_source
from torch_utils.image_labels import show_classes
from torch_utils.image_source import open_images
from training.data import ImageData


def png(value, **kwargs):
    buffer = io.BytesIO()
    PIL.Image.new('RGB', (4, 4), (value, value, value)).save(buffer, kwargs.pop('format', 'PNG'), **kwargs)
    return buffer.getvalue()


def place(tmp_path, kind, blobs):
    """A folder or a zip of files by name; a list of names: the k-th is an image of brightness k."""
    if not isinstance(blobs, dict):
        blobs = {name: png(index) for index, name in enumerate(blobs)}
    path = tmp_path / ('set' if kind == 'folder' else 'set.zip')
    if kind == 'folder':
        for name, blob in blobs.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(blob)
    else:
        with zipfile.ZipFile(path, 'w') as archive:
            for name, blob in blobs.items():
                archive.writestr(name, blob)
    return path


def found(path):
    """(brightness, label) of each image, which both readers find; labels are None without any."""
    data, source = ImageData(path, quiet=True), open_source(path)
    measured = np.concatenate(list(source.blocks(0, len(source))))
    np.testing.assert_array_equal(data.images.permute(0, 2, 3, 1), measured)
    labels = [None] * len(data) if data.labels is None else data.labels.tolist()
    return list(zip(measured[:, 0, 0, 0].tolist(), labels))


both = pytest.mark.parametrize('kind', ['folder', 'zip'])

#----------------------------------------------------------------------------
# Classes.

@both
@pytest.mark.parametrize('folders, order', [
    ([str(i) for i in range(12)], [str(i) for i in range(12)]),
    (['00002', '00000', '00010'], ['00000', '00002', '00010']),
    (['3', '20', '100'], ['3', '20', '100']),
    (['class10', 'class9'], ['class10', 'class9']),  # not integers: as in torchvision's ImageFolder
    (['cat', '1', '02'], ['02', '1', 'cat']),
])
def test_folders_are_classes(tmp_path, kind, folders, order):
    names = [f'{folder}/{i}.png' for folder in folders for i in range(2)]
    path = place(tmp_path, kind, names)
    expected = {index: order.index(name.split('/')[0]) for index, name in enumerate(names)}
    assert dict(found(path)) == expected
    data = ImageData(path, quiet=True)
    assert data.classes == [[index, name, 2] for index, name in enumerate(order)] and data.num_classes == len(order)


@both
def test_common_folders_are_looked_through(tmp_path, kind):
    path = place(tmp_path, kind, ['set/inner/cat/0.png', 'set/inner/ant/0.png', 'set/inner/ant/deep/1.png'])
    assert dict(found(path)) == {0: 1, 1: 0, 2: 0}


@both
def test_labels_below_a_common_folder(tmp_path, kind):
    text = json.dumps(dict(labels=[['b.png', 1], ['a.png', 7]])).encode()
    path = place(tmp_path, kind, {'outer/a.png': png(0), 'outer/b.png': png(1), 'outer/dataset.json': text})
    assert dict(found(path)) == {0: 7, 1: 1}


@both
@pytest.mark.parametrize('names, why', [
    (['00000/img00000000.png', '00000/img00000001.png', '00001/img00000002.png'], 'one list'),  # EDM
    (['00000/00000.png', '00000/00999.png', '01000/01000.png'], 'one list'),  # FFHQ
    (['a.png', 'b.png'], ''),
    (['one/a.png', 'one/b.png'], ''),
    (['cat/a.png', 'dog/b.png', 'stray.png'], 'stray.png lies beside the folders cat, dog'),
    (['train/cat/a.png', 'val/cat/b.png'], 'name one of them as the source'),
])
def test_what_is_no_class(tmp_path, kind, names, why, capsys):
    path = place(tmp_path, kind, names)
    assert dict(found(path)) == dict.fromkeys(range(len(names)))
    capsys.readouterr()
    data = ImageData(path)
    assert why in data.why_no_labels and bool(why) == bool(data.why_no_labels)
    assert data.why_no_labels in capsys.readouterr().out


@both
@pytest.mark.parametrize('names', [
    ['00000/00000_00000.png', '00000/00000_00001.png', '00001/00000_00000.png'],  # GTSRB
    ['00000/img00000000.png', '00001/img00000000.png'], ['00000/0.png', '00001/0.png'], ['00001/0.png', '00002/0.png']])
def test_numbered_classes(tmp_path, kind, names):
    path = place(tmp_path, kind, names)
    folders = sorted({name.split('/')[0] for name in names})
    assert dict(found(path)) == {i: folders.index(name.split('/')[0]) for i, name in enumerate(names)}


def test_classes_are_shown(tmp_path, capsys):
    ImageData(place(tmp_path, 'folder', ['10/a.png', '2/a.png', '2/b.png']))
    assert 'set: 2 classes: 0 2 (2), 1 10 (1)' in capsys.readouterr().out
    text = show_classes([[i, f'c{i}', 1] for i in range(1000)])
    assert text.startswith('1000 classes: 0 c0 (1), ') and text.endswith('19 c19 (1), ...')


@both
def test_names_of_classes_come_back(tmp_path, kind):
    text = json.dumps(dict(labels=[['a.png', 3], ['b.png', 3]], classes=[[2, 'ant', 9], [3, 'bee', 9]])).encode()
    path = place(tmp_path, kind, {'a.png': png(0), 'b.png': png(1), 'dataset.json': text})
    data = ImageData(path, quiet=True)
    assert data.classes == [[2, 'ant', 0], [3, 'bee', 2]] and data.num_classes == 4
    assert ImageData(path, max_images=1, quiet=True).num_classes == 4


def test_labels_of_guided_diffusion(tmp_path):
    images = np.arange(3 * 48, dtype=np.uint8).reshape(3, 4, 4, 3)
    np.savez(tmp_path / 'a.npz', images, np.array([7, 0, 2]))
    assert ImageData(tmp_path / 'a.npz', quiet=True).labels.tolist() == [7, 0, 2]
    np.savez(tmp_path / 'b.npz', images, images)
    assert ImageData(tmp_path / 'b.npz', quiet=True).labels is None
    np.savez(tmp_path / 'c.npz', images, np.arange(4))
    with pytest.raises(ValueError, match='3 images but 4 labels'):
        ImageData(tmp_path / 'c.npz', quiet=True)


@pytest.mark.parametrize('text, message', [
    ('{"labels": [["a.png", 0], ["b.png", 1], ["a.png", 2]]}', 'two labels for a.png: 0 and 2'),
    ('{"labels": {"a.png": 0, "b.png": 1, "a.png": 2}}', 'two values for a.png'),
    ('{"labels": [["a.png", 0], ["b.png", [0, 1]]]}', 'labels of different lengths'),
    ('{"labels": [["a.png", [0, 1]], ["b.png", [0, 1, 0]]]}', 'labels of different lengths'),
    ('{"labels": [["a.png", "cat"], ["b.png", 1]]}', 'a label that is not a class: cat'),
    ('{"labels": [["a.png", true], ["b.png", 1]]}', 'a label that is not a class: True'),
    ('{"labels": [["a.png", 1.5], ["b.png", 1]]}', 'expected class indices'),
    ('{"labels": [["a.png", -1], ["b.png", 1]]}', 'expected class indices'),
    ('{"labels": [["a.png", 1000000000], ["b.png", 1]]}', 'a class 1000000000; at most 100,000'),
    ('{"labels": [["a.png", 1' + '0' * 30 + '], ["b.png", 1]]}', 'expected class indices|beyond 64-bit integers'),
    ('[' * 100000, 'does not hold labels'),
    ('{"labels": 3}', 'does not hold labels'),
    ('{"labels": [["a.png"]]}', 'does not hold labels'),
])
def test_labels_that_are_refused(tmp_path, text, message):
    path = place(tmp_path, 'folder', {'a.png': png(0), 'b.png': png(1), 'dataset.json': text.encode()})
    with pytest.raises(ValueError, match=message) as caught:
        ImageData(path, quiet=True)
    assert 'dataset.json' in str(caught.value) and len(str(caught.value)) < 400 and '\n' not in str(caught.value)


def test_labels_of_images_that_are_not_there(tmp_path, capsys):
    text = json.dumps(dict(labels=[['a.png', 0], ['gone.png', 1], ['gone2.png', 1]])).encode()
    assert ImageData(place(tmp_path, 'zip', {'a.png': png(0), 'dataset.json': text})).labels.tolist() == [0]
    assert 'labels 2 images that are missing' in capsys.readouterr().out


def test_labels_from_names(tmp_path):
    path = place(tmp_path, 'folder', ['x/10_a.png', 'y/2_b.png', 'y/2_c_d.png'])
    source = open_images(path, 'names')
    assert (source.labels.indices.tolist(), source.labels.names) == ([1, 0, 0], {0: '2', 1: '10'})
    assert open_images(path, 'none').labels.indices is None
    with pytest.raises(ValueError, match='plain.png does not have the form <class>_'):
        open_images(place(tmp_path, 'zip', ['1_a.png', 'plain.png']), 'names')

#----------------------------------------------------------------------------
# Which files.

@both
def test_hidden_and_system_files(tmp_path, kind):
    names = ['cat/a.png', 'dog/a.png']
    hidden = ['.ipynb_checkpoints/a.png', 'cat/.ipynb_checkpoints/a-checkpoint.png', '__MACOSX/cat/._a.png',
              'cat/._a.png', '.DS_Store', 'cat/@eaDir/a.png', 'dog/Thumbs.db', '.git/objects/a.png', '.stray.png']
    path = place(tmp_path, kind, {name: png(9) for name in hidden} | {name: png(i) for i, name in enumerate(names)})
    assert found(path) == [(0, 0), (1, 1)]
    assert open_images(path).notes == []


def test_links(tmp_path):
    """Class folders elsewhere are followed; links that lead back are not; nothing counts twice."""
    for name, value in (('store/c', 0), ('set/ant', 1)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / 'a.png').write_bytes(png(value))
    (tmp_path / 'set/bee').symlink_to(tmp_path / 'store/c')
    for name, target in (('set/ant/up', '..'), ('set/top', '/'), ('set/self', 'self'), ('store/c/home', '../../set')):
        (tmp_path / name).symlink_to(target)
    assert found(tmp_path / 'set') == [(1, 0), (0, 1)]
    (tmp_path / 'set/cat').symlink_to('bee')
    with pytest.raises(ValueError, match='are one folder, by a link') as caught:
        ImageData(tmp_path / 'set', quiet=True)
    assert 'cat' in str(caught.value) and 'bee' in str(caught.value)


def test_a_folder_that_may_not_be_read(tmp_path):
    path = place(tmp_path, 'folder', ['ant/a.png', 'bee/a.png'])
    if os.geteuid() == 0:
        pytest.skip('root reads everything')
    (path / 'bee').chmod(0)
    with pytest.raises(OSError, match='bee'):
        ImageData(path, quiet=True)


@both
def test_pictures_of_shards_are_no_samples_but_foreign_names_are(tmp_path, kind):
    assert found(place(tmp_path, kind, ['sample_0.png', 'sample_1.png'])) == [(0, None), (1, None)]
    blobs = {'run/sample_00000000.png': png(7), 'run/samples_00000000.npz': b'', 'run/a.png': png(1)}
    (tmp_path / 'inner').mkdir()
    assert found(place(tmp_path / 'inner', kind, blobs)) == [(1, None)]


@both
def test_what_pillow_reads(tmp_path, kind):
    blobs = {f'{index}{suffix}': png(100 + index, format=format, **kwargs) for index, (suffix, format, kwargs) in
             enumerate([('.png', 'PNG', {}), ('.tif', 'TIFF', {}), ('.ppm', 'PPM', {}), ('.gif', 'GIF', {}),
                        ('.bmp', 'BMP', {}), ('.webp', 'WEBP', dict(lossless=True)), ('.TIFF', 'TIFF', {}),
                        ('.jpg', 'PNG', {})])}
    assert [value for value, _ in found(place(tmp_path, kind, blobs))] == [100 + i for i in range(8)]
    (tmp_path / 'inner').mkdir()
    jfif = place(tmp_path / 'inner', kind, {'a.jfif': png(0, format='JPEG', quality=95)})
    assert found(jfif) == [(0, None)]


@both
def test_what_is_skipped_is_named(tmp_path, kind, capsys):
    path = place(tmp_path, kind, {'a.png': png(0), 'b.heic': b'', 'c.HEIC': b'', 'notes.txt': b'', 'options.json': b''})
    ImageData(path)
    assert '3 files are not images and are skipped (2 .heic, 1 .txt; first b.heic)' in capsys.readouterr().out
    open_source(path)
    assert '3 files are not images and are skipped (2 .heic, 1 .txt; first b.heic)' in capsys.readouterr().out


def stored(orientation):
    """A JPEG of 16 x 8 pixels, its left half bright, with an orientation."""
    pixels = np.zeros([8, 16, 3], np.uint8)
    pixels[:, :8] = 255
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, 'JPEG', exif=exif, quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize('orientation, side', [(1, 'left'), (2, 'right'), (3, 'right'), (4, 'left'), (5, 'top'),
                                               (6, 'top'), (7, 'bottom'), (8, 'bottom')])
def test_photos_are_turned(tmp_path, orientation, side):
    """Where the bright half ends up by the EXIF standard: 6 means a turn by 90 degrees clockwise."""
    path = place(tmp_path, 'folder', {'a.jpg': stored(orientation)})
    source = open_source(path)
    measured = next(iter(source.blocks(0, 1)))[0]  # [H, W, 3]
    decoded = open_images(path).images.decode(0)
    np.testing.assert_array_equal(measured, decoded)
    assert decoded.shape[:2] == ((8, 16) if side in ('left', 'right') else (16, 8))
    half = dict(left=decoded[:, :8], right=decoded[:, 8:], top=decoded[:8], bottom=decoded[8:])[side]
    assert half.min() > 250 and decoded.mean() < 130


def test_kinds_of_pixels(tmp_path):
    """Grey stays grey, black and white becomes grey, palettes become RGB, all kinds of transparency RGBA."""
    rgba = PIL.Image.new('RGBA', (2, 2), (9, 8, 7, 100))
    palette = PIL.Image.new('RGB', (2, 2), (9, 8, 7)).quantize()
    for name, image, kwargs in [('l', PIL.Image.new('L', (2, 2), 5), {}), ('one', PIL.Image.new('1', (2, 2), 1), {}),
                                ('p', palette, {}), ('pa', palette, dict(transparency=0)), ('rgba', rgba, {}),
                                ('la', PIL.Image.new('LA', (2, 2), (5, 100)), {})]:
        image.save(tmp_path / f'{name}.png', **kwargs)
    source = open_images(tmp_path).images
    pixels = {name: source.decode(i)[0, 0].tolist() for i, name in enumerate(source.names)}
    assert pixels == {'l.png': [5], 'one.png': [255], 'p.png': [9, 8, 7], 'pa.png': [9, 8, 7, 0],
                      'rgba.png': [9, 8, 7, 100], 'la.png': [5, 5, 5, 100]}
    (tmp_path / 'clear').mkdir()
    rgba.save(tmp_path / 'clear/a.png')
    with pytest.raises(ValueError, match='a.png in .* is partly transparent.*--rgb=white'):
        list(open_source(tmp_path / 'clear').blocks(0, 1))
