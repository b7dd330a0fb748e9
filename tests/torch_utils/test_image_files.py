"""Training and measuring find the same images in the same order in any place."""

import io
import json
import zipfile

import numpy as np
import PIL.Image
import pytest

from metrics.sources import open_source
from torch_utils.image_files import list_images, natural_key
from training.data import ImageData


def images(*values):
    """Images of one colour each: uint8 [N, 4, 4, 3]."""
    return np.array(values, np.uint8)[:, None, None, None].repeat(4, axis=1).repeat(4, axis=2).repeat(3, axis=3)


def png(value):
    buffer = io.BytesIO()
    PIL.Image.fromarray(images(value)[0]).save(buffer, 'PNG')
    return buffer.getvalue()


def measured_blocks(path):
    source = open_source(path)
    return list(source.blocks(0, len(source)))


def read(path):
    """The colours of the images at `path`, which both readers find, and the labels."""
    data = ImageData(path, quiet=True)
    measured = np.concatenate(measured_blocks(path))
    np.testing.assert_array_equal(data.images.permute(0, 2, 3, 1), measured)
    return measured[:, 0, 0, 0].tolist(), None if data.labels is None else data.labels.tolist()


def test_numbers_in_names_are_compared_as_numbers():
    names = ['samples_20044.npz', 'samples_731.npz', 'samples_00000009.npz']
    assert sorted(names, key=natural_key) == names[::-1]
    assert sorted(['1.png', '01.png', 'a.png', '1²3.png'], key=natural_key) == ['01.png', '1.png', '1²3.png', 'a.png']
    assert sorted(['01.png', '1.png'], key=natural_key) == sorted(['1.png', '01.png'], key=natural_key)


def test_shards_in_numeric_order(tmp_path):
    for first in (20044, 731, 9):
        np.savez(tmp_path / f'samples_{first}.npz', samples=images(first % 256, 1), label=[first % 7, 0])
    assert read(tmp_path) == ([9, 1, 731 % 256, 1, 20044 % 256, 1], [2, 0, 731 % 7, 0, 20044 % 7, 0])


def test_files_in_numeric_order(tmp_path):
    """In a folder and in a zip; labels follow their images."""
    blobs = {f'{name}.png': png(name) for name in (10, 100, 9)}
    blobs['dataset.json'] = json.dumps(dict(labels=[['10.png', 1], ['100.png', 2], ['9.png', 0]])).encode()
    (tmp_path / 'folder').mkdir()
    with zipfile.ZipFile(tmp_path / 'set.zip', 'w') as archive:
        for name, blob in blobs.items():
            (tmp_path / 'folder' / name).write_bytes(blob)
            archive.writestr(name, blob)
    for place in ('folder', 'set.zip'):
        assert read(tmp_path / place) == ([9, 10, 100], [0, 1, 2])


def test_class_folders_keep_their_alphabetical_labels(tmp_path):
    for name in (10, 9):
        (tmp_path / f'class{name}').mkdir()
        (tmp_path / f'class{name}/0.png').write_bytes(png(name))
    assert read(tmp_path) == ([9, 10], [1, 0])


@pytest.mark.parametrize('names, first', [
    (['images', 'arr_0', 'samples'], 'samples'), (['images', 'arr_0'], 'arr_0'), (['images', 'other'], 'images')])
def test_of_several_arrays_both_read_the_same(tmp_path, names, first):
    np.savez(tmp_path / 'set.npz', **{name: images(index) for index, name in enumerate(names)})
    assert read(tmp_path / 'set.npz') == ([names.index(first)], None)


def refused(path, *words, error=ValueError):
    """Both readers refuse the place in one line."""
    for reader in (ImageData, measured_blocks):
        with pytest.raises(error) as caught:
            reader(path)
        assert all(word in str(caught.value) for word in words) and '\n' not in str(caught.value)


def test_what_both_refuse(tmp_path):
    refused(tmp_path / 'absent', 'absent does not exist', error=FileNotFoundError)
    with zipfile.ZipFile(tmp_path / 'no_array.npz', 'w') as archive:
        archive.writestr('samples', b'')  # not samples.npy
    refused(tmp_path / 'no_array.npz', 'has no array samples, arr_0, images; it holds none')
    (tmp_path / 'link').mkdir()
    (tmp_path / 'link/0.png').write_bytes(png(0))
    (tmp_path / 'link/1.png').symlink_to('absent.png')  # leaving it out would lose an image
    assert list_images(tmp_path / "link").names == ['0.png', '1.png']
    refused(tmp_path / 'link', '1.png', 'is not a readable image')
