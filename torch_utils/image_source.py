"""Images and their labels from any source: shards, npz, zip, folder, published archives."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dnnlib.files import resolve_path

from . import image_files, image_labels
from .image_labels import Labels
from .image_store import ArrayStore, FileStore, HeldStore, ImageStore
from .published_sets import read_published


class Source(NamedTuple):
    """Images, their labels, and their path; `notes`: what the user should know, one line each."""

    path: Path
    images: ImageStore
    labels: Labels
    notes: list[str]

    def subset(self, max_images: int | None) -> 'Source':
        """At most `max_images` of the images, a subset that depends only on this number; classes keep their numbers."""
        count = len(self.images)
        if max_images is None or max_images >= count:
            return self
        rows = np.sort(np.random.RandomState(0).permutation(count)[:max_images])
        labels = self.labels
        if labels.indices is not None:
            labels = labels._replace(indices=labels.indices[rows], total=labels.num_classes)
        return self._replace(images=self.images.select(rows), labels=labels)

    def describe(self) -> list[str]:
        """Lines for the user: what is odd, and the classes by number."""
        classes = self.labels.classes()
        return [*self.notes, *([f'{self.path}: {image_labels.show_classes(classes)}'] if classes else [])]


def open_images(path, labels_from: str = 'data', channels=(1, 3, 4)) -> Source:
    """The images at `path` with their labels.

    `path` is a folder of `samples*.npz` shards; an npz with `samples`, `arr_0` or `images` ([N, H, W, C] uint8) and
    labels in `label` or `labels` (for arr_0 in `arr_1`), class indices or one-hot rows; a zip or folder of images with
    labels from dataset.json, else from folders (`image_labels.folder_labels`); or CIFAR-10 or MNIST as published.
    Shards and files are sorted by name, with numbers in names compared as numbers.

    labels_from: 'data': as above; 'names': ADM's file names `<class>_<anything>.png`; 'none': without labels.
    Raises FileNotFoundError, and ValueError in one line if there are no images or they are damaged.
    """
    path = resolve_path(path)
    published = read_published(path)
    if published is not None:
        images, indices, names = published
        return Source(path, HeldStore(images), Labels(indices, dict(enumerate(names))), [])
    shards = image_files.find_npz(path)
    images, labels, notes = _open_arrays(shards, channels) if shards else _open_files(path, labels_from)
    if labels_from == 'names' and shards:
        raise ValueError(f'{path} holds arrays, which have no file names to take labels from')
    if labels_from == 'none':
        labels = Labels()
    return Source(path, images, labels, notes + [f'{path}: {labels.note}'] * bool(labels.note))


def _open_files(path: Path, labels_from: str) -> tuple[FileStore, Labels, list[str]]:
    listing = image_files.list_images(path)
    if not listing.names:
        note = listing.note()
        raise ValueError(f'{path} contains no images ({image_files.KINDS}) and no samples*.npz' +
                         (f'; {note}' if note else ''))
    notes = [f'{path}: {listing.note()}'] if listing.skipped else []
    images = FileStore(path, listing.names)
    if labels_from == 'names':
        labels = image_labels.name_labels(listing.names)
    elif labels_from == 'data' and listing.label_file:
        labels = image_labels.json_labels(images.read_file, path, listing)
    else:
        labels = image_labels.folder_labels(listing.names, listing.root)
    return images, labels, notes


def _open_arrays(paths: list[Path], channels: tuple) -> tuple[ArrayStore, Labels, list[str]]:
    found = [image_labels.find_images(path, channels) for path in paths]
    first, first_labels = found[0]
    for images, labels in found:
        if images.shape[1:] != first.shape[1:]:
            raise ValueError(f'mixed image shapes: {paths[0]} has {list(first.shape[1:])}, '
                             f'{images.path} {list(images.shape[1:])}')
        if (labels is None) != (first_labels is None):
            raise ValueError(f'only some shards have labels: {paths[0]} and {images.path} differ')
    if not sum(images.shape[0] for images, _ in found):
        raise ValueError(f'{paths[0]} contains no images')
    if first_labels is None:
        labels = Labels()
    else:
        indices = np.concatenate([image_labels.array_labels(labels, images) for images, labels in found])
        labels = Labels(indices, image_labels.neighbour_names(paths[0]))
    return ArrayStore([images for images, _ in found]), labels, []
