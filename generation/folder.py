"""A folder of samples: which files belong to it, which are complete, and what made them (options.json)."""

import contextlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from dnnlib.files import DAMAGED, atomic_write
from dnnlib.int_lists import format_int_list, parse_int_list
from dnnlib.run_folder import OPTIONS_FILE, REPORT, RunFolder, write_options
from torch_utils.images import image_grid, is_whole_png, png_bytes

GRIDS = 4  # shards that get a grid of their samples
GRID_IMAGES = 256  # at most, in one grid
SAMPLE_FILE = re.compile(r'samples.*\.npz|sample_.*\.png|\d{6,}\.png|chains_\d+\.npz')
WARMUP_LEFTOVER = re.compile(r'\.thresholds.*\.json\..*\.tmp|thresholds-part-\d+\.json')  # the parts become one file
COSTS, LABEL = 'counts', 'label'  # texts of a PNG: the sample's costs as JSON, and the number of its class
LABEL_FILE = 'dataset.json'  # the classes of PNG files, as EDM's tools write and read them
# What an options.json calls a file, and the entry that holds its digest: the same file may have moved.
MOVABLE = dict(network='network_sha256', network_preset='network_preset_sha256',
               pretrained_classifier_ckpt='classifier_sha256',
               discriminator_ckpt='discriminator_sha256', lora_checkpoint='lora_sha256',
               guiding_network='guiding_network_sha256', guiding_classifier='guiding_classifier_sha256',
               noise_classifier='noise_classifier_sha256', denoiser='denoiser_sha256')


@dataclass(frozen=True)
class Shard:
    """One file of samples: its place in the run and its seeds, which depend only on the list of seeds."""

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


def _owns(options: dict, name: str) -> bool:
    return SAMPLE_FILE.fullmatch(name) is not None or name == LABEL_FILE and options.get('save_type') == 'png'


class SampleFolder(RunFolder):
    """The files of one run in `path`: shards of `batch` seeds each, as 'npz' or one 'png' per seed.

    Raises ValueError for repeated seeds.
    """

    def __init__(self, path, seeds, batch: int, options: dict, save_type: str = 'npz'):
        if not isinstance(seeds, range):  # 50 million seeds are a range; no list of them is made
            seeds = tuple(seeds)
        if not len(seeds) or not isinstance(seeds, range) and len(set(seeds)) != len(seeds):
            raise ValueError('the list of seeds is empty or has one twice; each seed gives one sample')
        if save_type not in ('npz', 'png'):
            raise ValueError(f'{save_type!r} is not a way to save samples; use npz or png')
        record = options | dict(seeds=format_int_list(seeds), batch=batch, save_type=save_type)
        super().__init__(path, record, _owns)
        self.save_type, self.seeds = save_type, seeds
        self.shards = [Shard(i, seeds[first:first + batch])
                       for i, first in enumerate(range(0, len(seeds), batch))]

    def check(self, undecided: Collection[str] = ()) -> None:
        """Raise ValueError if the folder holds anything but this run; the options `undecided` may still differ."""
        super().check(undecided)
        expected = self.expected()
        foreign = [name for name in self.own_files() if name not in expected]
        if foreign:
            raise ValueError(f'{self.path} holds samples of something else ({foreign[0]}, {len(foreign)} in all); '
                             f'use another folder or --overwrite')

    def expected(self) -> set[str]:
        """Names of the files that the whole run writes, apart from options.json."""
        names = {LABEL_FILE}
        for shard in self.shards:
            names.update([shard.name, shard.grid_name] if self.save_type == 'npz' else shard.png_names)
        return names

    def shards_of(self, rank: int, ranks: int) -> list[Shard] | None:
        """The shards that one of several ranks must draw, in order; None: any rank may draw any shard."""
        return None

    def may_differ(self, earlier: dict) -> set[str]:
        """The paths of files with equal digests, and the seeds if the earlier run is the beginning of this one."""
        moved = {name for name, digest in MOVABLE.items()
                 if self.options.get(digest) and self.options[digest] == earlier.get(digest)}
        return super().may_differ(earlier) | moved | ({'seeds'} if self._continues(earlier.get('seeds')) else set())

    def _continues(self, earlier) -> bool:
        """Whether a run of the seeds `earlier` (as options.json has them) is the beginning of this one."""
        with contextlib.suppress(TypeError, ValueError):
            earlier = parse_int_list(earlier)
            beginning = self.seeds[:len(earlier)]
            if isinstance(earlier, range) and isinstance(beginning, range):
                return earlier == beginning
            return list(earlier) == list(beginning)
        return False

    def is_leftover(self, name: str) -> bool:
        """Whether a file is incomplete, or a part of a warm-up that is over when sampling begins."""
        return super().is_leftover(name) or WARMUP_LEFTOVER.fullmatch(name) is not None

    def is_complete(self, shard: Shard) -> bool:
        """Whether all files of `shard` exist and can be read to their end."""
        try:
            if self.save_type == 'png':
                return all(is_whole_png((self.path / name).read_bytes()) for name in shard.png_names)
            with open(self.path / shard.name, 'rb') as handle, np.load(handle, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}  # reading checks the CRC
        except (*DAMAGED, ValueError):
            return False
        samples = arrays.get('samples')
        return (samples is not None and samples.ndim == 4 and samples.dtype == np.uint8
                and all(len(array) == len(shard.seeds) for array in arrays.values())
                and (shard.index >= GRIDS or (self.path / shard.grid_name).is_file()))

    def last_file(self, shard: Shard) -> Path:
        """The file of `shard` that is written last."""
        return self.path / (shard.name if self.save_type == 'npz' else shard.png_names[-1])

    def write(self, shard: Shard, samples: np.ndarray, labels: np.ndarray | None, costs: dict) -> None:
        """Write a shard: samples uint8 [n, H, W, C], labels [n, K] one-hot or None, costs as arrays [n, ...]."""
        if self.save_type == 'png':
            for row, (name, image) in enumerate(zip(shard.png_names, samples)):
                texts = {COSTS: json.dumps({key: array[row].tolist() for key, array in costs.items()})} if costs else {}
                if labels is not None:
                    texts[LABEL] = str(labels[row].argmax())
                # Flushing takes ten times as long as writing; a run that resumes checks every picture anyway.
                with atomic_write(self.path / name, flush=False) as file:
                    file.write(png_bytes(image, texts))
            return
        if shard.index < GRIDS:  # before the shard, so that a complete shard has a complete grid
            with atomic_write(self.path / shard.grid_name) as file:
                file.write(png_bytes(image_grid(samples[:GRID_IMAGES])))
        arrays = dict(samples=samples) | ({} if labels is None else dict(label=labels)) | costs
        with atomic_write(self.path / shard.name) as file:
            np.savez(file, **arrays)  # compressing saves 3 % and takes twenty times as long


def read_report(outdir) -> dict:
    """The cost report that `write_report` left in `outdir`; {} if there is none. Raises ValueError or OSError."""
    return json.loads((Path(outdir) / OPTIONS_FILE).read_text()).get(REPORT, {})


def write_report(outdir, report: dict) -> None:
    """Put the cost report of a run into its options.json."""
    write_options(outdir, json.loads((Path(outdir) / OPTIONS_FILE).read_text()) | {REPORT: report})


def read_costs(outdir) -> Iterator[dict[str, np.ndarray]]:
    """Yields the costs of the samples in a folder, file by file: arrays [n, ...] by name."""
    outdir = Path(outdir)
    for path in sorted(outdir.glob('samples_*.npz')):
        with np.load(path, allow_pickle=False) as file:
            yield {name: file[name] for name in file.files if name not in ('samples', 'label')}
    for _, texts in _png_texts(outdir):
        yield {name: np.array([value]) for name, value in json.loads(texts.get(COSTS, '{}')).items()}


def write_labels(outdir) -> None:
    """Write the classes of a folder of PNG samples into dataset.json, if each of them has one."""
    labels = [[path.name, texts.get(LABEL)] for path, texts in _png_texts(Path(outdir))]
    if labels and all(label is not None for _, label in labels):
        content = dict(labels=[[name, int(label)] for name, label in labels])
        with atomic_write(Path(outdir) / LABEL_FILE) as file:
            file.write((json.dumps(content, indent=1) + '\n').encode())


def _png_texts(outdir: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    for path in sorted(path for path in outdir.glob('*.png') if path.stem.isdigit()):
        with PIL.Image.open(path, formats=['PNG']) as image:
            yield path, image.info
