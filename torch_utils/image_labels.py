"""Class labels of images: from dataset.json, folders, file names, or arrays of an npz."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .archives import Array, find_array, list_arrays, read_rows, reason
from .image_files import LABEL_FILE, Listing, natural_key

ARRAYS = ('samples', 'arr_0', 'images')  # the first of these that an npz has holds its images
LABELS = ('label', 'labels')  # likewise; with guided-diffusion's arr_0 the labels are arr_1
MAX_CLASSES = 100_000  # networks make a row for each class
EDM_NAME = re.compile(r'img(\d+)\.\w+')  # an image in one of EDM's numbered folders
NUMBER_NAME = re.compile(r'(\d+)\.\w+')  # an image in one of FFHQ's, which hold a thousand each
SPLITS = {'train', 'training', 'val', 'valid', 'validation', 'test', 'testing'}
SHOWN_CLASSES = 20


class Labels(NamedTuple):
    """Class indices int64 [N], or None; class names by index; `note`: why there are none, or what is odd.

    `total`: classes of the whole that this is a part of; 0 if this is the whole.
    """

    indices: np.ndarray | None = None
    names: dict[int, str] = {}
    note: str = ''
    total: int = 0

    def classes(self) -> list[list]:
        """[index, name, images] of each class that has a name or an image, JSON-able; [] without labels."""
        if self.indices is None:
            return []
        found = dict(zip(*(values.tolist() for values in np.unique(self.indices, return_counts=True))))
        return [[index, self.names.get(index, str(index)), found.get(index, 0)]
                for index in sorted(found.keys() | self.names.keys())]

    @property
    def num_classes(self) -> int:
        """One more than the largest class index of the whole, named or used; 0 without labels."""
        classes = self.classes()
        return max(self.total, classes[-1][0] + 1) if classes else 0


def show_classes(classes: list[list]) -> str:
    """`Labels.classes()` in one line; only the first if there are many."""
    shown = ', '.join(f'{index} {name} ({count})' for index, name, count in classes[:SHOWN_CLASSES])
    return f'{len(classes)} classes: {shown}' + (', ...' if len(classes) > SHOWN_CLASSES else '')

#----------------------------------------------------------------------------
# Labels of image files.

def folder_labels(names: list[str], root: str) -> Labels:
    """Labels from the first folder below `root`, which all names begin with.

    If all folder names are integers, classes follow their numeric order, else the alphabetical one, as in torchvision's
    ImageFolder. Folders that only divide one long list (EDM's, FFHQ's) are not classes.
    """
    below = [name[len(root):] for name in names]
    tops = [name.partition('/')[0] if '/' in name else None for name in below]
    folders = set(tops) - {None}
    if not folders:
        return Labels()
    if None in tops:
        stray = names[tops.index(None)]
        return Labels(note=f'{stray} lies beside the folders {_some(folders)}, so these are not taken as classes; '
                           'move it into one of them, or away')
    if {folder.lower() for folder in folders} <= SPLITS:
        return Labels(note=f'{_some(folders)} are parts of a data set, not classes; name one of them as the source')
    if _is_one_list(below):
        return Labels(note=f'the folders {_some(folders)} divide one list of numbered images and are not classes')
    return _indexed(tops)


def name_labels(names: list[str]) -> Labels:
    """Labels from ADM's file names `<class>_<anything>.png`. Raises ValueError for a name without a class."""
    stems = [name.rpartition('/')[2] for name in names]
    for name, stem in zip(names, stems):
        if '_' not in stem.strip('_'):
            raise ValueError(f'{name} does not have the form <class>_<anything> that labels from file names need')
    return _indexed([stem.partition('_')[0] for stem in stems])


def _indexed(texts: list[str]) -> Labels:
    """Class names, one per image -> their indices."""
    integers = all(re.fullmatch('[0-9]+', text) for text in set(texts))
    order = sorted(set(texts), key=natural_key if integers else None)
    index = {text: i for i, text in enumerate(order)}
    return Labels(np.array([index[text] for text in texts], dtype=np.int64), dict(enumerate(order)))


def _is_one_list(names: list[str]) -> bool:
    """Whether numbered folders only divide a list: 00012/img00012345.png of EDM, 12000/12345.png of FFHQ."""
    folders = [name.partition('/')[0] for name in names]
    files = [name.partition('/')[2] for name in names]
    if not all(re.fullmatch('[0-9]{5,}', folder) for folder in folders):
        return False
    numbers = [EDM_NAME.fullmatch(file) for file in files]
    if all(numbers):  # numbered through all folders; classes would start again
        values = [int(match[1][:18]) for match in numbers]
        return all(a < b for a, b in zip(values, values[1:]))
    numbers = [NUMBER_NAME.fullmatch(file) for file in files]
    return all(match and int(match[1][:18]) // 1000 * 1000 == int(folder[:18])
               for match, folder in zip(numbers, folders))


def _some(folders) -> str:
    folders = sorted(folders, key=natural_key)
    return ', '.join(folders[:3]) + (', ...' if len(folders) > 3 else '')


def json_labels(read, path: Path, listing: Listing) -> Labels:
    """Labels of the images in `listing` from its dataset.json; none if that has none.

    Raises ValueError for a damaged file, an image with no label or with two, and labels that are not classes.
    """
    where = f'{path}: {listing.label_file}'
    try:
        found = json.loads(read(listing.label_file), object_pairs_hook=_unique)
        pairs = found.get('labels')
        if pairs is not None:
            pairs = list(pairs.items()) if isinstance(pairs, dict) else pairs
            pairs = [(str(name), label) for name, label in pairs]
    except Exception as error:  # other JSON, too deep JSON, or a damaged zip
        raise ValueError(f'{where} does not hold labels: {reason(error)}') from None
    if pairs is None:
        return Labels()
    folder = listing.label_file[:-len(LABEL_FILE)]
    table = {}
    for name, label in pairs:
        if table.setdefault(name, label) != label:
            raise ValueError(f'{where} has two labels for {name}: {reason(ValueError(table[name]))} and '
                             f'{reason(ValueError(label))}')
    names = [name[len(folder):] for name in listing.names]
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f'{where} has no label for {len(missing)} images, first {missing[0]}')
    absent = len(table) - len(set(names))
    note = f'{listing.label_file} labels {absent} images that are missing, or not read' if absent else ''
    return Labels(class_indices(_as_array([table[name] for name in names], where), where), _class_names(found), note)


def _unique(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        for name, value in pairs:
            if found[name] != value:
                raise ValueError(f'two values for {name}')
    return found


def _as_array(labels: list, where: str) -> np.ndarray:
    """Integers [N], or rows of numbers [N, K]."""
    for label in labels:
        row = label if isinstance(label, list) else [label]
        if not all(type(value) in (int, float) for value in row) or len(row) > MAX_CLASSES:
            raise ValueError(f'{where} has a label that is not a class: {reason(ValueError(label))}')
    if len({len(label) if isinstance(label, list) else None for label in labels}) > 1:
        raise ValueError(f'{where} has labels of different lengths; expected one class index for each image')
    try:
        return np.array(labels)
    except OverflowError:
        raise ValueError(f'{where} has a label beyond 64-bit integers') from None


def _class_names(found: dict) -> dict[int, str]:
    """Class names that `dataset_tool.py` wrote into a JSON file; {} for any other file."""
    rows = found.get('classes')
    if not isinstance(rows, list) or not all(
            isinstance(row, list) and len(row) > 1 and type(row[0]) is int and 0 <= row[0] < MAX_CLASSES
            for row in rows):
        return {}
    return {row[0]: str(row[1]) for row in rows}

#----------------------------------------------------------------------------
# Labels of arrays.

def find_images(path: Path, channels: tuple) -> tuple[Array, Array | None]:
    """(images of an npz, uint8 [N, H, W, C] with C in `channels`; their labels or None), read from the headers only.

    Raises ValueError for a damaged file, none of `ARRAYS`, an array of another kind, or another number of labels.
    """
    members = list_arrays(path)
    name = next((name for name in ARRAYS if name in members), None)
    if name is None:
        raise ValueError(f'{path} has no array {", ".join(ARRAYS)}; it holds {", ".join(sorted(members)) or "none"}')
    images = find_array(path, name)
    if images.dtype != np.uint8 or len(images.shape) != 4 or images.shape[3] not in channels:
        raise ValueError(f'{path}: `{name}` is {images.dtype} {list(images.shape)}, expected uint8 [N, H, W, C], '
                         f'C one of {", ".join(map(str, channels))}')
    label = next((name for name in LABELS if name in members), None)
    labels = None if label is None else find_array(path, label)
    if labels is None and name == 'arr_0' and 'arr_1' in members:
        labels = find_array(path, 'arr_1')
        if len(labels.shape) > 2:  # more images, say
            labels = None
    return images, labels


def array_labels(labels: Array, images: Array) -> np.ndarray:
    """Class indices int64 [N] from an array of an npz, read block by block. Raises ValueError."""
    where = f'{labels.path}: `{labels.name}`'
    if len(labels.shape) not in (1, 2):
        raise ValueError(f'{where} is {labels.dtype} {list(labels.shape)}, expected class indices [N] or one-hot '
                         '[N, K]')
    if labels.shape[0] != images.shape[0]:
        raise ValueError(f'{labels.path}: {images.shape[0]} images but {labels.shape[0]} labels')
    blocks = [class_indices(rows, where) for rows in read_rows(labels, 0, labels.shape[0])]
    return np.concatenate([np.zeros(0, np.int64), *blocks])


def neighbour_names(path: Path) -> dict[int, str]:
    """Class names from the JSON that `dataset_tool.py npz` writes beside an npz (x.json of x.npz); else {}."""
    try:
        found = json.loads(path.with_suffix('.json').read_bytes()[:1 << 26])
        return _class_names(found) if isinstance(found, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def class_indices(labels: np.ndarray, where: str) -> np.ndarray:
    """Class indices int64 [N] from class indices [N] or [N, 1] of any integer type, or one-hot rows [N, K]."""
    shown = f'{where} is {labels.dtype} {list(labels.shape)}'
    if labels.ndim == 2 and labels.shape[1] == 1 and labels.dtype.kind in 'iu':  # a column of indices, not one class
        labels = labels[:, 0]
    if labels.ndim == 2 and len(labels) and np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all():
        labels = labels.argmax(axis=1)
    if labels.ndim != 1 or labels.dtype.kind not in 'iu' or (len(labels) and labels.min() < 0):
        raise ValueError(f'{shown}, expected class indices [N] or one-hot [N, K]')
    if len(labels) and labels.max() >= MAX_CLASSES:
        raise ValueError(f'{where} has a class {labels.max()}; at most {MAX_CLASSES:,} classes are read')
    return labels.astype(np.int64)
