"""The rows of a study: what varies, as options of generate.py, and where training runs keep their discriminators."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from dnnlib.files import resolve_path
from dnnlib.int_lists import format_int_list
from dnnlib.run_folder import CLASS_NAMES, COMMAND, OPTIONS_FILE, REPORT, read_options
from figures.results import short_names
from networks.lora import read_adapters

UNGUIDED = 'unguided'
# train.py's files, and those of DG's LoRA reproduction
NUMBERED = re.compile(r'discriminator_(\d+)\.pt|discrim_(?:un)?cond_epoch(\d+)\.pt')
SHARD = re.compile(r'samples_\d+\.npz')  # a part of one set, as the sampling scripts write it
FINAL = re.compile(r'discrim_(?:un)?cond_final(\d*)\.pt')
BEST = ('best.safetensors', 'best.pt')
MAY_DIFFER = {REPORT, COMMAND, CLASS_NAMES, 'seed'}  # entries of a run's options, among repetitions


class Row(NamedTuple):
    """One setting of a study: options that it changes, its place in the picture, and the group of its training."""

    name: str
    options: dict
    x: float | None = None  # None: a line across the picture
    group: str | None = None


class Discriminator(NamedTuple):
    """The files of a discriminator, and the digest of the classifier that it was trained on, if that is known."""

    path: Path
    adapters: Path | None
    classifier_sha256: str | None

    def options(self) -> dict:
        return dict(discriminator_ckpt=(str(self.path),), classifier_of_run=self.classifier_sha256,
                    lora_checkpoint=None if self.adapters is None else str(self.adapters), lora_rank=None)


def unguided() -> Row:
    """The row without guidance by a discriminator."""
    return Row(UNGUIDED, dict(dg_weight_1st_order=0.0, dg_weight_2nd_order=0.0, boosting=0, adaptive_weight=0))


def named(value: float) -> str:
    """The name of a row of this value; values that differ have names that differ."""
    return f'{value:.12g}'


def of_values(values: list[float], *names: str, **others: list[float]) -> list[Row]:
    """A row for each value, which all options `names` take; `others`: of other options, the values row by row."""
    return [Row(named(value), dict.fromkeys(names, value) | {name: given[i] for name, given in others.items()}, value)
            for i, value in enumerate(values)]


def of_epochs(run: str, wanted: Collection[int] | None) -> list[Row]:
    """A row for each epoch of a training run (None: all). Raises ValueError for epochs without a file, OSError."""
    found = numbered(_folder(run))
    missing = [epoch for epoch in wanted or () if epoch not in found]
    if missing or not found:
        there = f'of epochs {format_int_list(sorted(found))}' if found else 'by the name discriminator_<epoch>.pt'
        raise ValueError(f'{run} has none of epoch {missing[0]}, but discriminators {there}' if found else
                         f'{run} holds no discriminator {there}')
    return [Row(str(epoch), found[epoch].options(), epoch) for epoch in wanted or sorted(found)]


def of_trainings(runs: Collection[str], file: str, by_rank: bool) -> list[Row]:
    """A row for each training run; of the same settings but the seed, or `by_rank`, of the same but seed and rank.

    file: see `chosen`; if it is an epoch, runs may be of unlike length. Runs without options.json, as the
    reproduction's, are taken as they are. Raises ValueError for runs that differ in more, for a run that is named
    twice, and OSError.
    """
    folders = [_folder(run) for run in runs]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError('a run is named twice; each training is one row')
    known = [(run, found) for run, folder in zip(runs, folders, strict=True)
             if (found := read_options(folder / OPTIONS_FILE))]
    may_differ = MAY_DIFFER | ({'lora_rank'} if by_rank else set()) | (set() if file in ('best', 'last') else {'epoch'})
    for run, found in known[1:]:
        name, before = known[0]
        differing = sorted(key for key in before | found if key not in may_differ and before.get(key) != found.get(key))
        if differing:
            key = differing[0]
            raise ValueError(f'{run} is no repetition of {name}: {key} is {found.get(key)!r}, not {before.get(key)!r}')
    rows = []
    for i, (name, folder) in enumerate(zip(short_names(folders), folders, strict=True)):
        files = chosen(folder, file)
        rank = read_adapters(files.adapters).rank if files.adapters is not None else 0
        rows.append(Row(name, files.options(), rank if by_rank else i + 1, f'rank {rank}' if by_rank else 'trainings'))
    return sorted(rows, key=lambda row: row.x)


def of_folders(place: str) -> list[Row]:
    """A row for each file or folder of images in `place` whose name ends in a number: epoch10.npz, w0.5, ...

    Raises ValueError if there are none, or names of more than one kind, and OSError.
    """
    folder, found = _folder(place), {}
    for entry in folder.iterdir():
        stem = entry.stem if entry.suffix in ('.npz', '.zip') else entry.name
        match = re.fullmatch(r'(.*?)_?(\d+(?:\.\d+)?)', stem)
        hidden = entry.name.startswith('.') or SHARD.fullmatch(entry.name)
        if match and (entry.is_dir() or stem != entry.name) and not hidden:
            found[entry] = match[1], float(match[2])
    if len({kind for kind, _ in found.values()}) != 1:
        names = ', '.join(sorted(entry.name for entry in found)[:4])
        raise ValueError(f'{place} does not hold sets of images by number (epoch0.npz, epoch2.npz, ...)'
                         + (f', but {names}' if names else ''))
    return [Row(named(x), dict(images=entry), x) for entry, (_, x) in sorted(found.items(), key=lambda item: item[1])]


def numbered(folder: Path) -> dict[int, Discriminator]:
    """The discriminators of a training run by epoch."""
    matches = [match for path in folder.iterdir() if (match := NUMBERED.fullmatch(path.name))]
    return {int(match[1] or match[2]): _with_adapters(folder, match[0], f'lora_adm_{match[1]}.pt') for match in matches}


def chosen(folder: Path, file: str) -> Discriminator:
    """One discriminator of a training run: 'best' (without one, the reproduction's final), 'last', or of an epoch.

    Raises ValueError for none.
    """
    candidates = list(_candidates(folder, file))
    if not candidates:
        raise ValueError(f'{folder} holds no discriminator to be called {file}')
    return candidates[0]


def _candidates(folder: Path, file: str) -> Iterator[Discriminator]:
    if file == 'best':
        for name in BEST:
            if (folder / name).is_file():
                yield _with_adapters(folder, name, f'lora_{name}')
        finals = [match for path in folder.iterdir() if (match := FINAL.fullmatch(path.name))]
        if len(finals) > 1:
            raise ValueError(f'{folder} holds {", ".join(sorted(match[0] for match in finals))}; give each training a '
                             f'folder of its own')
        for match in finals:
            yield _with_adapters(folder, match[0], f'lora_adm_final{match[1]}.pt')
    else:
        epochs = numbered(folder)
        epoch = max(epochs, default=None) if file == 'last' else int(file)
        if epoch in epochs:
            yield epochs[epoch]


def _with_adapters(folder: Path, name: str, adapters: str) -> Discriminator:
    beside = folder / adapters
    return Discriminator(folder / name, beside if beside.is_file() else None,
                         read_options(folder / OPTIONS_FILE).get('classifier_sha256'))


def _folder(path: str) -> Path:
    folder = resolve_path(path)
    if not folder.is_dir():
        raise NotADirectoryError(f'{path} is not a folder')
    return folder
