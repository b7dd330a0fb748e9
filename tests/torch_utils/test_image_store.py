"""Images that are read on request: the same as from memory, in constant memory, for every kind of place."""

import io
import tracemalloc
import zipfile
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch

import training.data
from torch_utils import archives, image_store
from torch_utils.image_source import open_images
from torch_utils.image_store import ImageStore
from training.classifier import hold_out
from training.data import BatchLoader, ImageData
from training.discriminator import split_pairs

PIXELS = np.random.RandomState(0).randint(256, size=[600, 6, 6, 3], dtype=np.uint8)  # [N, H, W, C]
LABELS = np.arange(600) % 7
KINDS = ('zip', 'folder', 'npz', 'compressed', 'shards', 'fortran')


def write(path, kind, pixels=PIXELS):
    if kind == 'zip':
        with zipfile.ZipFile(path / 'set.zip', 'w') as archive:
            for index, image in enumerate(pixels):
                buffer = io.BytesIO()
                PIL.Image.fromarray(image).save(buffer, 'PNG')
                archive.writestr(f'{LABELS[index % 600]}/{index:06d}.png', buffer.getvalue())
        return path / 'set.zip'
    if kind == 'folder':
        for index, image in enumerate(pixels):
            (path / f'{LABELS[index]}').mkdir(exist_ok=True)
            PIL.Image.fromarray(image).save(path / f'{LABELS[index]}/{index:06d}.png')
        return path
    if kind == 'shards':
        for low, high in ((0, 10), (10, 11), (11, 600)):
            np.savez(path / f'samples_{low}.npz', samples=pixels[low:high], label=LABELS[low:high])
        return path
    save = np.savez_compressed if kind == 'compressed' else np.savez
    save(path / 'set.npz', samples=np.asfortranarray(pixels) if kind == 'fortran' else pixels, label=LABELS)
    return path / 'set.npz'


def expected(kind):
    """Images [N, C, H, W] and labels in the order of the place: image files lie in the folders of their classes."""
    order = np.argsort(LABELS, kind='stable') if kind in ('zip', 'folder') else np.arange(600)
    return torch.from_numpy(PIXELS[order].transpose(0, 3, 1, 2)), torch.from_numpy(LABELS[order])


@pytest.fixture(params=KINDS)
def place(request, tmp_path, monkeypatch):
    """(path, images, labels) of a place that is too large to be held."""
    monkeypatch.setattr(training.data, 'HELD_BYTES', 0)
    monkeypatch.setattr(archives, 'BLOCK_BYTES', 1000)  # nine images
    return write(tmp_path, request.param), *expected(request.param)


def test_rows(place):
    path, images, _ = place
    store = open_images(path).images
    assert store.shape == images.shape and len(store) == 600 and store.numel() == images.numel()
    if store.random_access:
        for index in (slice(None), slice(3, 300, 7), torch.tensor([599, 0, 10, 10, 11, 12]), np.arange(9, 13),
                      [5, 599, 4], 0, 11):
            assert torch.equal(store[index], images[index])
    for part in (slice(5, 590), np.array([0, 9, 10, 11, 30, 599]), slice(2), slice(20, 21)):
        selected = store.select(part)
        assert torch.equal(torch.from_numpy(np.concatenate(list(selected.blocks()))), images[part])
        assert torch.equal(selected.load(), images[part])
        mapped = list(selected.map(lambda image: image.copy()))
        np.testing.assert_array_equal(np.stack(mapped), images[part].permute(0, 2, 3, 1))


def test_a_data_set_is_the_same_in_memory_or_not(place, monkeypatch):
    path, images, labels = place
    streamed = ImageData(path, quiet=True)
    assert torch.equal(streamed.labels, labels) and (streamed.channels, streamed.resolution) == (3, 6)
    monkeypatch.setattr(training.data, 'HELD_BYTES', 1 << 30)
    held = ImageData(path, quiet=True)
    assert torch.is_tensor(held.images) and torch.equal(held.images, images)
    assert torch.is_tensor(streamed.images) is not open_images(path).images.random_access
    assert streamed.digest() == held.digest() and streamed.classes == held.classes


@pytest.mark.parametrize('parts', [[slice(0, 8)], [slice(0, 3), slice(3, 8)], [slice(4, 8)]])
def test_batches_are_the_same_in_memory_or_not(place, parts):
    """Whole steps, accumulated ones, one rank's; a run that begins in the middle, and one that jumps."""
    path, images, labels = place
    data = ImageData(path, quiet=True)
    streamed, held = (BatchLoader(source, labels, 8, 3, 'cpu') for source in (data.images, images))
    for step in (0, 1, 2, 70, 71, 74, 3):
        for rows in parts:
            for a, b in zip(streamed(step, rows), held(step, rows), strict=True):
                assert torch.equal(a, b)
    assert len(streamed._ahead) <= len(parts)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_what_memory_has_no_room_for_is_one_line(tmp_path, monkeypatch, save):
    """An uncompressed array is read during training; a compressed one would have to be held."""
    save(tmp_path / 'set.npz', samples=PIXELS)
    monkeypatch.setattr(training.data, 'HELD_BYTES', 1000)
    monkeypatch.setattr(archives, 'free_memory', lambda: 1000)
    if save is np.savez:
        data = ImageData(tmp_path / 'set.npz', quiet=True)
        assert torch.equal(data.images[:2], torch.from_numpy(PIXELS[:2].transpose(0, 3, 1, 2)))
        with pytest.raises(ValueError, match='600 images would take 6.03e-05 GiB of memory, of which'):
            data.images[:]
        return
    with pytest.raises(ValueError, match=r'600 images of 6x6 would take .*\(--max_images or --num_data\)') as caught:
        ImageData(tmp_path / 'set.npz', quiet=True)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('kind', ['zip', 'npz', 'compressed'])
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, monkeypatch, kind):
    """The most that numpy and Python hold while everything is read once, in numbers of images."""
    pixels = np.random.RandomState(0).randint(256, size=[600, 32, 32, 3], dtype=np.uint8)
    monkeypatch.setattr(archives, 'BLOCK_BYTES', 64 * 3072)
    monkeypatch.setattr(image_store, 'CHUNK', 64)
    path = tmp_path / 'x'
    path.mkdir()
    if kind == 'zip':
        place = write(path, 'zip', pixels)
    else:
        place = path / 'set.npz'
        (np.savez if kind == 'npz' else np.savez_compressed)(place, samples=pixels)
    store = open_images(place).images
    tracemalloc.start()
    for _ in store.blocks():
        pass
    for _ in store.map(lambda image: image[0, 0]):
        pass
    peak = tracemalloc.get_traced_memory()[1] / 3072
    tracemalloc.stop()
    assert peak < 400  # blocks of 64, read and written


def test_a_damaged_image_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(training.data, 'HELD_BYTES', 0)
    path = write(tmp_path, 'folder')
    (path / '3/000010.png').write_bytes((path / '3/000010.png').read_bytes()[:60])
    data = ImageData(path, quiet=True)
    with pytest.raises(ValueError, match='3/000010.png is not a readable image'):
        data.digest()


def test_a_stored_array_is_checked_against_its_sum(tmp_path):
    path = write(tmp_path, 'npz')
    blob = bytearray(path.read_bytes())
    blob[5000] ^= 1
    path.write_bytes(blob)
    with pytest.raises(ValueError, match='set.npz is damaged: Bad CRC'):
        list(open_images(path).images.blocks())


class Held(SimpleNamespace):
    def __init__(self, images, labels):
        super().__init__(images=images, labels=labels)

    def __len__(self):
        return len(self.images)


def test_discriminators_train_on_what_is_not_in_memory(place, monkeypatch):
    """The same pairs in the same order, without reading them; parts in memory and on disk join."""
    path, images, labels = place
    generated = SimpleNamespace(images=images[:99], labels=labels[:99])
    expected = split_pairs(Held(images, labels), generated, 0.2, seed=3)
    data = ImageData(path, quiet=True)
    for found, pairs in zip(split_pairs(data, generated, 0.2, seed=3), expected, strict=True):
        assert torch.is_tensor(found.images) != isinstance(data.images, ImageStore)
        rows = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:50]
        assert found.images.shape == pairs.images.shape and torch.equal(found.images[rows], pairs.images[rows])
        assert torch.equal(found.only_real().images[:], pairs.only_real().images)
    for found, part in zip(hold_out(data, 0.2, 30, seed=0), hold_out(Held(images, labels), 0.2, 30, seed=0),
                             strict=True):
        assert torch.equal(found[0][:], part[0]) and torch.equal(found[1], part[1])
