"""From seeds to files: deals batches to processes, resumes, and writes in the background."""

import collections
import contextlib
import functools
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from torch_utils import distributed as dist
from torch_utils.images import to_uint8
from torch_utils.progress import progress

from .folder import SampleFolder, Shard

Tick = Callable[[float], None]  # told which fraction of a batch is drawn
SEEDS = 2**32  # from here on they repeat: generators take them modulo 2**32
QUEUE_DEPTH = 2  # batches that wait for the writer; more would only hold memory
_runs = itertools.count()  # all ranks call `run` equally often, so this names a run's queue of work


class NonFiniteSample(ArithmeticError):
    """A sample holds NaN or infinity; the message names its seed."""


@dataclass(frozen=True)
class Samples:
    """What one batch gives: images [n, C, H, W] in about [-1, 1], labels [n, K] or None, more arrays [n, ...]."""

    images: torch.Tensor
    labels: torch.Tensor | None = None
    extra: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> 'Samples':
        labels = None if self.labels is None else self.labels[rows]
        return Samples(self.images[rows], labels, {name: array[rows] for name, array in self.extra.items()})

    def followed_by(self, other: 'Samples') -> 'Samples':
        """Both, one after the other."""
        labels = None if self.labels is None else torch.cat([self.labels, other.labels])
        return Samples(torch.cat([self.images, other.images]), labels,
                       {name: np.concatenate([self.extra[name], other.extra[name]]) for name in self.extra})


@dataclass(frozen=True)
class Report:
    """What a run did, over all ranks."""

    images: int  # asked for, and now all there
    drawn: int  # drawn by this call; the rest was there already
    seconds: float


def choose_seeds(seeds: Sequence[int] | None, num_samples: int | None, seed: int | None) -> Sequence[int]:
    """`seeds`, or `num_samples` (50000) from `seed` (0) on. Raises ValueError for both, and from 2**32 on."""
    if seeds is not None and (num_samples is not None or seed is not None):
        raise ValueError('given together with --num_samples or --seed; use one of the two ways')
    if seeds is None:
        first = seed or 0
        seeds = range(first, first + (50000 if num_samples is None else num_samples))
    largest = seeds[-1] if isinstance(seeds, range) else max(seeds, default=0)
    if largest >= SEEDS:
        raise ValueError(f'{largest} is too large; the largest seed is {SEEDS - 1}')
    return seeds


def run(sample_batch: Callable[[list[int], Tick], Samples], seeds: Sequence[int], outdir, *, batch: int,
        options: dict, save_type: str = 'npz', overwrite: bool = False, pad: bool = False) -> Report:
    """Draw one sample per seed into files below `outdir`, on all ranks; call it on every rank.

    sample_batch(seeds, tick) draws one batch; it may call tick(fraction) as the batch proceeds, which shows others that
    this rank is at work.
    Batches are fixed by position in `seeds`, so the files do not depend on the number of ranks, and ranks claim
    them from a shared queue. Complete files of an earlier call with equal `options` are kept; a folder with
    other options or foreign samples is refused, unless `overwrite` removes them. `pad` repeats the last seed
    to fill the last batch, so that sample_batch sees one shape. Sampling goes on while files are written.
    Raises ValueError and OSError (folder), and NonFiniteSample, where nothing of the batch is written. Where the
    folder is refused, rank 0 raises, and the other ranks exit without a word.
    """
    return _run(lambda folder, key: _work(folder, sample_batch, key, min(batch, len(seeds)) if pad else 0),
                SampleFolder(outdir, seeds, batch, options, save_type), overwrite)


def run_stream(sample_stream: Callable[[Iterator[int]], Iterable[Samples]], seeds: Sequence[int], outdir, *,
               batch: int, options: dict, save_type: str = 'npz', overwrite: bool = False) -> Report:
    """As `run`, for a sampler that takes its next seed when it has room for it.

    sample_stream(seeds) draws from an iterator of seeds and yields pieces in their order, of any length. A rank
    claims the next shard when its sampler asks for a seed beyond those it has, so slow samples hold nobody up.
    At the end ranks without work draw what others have not finished. The sampler has to ask again, and to let the
    exception pass that then ends it.
    """
    return _run(lambda folder, key: _work_stream(folder, sample_stream, key),
                SampleFolder(outdir, seeds, batch, options, save_type), overwrite)


@contextlib.contextmanager
def reserve(seeds: Sequence[int], outdir, *, batch: int, options: dict, undecided: Sequence[str],
            save_type: str = 'npz', overwrite: bool = False):
    """Keep `outdir` for a run that follows within the block, as `run` does; call it on every rank.

    For work that comes before the run and ends in files of the folder or in options, those named in `undecided`.
    Raises ValueError and OSError as `run` does.
    """
    folder = SampleFolder(outdir, seeds, batch, options, save_type)
    with contextlib.ExitStack() as stack:
        def claim():
            stack.enter_context(folder.lock())
            if not overwrite:
                folder.check(undecided)

        dist.on_rank0(claim)
        yield


def _run(work: Callable[[SampleFolder, str], int], folder: SampleFolder, overwrite: bool) -> Report:
    started = time.time()
    with contextlib.ExitStack() as stack:
        def claim():
            locked = stack.enter_context(folder.lock())
            folder.prepare(overwrite, locked)

        dist.on_rank0(claim)
        key = f'samples/{next(_runs)}'
        drawn = work(folder, key)
        dist.wait_for_all(f'{key}/done')
        drawn = int(dist.all_reduce_(torch.tensor(drawn)))
    return Report(sum(len(shard.seeds) for shard in folder.shards), drawn, time.time() - started)


def _work(folder: SampleFolder, sample_batch, key: str, padded: int) -> int:
    """Claim shards until none is left; the number of images drawn by this rank."""
    drawn = 0
    with Writer(folder) as writer:
        while (index := dist.claim(key)) < len(folder.shards):
            shard = folder.shards[index]
            if folder.is_complete(shard):
                writer.skip(shard)
                continue
            seeds = list(shard.seeds)
            seeds += seeds[-1:] * (padded - len(seeds))
            writer.put(shard, sample_batch(seeds, functools.partial(writer.bar.tick, shard)))
            drawn += len(shard.seeds)
    return drawn


def _work_stream(folder: SampleFolder, sample_stream, key: str) -> int:
    """Draw claimed shards until none is left, then help slower ranks; the images of this rank's claims drawn anew.

    A sampler works at several shards at once, so a slow rank would keep all others waiting for as many. Therefore a
    rank without work draws, last ones first, what others have not finished, and whoever is second stops: a sample
    follows from its seed, so both files are the same.
    """
    drawn = 0

    def claims(writer):
        nonlocal drawn
        while (index := dist.claim(key)) < len(folder.shards):
            shard = folder.shards[index]
            if folder.is_complete(shard):
                writer.skip(shard)
                continue
            if folder.last_file(shard).exists():
                folder.last_file(shard).unlink()  # from now on, what is there is complete
            drawn += len(shard.seeds)
            yield shard

    with Writer(folder) as writer:
        _draw_shards(folder, sample_stream, writer, claims(writer))
        dist.claim(f'{key}/ready')
        while dist.claimed(f'{key}/ready') < dist.get_world_size():
            index = dist.claim(f'{key}/help')
            if index >= len(folder.shards):
                break
            shard = folder.shards[-1 - index]
            if not folder.last_file(shard).exists():
                _draw_shards(folder, sample_stream, writer, iter([shard]))
    return drawn


class _Overtaken(Exception):
    """Other ranks have finished all that a sampler still works at."""


class _Seeds(Iterator[int]):
    """The seeds of shards, for a sampler that asks for the next one whenever it has room.

    Raises _Overtaken when it asks in vain while all shards `under_way` are on disk.
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
        if dist.get_world_size() > 1 and self.under_way and all(
                self.folder.last_file(shard).exists() for shard in reversed(self.under_way)):
            raise _Overtaken
        raise StopIteration


def _draw_shards(folder: SampleFolder, sample_stream, writer: 'Writer', shards: Iterator[Shard]) -> None:
    """Feed one sampler with the seeds of shards, and cut what it yields into shards again."""
    seeds, pending = _Seeds(folder, shards), None
    with contextlib.suppress(_Overtaken):
        for piece in sample_stream(seeds):
            pending = piece if pending is None else pending.followed_by(piece)
            while seeds.under_way and len(pending) >= len(seeds.under_way[0].seeds):
                shard = seeds.under_way.popleft()
                writer.put(shard, pending[:len(shard.seeds)])
                pending = pending[len(shard.seeds):]
            if seeds.under_way:
                writer.bar.tick(seeds.under_way[0], len(pending) / len(seeds.under_way[0].seeds))


class Writer:
    """Writes shards on a thread of its own; an error there is raised by the next `put` or at the end.

    Waits for a device's copy where it runs, so the sampling thread never does.
    """

    def __init__(self, folder: SampleFolder):
        self._folder = folder
        self.bar = _Bar(folder)
        self._queue: queue.Queue = queue.Queue(QUEUE_DEPTH)
        self._error: Exception | None = None
        self._device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self._thread = threading.Thread(target=self._loop, name='writer', daemon=True)

    def __enter__(self) -> 'Writer':
        self._thread.start()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._queue.put(None)
        self._thread.join()
        self.bar.close(complete=kind is None and self._error is None)
        if kind is None:
            self._raise()

    def put(self, shard: Shard, samples: Samples) -> None:
        """Hand over a batch (rows beyond the shard's seeds are padding); waits while the queue is full."""
        self._raise()
        tensors = dict(samples=samples.images)
        if samples.labels is not None:
            tensors['label'] = samples.labels
        tensors |= {name: torch.as_tensor(value) for name, value in samples.extra.items()}
        self._queue.put((shard, *_start_copy({name: t[:len(shard.seeds)] for name, t in tensors.items()})))

    def skip(self, shard: Shard) -> None:
        """Count a shard that was there already."""
        self._raise()
        self._queue.put((shard, None, None))

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _loop(self) -> None:
        if self._device is not None:  # a thread begins on the first GPU, and would take memory there on every rank
            torch.cuda.set_device(self._device)
        while (item := self._queue.get()) is not None:
            if self._error is None:  # after an error the queue is only emptied, so that `put` never hangs
                try:
                    self._write(*item)
                except Exception as error:  # reaches the sampling thread
                    self._error = error

    def _write(self, shard: Shard, tensors: dict[str, torch.Tensor] | None, copied) -> None:
        if tensors is not None:
            if copied is not None:
                copied.synchronize()
            images = tensors.pop('samples')
            finite = images.isfinite().flatten(1).all(1)
            if not finite.all():
                seed = shard.seeds[int(finite.logical_not().nonzero()[0])]
                raise NonFiniteSample(f'the sample of seed {seed} holds NaN or infinity')
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            labels = arrays.pop('label', None)
            self._folder.write(shard, np.ascontiguousarray(to_uint8(images)), labels, arrays)
        self.bar.advance(shard, drawn=tensors is not None)


class _Bar:
    """Progress over the whole run, seen from rank 0: shards are claimed in order, so those before are under way."""

    def __init__(self, folder: SampleFolder):
        self._ends = list(itertools.accumulate(len(shard.seeds) for shard in folder.shards))
        self._bar = progress(total=self._ends[-1], desc=folder.path.name)
        self._lock = threading.Lock()  # the sampling thread ticks, the writer advances

    def tick(self, shard: Shard, fraction: float) -> None:
        """So much of `shard` is drawn."""
        dist.show_life()
        self._move(self._ends[shard.index] - int((1 - fraction) * len(shard.seeds)) - 1, drawn=True)

    def advance(self, shard: Shard, drawn: bool) -> None:
        """`shard` is on disk; `drawn` by this run, or found there, which does not count in the rate."""
        self._move(self._ends[shard.index], drawn)

    def _move(self, position: int, drawn: bool) -> None:
        with self._lock:
            step = position - self._bar.n
            if self._bar.disable or step <= 0:
                return
            if drawn:
                self._bar.update(step)
            else:
                self._bar.n += step
                self._bar.initial += step
                self._bar.last_print_n += step

    def close(self, complete: bool) -> None:
        """Fill the bar where all went well: `run` waits for the batches that other ranks still draw."""
        if complete:
            self._move(self._ends[-1], False)
            self._bar.refresh()
        self._bar.close()


def _start_copy(tensors: dict[str, torch.Tensor]):
    """Begin to copy tensors to the host; (host tensors, the event to wait for or None)."""
    device = next((t.device for t in tensors.values() if t.device.type == 'cuda'), None)
    if device is None:
        return {name: tensor.detach() for name, tensor in tensors.items()}, None
    host = {}
    for name, tensor in tensors.items():
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host[name] = pinned.copy_(tensor.detach(), non_blocking=True)
    event = torch.cuda.Event(blocking=True)  # else the writer's waiting takes a core
    event.record(torch.cuda.current_stream(device))
    return host, event
