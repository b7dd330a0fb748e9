"""From seeds to files: one engine that deals shards of seeds to processes, resumes, and writes in the background."""

import collections
import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from torch_utils import distributed as dist

from .folder import SampleFolder, Shard
from .writer import NonFiniteSample, Writer

__all__ = ['NonFiniteSample', 'Report', 'choose_seeds', 'reserve', 'run']

SEEDS = 2**32  # from here on they repeat, since generators take them modulo 2**32
_runs = itertools.count()  # all ranks call `run` equally often, so this number names the queue of a run


@dataclass(frozen=True)
class Report:
    """What a run did, over all ranks."""

    images: int  # asked for, and now complete
    drawn: int  # drawn by this call; the others existed already
    seconds: float


def choose_seeds(seeds: Sequence[int] | None, num_samples: int | None, seed: int | None) -> Sequence[int]:
    """`seeds`, or `num_samples` (50000) from `seed` (0) on. Raises ValueError for both, and from 2**32 on."""
    if seeds is not None and (num_samples is not None or seed is not None):
        raise ValueError('given together with --num_samples or --seed; use either')
    if seeds is None:
        first = seed or 0
        seeds = range(first, first + (50000 if num_samples is None else num_samples))
    largest = seeds[-1] if isinstance(seeds, range) else max(seeds, default=0)
    if largest >= SEEDS:
        raise ValueError(f'{largest} is too large; the largest seed is {SEEDS - 1}')
    return seeds


def run(stream: Callable[[Iterator[int], Callable], Iterable], folder: SampleFolder, *, overwrite: bool = False,
        decode: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Report:
    """Draw one sample per seed into the files of `folder`, on all ranks; call it on every rank.

    stream(seeds, progress) takes seeds from an iterator and yields pieces of any length in their order (objects like
    sampling.Samples); exceptions of both arguments pass through it and may end it. progress(images) says that this many
    more images' worth of work is done; 0 only shows life. `decode` turns states into images.

    Shards follow from the list of seeds, so the files do not depend on the number of ranks. A rank claims the next
    shard when its stream asks for more seeds than it has, so slow samples hold nobody up; at the end, ranks without
    work draw what others have not finished. Neither happens if the folder assigns shards to ranks.
    Complete files of an earlier call with equal options are kept; a folder that holds anything else is refused, unless
    `overwrite` removes its samples.
    Raises ValueError and OSError (folder), and NonFiniteSample, in which case nothing of the shard is written. If the
    folder is refused, rank 0 raises, and the other ranks exit silently.
    """
    started = time.time()
    with contextlib.ExitStack() as stack:
        def claim():
            locked = stack.enter_context(folder.lock())
            folder.prepare(overwrite, locked)

        dist.on_rank0(claim)
        key = f'samples/{next(_runs)}'
        drawn = _work(folder, stream, decode, key)
        dist.wait_for_all(f'{key}/done')
        drawn = int(dist.all_reduce_(torch.tensor(drawn)))
    return Report(sum(len(shard.seeds) for shard in folder.shards), drawn, time.time() - started)


@contextlib.contextmanager
def reserve(folder: SampleFolder, *, undecided: Sequence[str], overwrite: bool = False):
    """Keep a folder for a run that follows within the block, as `run` does; call it on every rank.

    For work before the run that writes files into the folder or decides options, which `undecided` names.
    Raises ValueError and OSError as `run` does.
    """
    with contextlib.ExitStack() as stack:
        def claim():
            stack.enter_context(folder.lock())
            if not overwrite:
                folder.check(undecided)

        dist.on_rank0(claim)
        yield


def _work(folder: SampleFolder, stream, decode, key: str) -> int:
    """Draw claimed shards until none is left, then help slower ranks; returns the images drawn for its own claims.

    A rank without work draws what others have not finished, last shards first, and stops as soon as they have: a sample
    follows from its seed, so both files are the same.
    """
    drawn = 0
    fixed = folder.shards_of(dist.get_rank(), dist.get_world_size())

    def claims(writer):
        nonlocal drawn
        for shard in _claimed(folder, key) if fixed is None else fixed:
            if folder.is_complete(shard):
                writer.skip(shard)
                continue
            folder.last_file(shard).unlink(missing_ok=True)  # from now on, existing files are complete
            drawn += len(shard.seeds)
            yield shard

    with Writer(folder) as writer:
        _draw_shards(folder, stream, decode, writer, claims(writer))
        if fixed is not None:
            return drawn
        dist.claim(f'{key}/ready')
        while dist.claimed(f'{key}/ready') < dist.get_world_size():
            index = dist.claim(f'{key}/help')
            if index >= len(folder.shards):
                break
            shard = folder.shards[-1 - index]
            if not folder.last_file(shard).exists():
                _draw_shards(folder, stream, decode, writer, iter([shard]), helping=True)
    return drawn


def _claimed(folder: SampleFolder, key: str) -> Iterator[Shard]:
    """The shards that this rank is the first to ask for."""
    while (index := dist.claim(key)) < len(folder.shards):
        yield folder.shards[index]


class _Overtaken(Exception):
    """Other ranks have finished everything that a stream is still working on."""


class _Seeds(Iterator[int]):
    """The seeds of shards, for a stream that asks for the next one whenever it has room.

    Raises _Overtaken if there is none while all shards `under_way` are on disk.
    """

    def __init__(self, folder: SampleFolder, shards: Iterator[Shard]):
        self.folder, self.shards = folder, shards
        self.under_way: collections.deque[Shard] = collections.deque()
        self._seeds = self._all()

    def _all(self) -> Iterator[int]:
        for shard in self.shards:
            self.under_way.append(shard)
            yield from shard.seeds

    def __next__(self) -> int:
        for seed in self._seeds:
            return seed
        self.check_overtaken()
        raise StopIteration

    def check_overtaken(self) -> None:
        if dist.get_world_size() > 1 and self.under_way and all(
                self.folder.last_file(shard).exists() for shard in reversed(self.under_way)):
            raise _Overtaken


def _draw_shards(folder: SampleFolder, stream, decode, writer: Writer, shards: Iterator[Shard],
                 helping: bool = False) -> None:
    """Feed one stream with the seeds of shards, and cut its samples into shards again."""
    seeds, pending, ahead = _Seeds(folder, shards), None, 0.0

    def progress(images: float) -> None:
        nonlocal ahead
        ahead += images
        if helping:
            seeds.check_overtaken()
        if seeds.under_way:
            writer.bar.show(seeds.under_way[0], ahead + (0 if pending is None else len(pending)))

    with contextlib.suppress(_Overtaken):
        for piece in stream(seeds, progress):
            pending, ahead = piece if pending is None else pending.followed_by(piece), 0.0
            while seeds.under_way and len(pending) >= len(seeds.under_way[0].seeds):
                shard = seeds.under_way.popleft()
                whole, pending = pending[:len(shard.seeds)], pending[len(shard.seeds):]
                writer.put(shard, whole, decode)
            progress(0)
