"""A folder of samples: which files belong to it, which are complete, and what made them (options.json)."""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from dnnlib.files import DAMAGED, atomic_write
from dnnlib.run_folder import OPTIONS_FILE, REPORT, RunFolder, write_options
from torch_utils.images import image_grid, is_whole_png, png_bytes

GRIDS = 4  # shards that get a picture
GRID_IMAGES = 256  # at most, in one picture
SAMPLE_FILE = re.compile(r'samples.*\.npz|sample_.*\.png|\d{6,}\.png')
WARMUP_LEFTOVER = re.compile(r'\.thresholds.*\.json\..*\.tmp|thresholds-part-\d+\.json')  # the parts become one file
COUNTS = 'counts'  # text of a PNG: what the sample has cost, as JSON


@dataclass(frozen=True)
class Shard:
    """One file of samples: its place in the run and its seeds, fixed by the list of seeds alone."""

    index: int
    seeds: Sequence[int]

    @property
    def name(self) -> str:
        return f'samples_{self.seeds[0]:08d}.npz'

    @property
    def grid_name(self) -> str:
        return f'sample_{self.seeds[0]:08d}.png'

    @property
    def png_names(self) -> list[str]:
        return [f'{seed:06d}.png' for seed in self.seeds]


def format_int_list(numbers) -> str:
    """[0, 1, 2, 7] -> '0-2,7'."""
    if isinstance(numbers, range) and numbers.step == 1 and len(numbers) > 1:
        return f'{numbers[0]}-{numbers[-1]}'
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ','.join(str(first) if first == last else f'{first}-{last}' for first, last in ranges)


class SampleFolder(RunFolder):
    """The files of one run in `path`: shards of `batch` seeds each, as 'npz' or one 'png' per seed.

    Raises ValueError for repeated seeds.
    """

    def __init__(self, path, seeds, batch: int, options: dict, save_type: str = 'npz'):
        if not isinstance(seeds, range):  # 50 million seeds are a range: no list of them is made
            seeds = tuple(seeds)
        if not len(seeds) or not isinstance(seeds, range) and len(set(seeds)) != len(seeds):
            raise ValueError('the list of seeds is empty or has one twice; each seed is one sample')
        if save_type not in ('npz', 'png'):
            raise ValueError(f'{save_type!r} is not a way to save samples; use npz or png')
        record = options | dict(seeds=format_int_list(seeds), batch=batch, save_type=save_type)
        super().__init__(path, record, lambda options, name: SAMPLE_FILE.fullmatch(name) is not None)
        self.save_type = save_type
        self.shards = [Shard(i, seeds[first:first + batch])
                       for i, first in enumerate(range(0, len(seeds), batch))]

    def check(self, undecided: Collection[str] = ()) -> None:
        """Raise ValueError if the folder holds anything but this run; the options `undecided` may still differ."""
        super().check(undecided)
        expected = set()
        for shard in self.shards:
            expected.update([shard.name, shard.grid_name] if self.save_type == 'npz' else shard.png_names)
        foreign = [name for name in self.own_files() if name not in expected]
        if foreign:
            raise ValueError(f'{self.path} holds samples of something else ({foreign[0]}, {len(foreign)} in all); '
                             f'use another folder or --overwrite')

    def is_leftover(self, name: str) -> bool:
        """Whether a file is half of a result, or a part of a warm-up that is over when sampling begins."""
        return super().is_leftover(name) or WARMUP_LEFTOVER.fullmatch(name) is not None

    def is_complete(self, shard: Shard) -> bool:
        """Whether all files of `shard` exist and can be read to their end."""
        try:
            if self.save_type == 'png':
                return all(is_whole_png((self.path / name).read_bytes()) for name in shard.png_names)
            with open(self.path / shard.name, 'rb') as handle, np.load(handle, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}  # reading checks the sums
        except (*DAMAGED, ValueError):
            return False
        samples = arrays.get('samples')
        return (samples is not None and samples.ndim == 4 and samples.dtype == np.uint8
                and all(len(array) == len(shard.seeds) for array in arrays.values())
                and (shard.index >= GRIDS or (self.path / shard.grid_name).is_file()))

    def last_file(self, shard: Shard) -> Path:
        """The file of `shard` that is written last."""
        return self.path / (shard.name if self.save_type == 'npz' else shard.png_names[-1])

    def write(self, shard: Shard, samples: np.ndarray, labels: np.ndarray | None, extra: dict) -> None:
        """Write a shard: samples uint8 [n, H, W, C], labels [n, K] or None (npz only), further arrays [n, ...]."""
        if self.save_type == 'png':
            for row, (name, image) in enumerate(zip(shard.png_names, samples)):
                counts = json.dumps({key: array[row].tolist() for key, array in extra.items()})
                # Flushing takes ten times as long as writing; a run that resumes reads every picture to its end.
                with atomic_write(self.path / name, flush=False) as file:
                    file.write(png_bytes(image, {COUNTS: counts} if extra else None))
            return
        if shard.index < GRIDS:  # before the shard, so that a whole shard means a whole picture
            with atomic_write(self.path / shard.grid_name) as file:
                file.write(png_bytes(image_grid(samples[:GRID_IMAGES])))
        arrays = dict(samples=samples) | ({} if labels is None else dict(label=labels)) | extra
        with atomic_write(self.path / shard.name) as file:
            np.savez(file, **arrays)  # compressing saves 3 % of such images and takes twenty times as long


def read_report(outdir) -> dict:
    """What the run in `outdir` has cost so far, as `write_report` left it; {} before. Raises ValueError or OSError."""
    return json.loads((Path(outdir) / OPTIONS_FILE).read_text()).get(REPORT, {})


def write_report(outdir, report: dict) -> None:
    """Put what a run has cost into its options.json."""
    write_options(outdir, json.loads((Path(outdir) / OPTIONS_FILE).read_text()) | {REPORT: report})


def read_counts(outdir) -> Iterator[dict[str, np.ndarray]]:
    """What the samples in a folder have cost, file by file: arrays [n, ...] by name, without images and labels."""
    outdir = Path(outdir)
    for path in sorted(outdir.glob('samples_*.npz')):
        with np.load(path, allow_pickle=False) as file:
            yield {name: file[name] for name in file.files if name not in ('samples', 'label')}
    for path in sorted(path for path in outdir.glob('*.png') if path.stem.isdigit()):
        with PIL.Image.open(path) as image:
            counts = json.loads(image.info.get(COUNTS, '{}'))
        yield {name: np.array([value]) for name, value in counts.items()}
