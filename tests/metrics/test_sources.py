"""Image sources: the same images in the same order from shards, files and zips; one line for damage."""

import threading
import zipfile

import goldens
import numpy as np
import PIL.Image
import pytest
import torch

from metrics.sources import StoreSource, open_source, read_ahead
from torch_utils.image_source import open_images
from torch_utils.images import to_uint8

FID = goldens.GOLDENS / 'fid'


def images_of(path, batch=64, start=0, stop=None):
    source = open_source(path)
    parts = list(source.batches(start, len(source) if stop is None else stop, batch))
    assert all(len(part) == batch for part in parts[:-1])
    return torch.cat(parts).permute(0, 2, 3, 1).numpy()  # [N, H, W, C]


@pytest.fixture
def shard_images():
    """The golden shards in the order of the numbers in their names."""
    return np.concatenate([goldens.load(f'fid/samples_uncond/samples_{n}.npz')['samples'] for n in (731, 20044)])


def test_published_conversion_to_uint8():
    golden = goldens.load('fid/to_uint8.npz')
    np.testing.assert_array_equal(to_uint8(torch.from_numpy(golden['images'])), golden['images_uint8'])
    np.testing.assert_array_equal(to_uint8(torch.from_numpy(golden['x']).reshape(-1, 1, 1, 1)).ravel(), golden['uint8'])


@pytest.mark.parametrize('batch', [1, 3, 4, 64])
def test_shards_in_numeric_order_without_the_grids(shard_images, batch):
    np.testing.assert_array_equal(images_of(FID / 'samples_uncond', batch), shard_images)


def test_folder_npz_and_zip_hold_the_same_images(tmp_path, shard_images):
    np.savez(tmp_path / 'all.npz', arr_0=shard_images)
    np.savez_compressed(tmp_path / 'packed.npz', samples=shard_images)
    with zipfile.ZipFile(tmp_path / 'all.zip', 'w') as archive:
        for file in sorted((FID / 'png').iterdir(), reverse=True):
            archive.write(file, f'00000/img{file.name}')
        archive.writestr('dataset.json', '{}')
    for path in (FID / 'png', tmp_path / 'all.npz', tmp_path / 'packed.npz', tmp_path / 'all.zip'):
        np.testing.assert_array_equal(images_of(path, 3), shard_images)


def test_any_part_of_a_source(shard_images):
    for start, stop in ((0, 2), (2, 6), (5, 8), (7, 8), (3, 3)):
        for path in (FID / 'samples_uncond', FID / 'png'):
            source = open_source(path)
            found = [batch.permute(0, 2, 3, 1).numpy() for batch in source.batches(start, stop, 3)]
            expected = [shard_images[low:min(low + 3, stop)] for low in range(start, stop, 3)]
            assert len(found) == len(expected)
            for a, b in zip(found, expected):
                np.testing.assert_array_equal(a, b)


def test_names_and_counts():
    source = open_source(f'{FID}/samples_cond/')
    assert source.name == 'samples_cond' and len(source) == 8
    source.choose(8)
    source.choose(4, blocks=2)
    for count, blocks in ((9, 1), (3, 3)):
        with pytest.raises(ValueError, match='8 images, fewer than the 9'):
            source.choose(count, blocks)


def test_grey_images_get_three_channels(tmp_path):
    grey = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1)
    np.savez(tmp_path / 'grey.npz', samples=grey)
    PIL.Image.fromarray(grey[0, :, :, 0]).save(tmp_path / '0.png')
    np.testing.assert_array_equal(images_of(tmp_path / 'grey.npz'), np.repeat(grey, 3, axis=3))
    np.testing.assert_array_equal(images_of(tmp_path)[0], np.repeat(grey[0], 3, axis=2))


def classes(folder, names):
    """Image files of which the k-th has brightness k."""
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new('RGB', (4, 4), (index, 0, 0)).save(folder / name)
    return folder


def chosen(path, count, blocks=1, stop=None):
    source = open_source(path)
    source.choose(count, blocks)
    return [int(batch[0, 0, 0, 0]) for batch in source.batches(0, stop or count * blocks, 1)]


def test_fewer_files_than_there_are_come_from_all_classes(tmp_path):
    """Three classes of ten files, one after the other."""
    folder = classes(tmp_path, [f'{name}/{index}.png' for name in ('ant', 'bee', 'cat') for index in range(10)])
    part = chosen(folder, 15)
    assert part == chosen(folder, 15) and len(set(part)) == 15
    assert {number // 10 for number in part} == {0, 1, 2}
    blocks = chosen(folder, 10, blocks=3)
    assert sorted(blocks) == list(range(30)) and len({number // 10 for number in blocks[:10]}) == 3
    assert blocks[:15] == part  # the order does not depend on how many are measured
    assert chosen(folder, 30) == list(range(30))  # all at once: as before


def test_seeds_and_shards_keep_their_order(tmp_path):
    folder = classes(tmp_path / 'png', [f'{seed:06d}.png' for seed in range(20)])
    assert chosen(folder, 5) == list(range(5)) and chosen(folder, 5, blocks=2) == list(range(10))
    np.savez(tmp_path / 'samples_0.npz', samples=np.arange(20, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3))
    assert chosen(tmp_path / 'samples_0.npz', 5) == list(range(5))


def test_more_than_eight_bits_are_refused(tmp_path):
    """A conversion would take 300 as 255."""
    PIL.Image.fromarray(np.full([4, 4], 300, np.uint16)).save(tmp_path / 'deep.png')
    with pytest.raises(ValueError, match='deep.png in .* has 16 or 32 bits per pixel'):
        images_of(tmp_path)


def test_bad_places(tmp_path):
    with pytest.raises(FileNotFoundError, match='does not exist'):
        open_source(tmp_path / 'nothing')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='no images'):
        open_source(tmp_path / 'empty')
    (tmp_path / 'text.zip').write_text('not a zip')
    with pytest.raises(ValueError, match='neither'):
        open_source(tmp_path / 'text.zip')
    with zipfile.ZipFile(tmp_path / 'cut.zip', 'w') as archive:
        archive.writestr('0.png', b'')
    blob = (tmp_path / 'cut.zip').read_bytes()
    (tmp_path / 'cut.zip').write_bytes(blob.replace(b'PK\x01\x02', bytes(4)))
    with pytest.raises(ValueError, match='cut.zip is not a complete zip'):
        open_source(tmp_path / 'cut.zip')
    with zipfile.ZipFile(tmp_path / 'magic.npz', 'w') as archive:
        archive.writestr('samples.npy', b'no array at all')
    with pytest.raises(ValueError, match='magic.npz is not a complete npz'):
        open_source(tmp_path / 'magic.npz')
    (tmp_path / 'text.npz').write_text('not a zip')
    with pytest.raises(ValueError, match='not a complete npz'):
        open_source(tmp_path / 'text.npz')


@pytest.mark.parametrize('arrays, message', [
    (dict(x=np.zeros([2, 4, 4, 3], np.uint8)), 'has no array samples'),
    (dict(samples=np.zeros([2, 4, 4, 3], np.float32)), 'float32'),
    (dict(samples=np.zeros([2, 3, 8, 8], np.uint8)), 'expected uint8'),
    (dict(samples=np.array([None, None])), 'object'),
])
def test_bad_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / 'samples_0.npz', **arrays)
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path)


def test_damaged_files(tmp_path):
    blob = bytearray((FID / 'samples_uncond/samples_731.npz').read_bytes())
    (tmp_path / 'cut').mkdir()
    (tmp_path / 'cut/samples_0.npz').write_bytes(blob[:5000])
    with pytest.raises(ValueError, match='not a complete npz'):
        open_source(tmp_path / 'cut')
    blob[6000:6100] = bytes(100)
    (tmp_path / 'samples_0.npz').write_bytes(blob)
    with pytest.raises(ValueError, match='damaged'):
        images_of(tmp_path)
    (tmp_path / 'png').mkdir()
    (tmp_path / 'png/0.png').write_bytes((FID / 'png/000000.png').read_bytes()[:700])
    with pytest.raises(ValueError, match='not a readable image'):
        images_of(tmp_path / 'png')


def test_unlike_sizes(tmp_path):
    for index, size in enumerate((4, 5)):
        PIL.Image.new('RGB', (size, size)).save(tmp_path / f'{index}.png')
    with pytest.raises(ValueError, match='different sizes'):
        images_of(tmp_path)
    for index, size in enumerate((4, 5)):
        np.savez(tmp_path / f'samples_{index}.npz', samples=np.zeros([2, size, size, 3], np.uint8))
    with pytest.raises(ValueError, match='different sizes'):
        images_of(tmp_path)


def test_reading_ahead_passes_errors_on_and_stops_early():
    def items():
        yield 1
        raise ValueError('broken')

    ahead = read_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match='broken'):
        next(ahead)
    threads = threading.active_count()
    ahead = read_ahead(iter(range(1000)))
    assert next(ahead) == 0
    ahead.close()
    assert threading.active_count() == threads


@pytest.mark.parametrize('kind', ['opaque', 'clear', 'grey', 'palette'])
def test_data_sets_and_samples_are_measured_alike(tmp_path, kind):
    """As files and as an array, by statistics and by distances."""
    rgb = np.random.RandomState(0).randint(256, size=[2, 4, 4, 3], dtype=np.uint8)
    alpha = np.full([2, 4, 4, 1], 255 if kind == 'opaque' else 254, np.uint8)
    pixels = dict(opaque=np.concatenate([rgb, alpha], 3), clear=np.concatenate([rgb, alpha], 3), grey=rgb[..., :1],
                  palette=rgb)[kind]
    for index, image in enumerate(pixels):
        picture = PIL.Image.fromarray(image.squeeze())
        (picture.quantize(256) if kind == 'palette' else picture).save(tmp_path / f'{index}.png')
    np.savez(tmp_path / 'set.npz', samples=pixels)
    expected = rgb[..., :1].repeat(3, axis=3) if kind == 'grey' else rgb
    for path in (tmp_path, tmp_path / 'set.npz'):
        for source in (open_source(path), StoreSource(path, open_images(path).images)):
            if kind == 'clear':
                with pytest.raises(ValueError, match='is partly transparent'):
                    list(source.blocks(0, 2))
            else:
                np.testing.assert_array_equal(np.concatenate(list(source.blocks(0, 2))), expected)
