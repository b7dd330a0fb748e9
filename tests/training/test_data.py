"""Reading image data sets, and the order of training."""

import io
import json
import zipfile

import numpy as np
import PIL.Image
import pytest
import torch

from training.data import ImageData, batch_indices

RNG = np.random.RandomState(0)
PIXELS = RNG.randint(256, size=[12, 8, 8, 3], dtype=np.uint8)  # [N, H, W, C]


def png(pixels):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels.squeeze()).save(buffer, 'PNG')
    return buffer.getvalue()


def write_zip(path, pixels, labels=None):
    names = [f'{i // 5:05d}/img{i:08d}.png' for i in range(len(pixels))]
    with zipfile.ZipFile(path, 'w') as z:
        for name, image in reversed(list(zip(names, pixels))):  # the order of the members does not matter
            z.writestr(name, png(image))
        if labels is not None:
            pairs = [[name, label] for name, label in zip(names, labels)]
            z.writestr('dataset.json', json.dumps(dict(labels=pairs[::-1])))
    return path


def assert_pixels(data, pixels=PIXELS):
    assert data.images.dtype == torch.uint8
    np.testing.assert_array_equal(data.images.numpy(), pixels.transpose(0, 3, 1, 2))


def test_edm_zip(tmp_path):
    labels = list(range(10)) + [3, 3]
    data = ImageData(write_zip(tmp_path / 'set.zip', PIXELS, labels))
    assert_pixels(data)
    assert data.labels.tolist() == labels and data.labels.dtype == torch.int64
    assert (data.name, data.channels, data.resolution, data.num_classes, len(data)) == ('set', 3, 8, 10, 12)


def test_zip_without_labels(tmp_path):
    data = ImageData(write_zip(tmp_path / 'set.zip', PIXELS), quiet=True)
    assert data.labels is None and data.num_classes == 0


@pytest.mark.parametrize('channels', [1, 4])
def test_channels(tmp_path, channels):
    pixels = RNG.randint(256, size=[3, 8, 8, channels], dtype=np.uint8)
    assert_pixels(ImageData(write_zip(tmp_path / 'set.zip', pixels), channels=channels), pixels)


def test_class_folders(tmp_path):
    for i, pixels in enumerate(PIXELS):
        folder = tmp_path / ['cat', 'ant', 'dog'][i % 3]
        folder.mkdir(exist_ok=True)
        (folder / f'{i:02d}.png').write_bytes(png(pixels))
    data = ImageData(tmp_path)
    order = sorted(range(12), key=lambda i: (['cat', 'ant', 'dog'][i % 3], i))
    assert_pixels(data, PIXELS[order])
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4  # ant, cat, dog


def test_number_folders_are_not_classes(tmp_path):
    for i, pixels in enumerate(PIXELS):
        folder = tmp_path / f'{i // 6:05d}'
        folder.mkdir(exist_ok=True)
        (folder / f'img{i:08d}.png').write_bytes(png(pixels))
    data = ImageData(tmp_path)
    assert_pixels(data)
    assert data.labels is None


def test_flat_folder_with_json(tmp_path):
    for i, pixels in enumerate(PIXELS):
        (tmp_path / f'{i:02d}.png').write_bytes(png(pixels))
    (tmp_path / 'dataset.json').write_text(json.dumps(dict(labels={f'{i:02d}.png': i % 2 for i in range(12)})))
    assert ImageData(tmp_path).labels.tolist() == [0, 1] * 6


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    save(tmp_path / 'true_data.npz', PIXELS)
    assert_pixels(ImageData(tmp_path / 'true_data.npz'))
    one_hot = np.eye(5, dtype=np.float32)[np.arange(12) % 5]
    save(tmp_path / 'labelled.npz', samples=PIXELS, label=one_hot)
    data = ImageData(tmp_path / 'labelled.npz')
    assert_pixels(data)
    assert data.labels.tolist() == [i % 5 for i in range(12)]
    save(tmp_path / 'column.npz', samples=PIXELS, label=np.arange(12)[:, None] % 5)
    assert ImageData(tmp_path / 'column.npz').labels.tolist() == [i % 5 for i in range(12)]
    save(tmp_path / 'one.npz', samples=PIXELS, label=np.ones([12, 1], dtype=np.float32))  # one-hot, of one class
    assert ImageData(tmp_path / 'one.npz').labels.tolist() == [0] * 12
    save(tmp_path / 'floats.npz', samples=PIXELS, label=np.arange(12.0)[:, None])
    with pytest.raises(ValueError, match='expected class indices'):
        ImageData(tmp_path / 'floats.npz')


def test_shards(tmp_path):
    for begin, end in ((0, 5), (5, 6), (6, 12)):
        np.savez_compressed(tmp_path / f'samples_{begin:08d}.npz', samples=PIXELS[begin:end],
                            label=np.eye(12, dtype=np.float32)[begin:end])
    data = ImageData(tmp_path)
    assert_pixels(data)
    assert data.labels.tolist() == list(range(12))


def test_long_arrays_are_streamed(tmp_path):
    pixels = RNG.randint(256, size=[2500, 2, 2, 1], dtype=np.uint8)
    np.savez(tmp_path / 'long.npz', pixels)
    assert_pixels(ImageData(tmp_path / 'long.npz'), pixels)
    some = ImageData(tmp_path / 'long.npz', max_images=1100)
    index = np.sort(np.random.RandomState(0).permutation(2500)[:1100])
    assert_pixels(some, pixels[index])


def test_subset_is_the_same_from_every_source(tmp_path):
    labels = list(range(12))
    write_zip(tmp_path / 'set.zip', PIXELS, labels)
    np.savez(tmp_path / 'set.npz', samples=PIXELS, label=np.array(labels))
    a, b = (ImageData(tmp_path / name, max_images=7) for name in ('set.zip', 'set.npz'))
    assert len(a) == 7 and torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    assert len(ImageData(tmp_path / 'set.zip', max_images=100)) == 12


@pytest.mark.parametrize('name', ['set.zip', 'set.npz'])
def test_a_subset_has_the_classes_of_the_whole(tmp_path, name):
    labels = np.arange(12)[::-1]
    write_zip(tmp_path / 'set.zip', PIXELS, labels.tolist())
    np.savez(tmp_path / 'set.npz', samples=PIXELS, label=labels)
    data = ImageData(tmp_path / name, max_images=2, quiet=True)
    assert len(data) == 2 and data.labels.max() < 11 and data.num_classes == 12


def bad_zip(path):
    write_zip(path / 'x.zip', PIXELS[:3], [0, 1])
    return path / 'x.zip'


def mixed(path):
    with zipfile.ZipFile(path / 'x.zip', 'w') as z:
        z.writestr('a.png', png(PIXELS[0]))
        z.writestr('b.png', png(PIXELS[1][:4, :4]))
    return path / 'x.zip'


def oblong(path):
    np.savez(path / 'x.npz', PIXELS[:, :4])
    return path / 'x.npz'


def no_array(path):
    np.savez(path / 'x.npz', mu=np.zeros(3), sigma=np.eye(3))
    return path / 'x.npz'


def floats(path):
    np.savez(path / 'x.npz', PIXELS / 255.0)
    return path / 'x.npz'


def short_labels(path):
    np.savez(path / 'x.npz', samples=PIXELS, label=np.arange(5))
    return path / 'x.npz'


def odd_labels(path):
    np.savez(path / 'x.npz', samples=PIXELS, label=np.full([12, 3], 0.3))
    return path / 'x.npz'


def mixed_shards(path):
    np.savez(path / 'samples_0.npz', samples=PIXELS)
    np.savez(path / 'samples_1.npz', samples=PIXELS[:, :4, :4])
    return path


def half_labelled(path):
    np.savez(path / 'samples_0.npz', samples=PIXELS)
    np.savez(path / 'samples_1.npz', samples=PIXELS, label=np.arange(12))
    return path


def truncated(path):
    np.savez(path / 'x.npz', PIXELS)
    (path / 'x.npz').write_bytes((path / 'x.npz').read_bytes()[:500])
    return path / 'x.npz'


def broken_image(path):
    (path / 'a.png').write_bytes(png(PIXELS[0])[:100])
    return path


def no_zip(path):
    (path / 'x.zip').write_bytes(b'not a zip')
    return path / 'x.zip'


def damaged_member(path, member, save=np.savez_compressed):
    """An npz whose `member` is damaged in the middle, beyond its header."""
    samples = np.arange(600 * 24).view(np.uint8).reshape(600, 8, 8, 3)
    save(path / 'x.npz', samples=samples, label=np.arange(600))
    with zipfile.ZipFile(path / 'x.npz') as z:
        info = z.getinfo(member)
    blob = bytearray((path / 'x.npz').read_bytes())
    middle = info.header_offset + 30 + len(member) + 20 + info.compress_size // 2  # 20: numpy's extra field
    blob[middle:middle + 40] = b'\xff' * 40
    (path / 'x.npz').write_bytes(blob)
    return path / 'x.npz'


def damaged_pixels(path):
    return damaged_member(path, 'samples.npy')


def damaged_labels(path):
    return damaged_member(path, 'label.npy')


def stored_labels(path):
    return damaged_member(path, 'label.npy', np.savez)


def no_array_header(path):
    with zipfile.ZipFile(path / 'x.npz', 'w') as z:
        z.writestr('arr_0.npy', b'no array at all')
    return path / 'x.npz'


def scalar_label(path):
    np.savez(path / 'x.npz', samples=PIXELS, label=np.int64(3))
    return path / 'x.npz'


def encrypted(path, name='0.png'):
    """The flag is enough to be refused."""
    with zipfile.ZipFile(path / 'x.zip', 'w') as z:
        z.writestr('0.png', png(PIXELS[0]))
        z.writestr('dataset.json', '{}')
    blob = bytearray((path / 'x.zip').read_bytes())
    entry = blob.rindex(name.encode())
    blob[entry - 46 + 8] |= 1  # in the central directory
    blob[blob.index(name.encode()) - 30 + 6] |= 1
    (path / 'x.zip').write_bytes(blob)
    return path / 'x.zip'


def encrypted_labels(path):
    return encrypted(path, 'dataset.json')


def damaged_zip(path):
    write_zip(path / 'x.zip', PIXELS)
    blob = bytearray((path / 'x.zip').read_bytes())
    start = blob.index(b'PK\x01\x02')
    blob[start:start + 4] = bytes(4)
    (path / 'x.zip').write_bytes(blob)
    return path / 'x.zip'


def labels_of_another_kind(path):
    write_zip(path / 'x.zip', PIXELS[:1])
    with zipfile.ZipFile(path / 'x.zip', 'a') as z:
        z.writestr('dataset.json', '[1, 2]')
    return path / 'x.zip'


def cut_labels(path):
    (path / 'a.png').write_bytes(png(PIXELS[0]))
    (path / 'dataset.json').write_text('{"labels": [["a.png"')
    return path


def sixteen_bits(path):
    PIL.Image.fromarray(np.full([8, 8], 300, np.uint16)).save(path / 'a.png')
    return path


def object_labels(path):
    np.savez(path / 'x.npz', samples=PIXELS, label=np.array([dict()] * 12, dtype=object))
    return path / 'x.npz'


def objects(path):
    np.savez(path / 'x.npz', samples=np.array([dict()], dtype=object))
    return path / 'x.npz'


@pytest.mark.parametrize('make, message', [
    (bad_zip, 'no label for 1 images'), (mixed, 'mixed image shapes.*a.png.*b.png'), (oblong, '4x8 pixels.*square'),
    (no_array, r'no array.*mu'), (floats, 'float64.*expected uint8'), (short_labels, '12 images but 5 labels'),
    (odd_labels, 'class indices'), (mixed_shards, 'mixed image shapes'),
    (half_labelled, 'only some shards have labels'),
    (truncated, 'not a complete'), (broken_image, 'a.png is not a readable image'), (no_zip, 'neither a folder nor'),
    (damaged_pixels, 'x.npz is damaged'), (damaged_labels, 'x.npz is not a complete'),
    (stored_labels, 'x.npz is damaged'),
    (no_array_header, 'x.npz is not a complete'), (scalar_label, r'x.npz: `label` is int64 \[\]'),
    (object_labels, 'x.npz: `label` holds objects'), (encrypted, r'x.zip is encrypted \(0.png\)'),
    (encrypted_labels, r'x.zip is encrypted \(dataset.json\)'),
    (damaged_zip, 'x.zip is not a complete'),
    (labels_of_another_kind, 'x.zip: dataset.json does not hold labels'), (cut_labels, 'dataset.json does not hold'),
    (sixteen_bits, 'a.png has 16 or 32 bits per pixel .*8 bits'),
    (objects, 'holds objects'), (lambda path: path, 'no images')])
def test_bad_sources_give_one_line(tmp_path, make, message):
    with pytest.raises(ValueError, match=message) as caught:
        ImageData(make(tmp_path))
    assert '\n' not in str(caught.value)


def test_digest_follows_images_and_labels(tmp_path):
    digests = set()
    for index, (pixels, kwargs) in enumerate([
            (PIXELS, {}), (PIXELS[::-1], {}), (PIXELS[:11], {}), (PIXELS.reshape(3, 16, 16, 3), {}),
            (PIXELS, dict(label=np.arange(12))), (PIXELS, dict(label=np.ones(12, int)))]):
        np.savez(tmp_path / f'{index}.npz', samples=pixels, **kwargs)
        digests.add(ImageData(tmp_path / f'{index}.npz').digest())
    assert len(digests) == 6
    assert ImageData(write_zip(tmp_path / 'set.zip', PIXELS)).digest() in digests  # in any storage format


def test_expected_shapes(tmp_path):
    write_zip(tmp_path / 'set.zip', PIXELS)
    with pytest.raises(ValueError, match='expected 32x32'):
        ImageData(tmp_path / 'set.zip', resolution=32)
    with pytest.raises(ValueError, match='3 channels, expected 1'):
        ImageData(tmp_path / 'set.zip', channels=1)


def test_batches_cover_every_epoch_once():
    batches = [batch_indices(10, 4, seed=3, step=step) for step in range(10)]
    order = np.concatenate(batches)
    for epoch in order.reshape(4, 10):
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in order.reshape(4, 10)}) == 4  # each in its own order
    assert np.array_equal(batch_indices(10, 4, 3, 7), batches[7])
    assert not np.array_equal(batch_indices(10, 4, 4, 7), batches[7])
    assert len(batch_indices(3, 8, 0, 5)) == 8  # more than one epoch in a batch
