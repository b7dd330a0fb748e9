"""Writes finished samples on its own thread, and shows the progress of the run."""

import itertools
import queue
import threading

import numpy as np
import torch

from torch_utils import distributed as dist
from torch_utils.images import to_uint8
from torch_utils.progress import progress

from .folder import SampleFolder, Shard

QUEUE_DEPTH = 2  # shards that may wait for the writer; more would only take memory


class NonFiniteSample(ArithmeticError):
    """A sample holds NaN or infinity; the message names its seed."""


class Writer:
    """Writes shards in the background; an error there is raised by the next `put` or at the end.

    Its thread waits for copies from the device, so the sampling thread need not.
    """

    def __init__(self, folder: SampleFolder):
        self._folder = folder
        self.bar = RunBar(folder)
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

    def put(self, shard: Shard, samples, decode=None) -> None:
        """Hand over the samples of a shard (`.images`, `.labels`, `.costs`); waits while the queue is full.

        `decode` turns states into images, on the calling thread.
        """
        self._raise()
        tensors = dict(samples=samples.images if decode is None else decode(samples.images))
        if samples.labels is not None:
            tensors['label'] = samples.labels
        tensors |= {name: torch.as_tensor(value) for name, value in samples.costs.items()}
        self._queue.put((shard, *_start_copy(tensors)))

    def skip(self, shard: Shard) -> None:
        """Count a shard that exists already."""
        self._raise()
        self._queue.put((shard, None, None))

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _loop(self) -> None:
        if self._device is not None:  # a new thread is on the first GPU, and every rank would take memory there
            torch.cuda.set_device(self._device)
        while (item := self._queue.get()) is not None:
            if self._error is None:  # after an error the queue is only emptied, so that `put` does not hang
                try:
                    self._write(*item)
                except Exception as error:  # raised in the sampling thread
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


class RunBar:
    """Progress of the whole run as rank 0 sees it: shards are claimed in order, so earlier ones are under way."""

    def __init__(self, folder: SampleFolder):
        self._ends = list(itertools.accumulate(len(shard.seeds) for shard in folder.shards))
        self._bar = progress(total=self._ends[-1], desc=folder.path.name)
        self._lock = threading.Lock()  # the sampling thread calls show, the writer advance

    def show(self, shard: Shard, drawn: float) -> None:
        """`drawn` images of `shard` are done, but not yet on disk."""
        dist.sign_of_life()
        self._move(self._ends[shard.index] - len(shard.seeds) + int(min(drawn, len(shard.seeds) - 1)), drawn=True)

    def advance(self, shard: Shard, drawn: bool) -> None:
        """`shard` is on disk: `drawn` by this run, or found there, which does not count in the rate."""
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
        """Fill the bar if all went well: other ranks may still be drawing the last shards."""
        if complete:
            self._move(self._ends[-1], False)
            self._bar.refresh()
        self._bar.close()


def _start_copy(tensors: dict[str, torch.Tensor]):
    """Start copying tensors to the host: (host tensors, the event to wait for or None)."""
    device = next((t.device for t in tensors.values() if t.device.type == 'cuda'), None)
    if device is None:
        return {name: tensor.detach() for name, tensor in tensors.items()}, None
    host = {}
    for name, tensor in tensors.items():
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host[name] = pinned.copy_(tensor.detach(), non_blocking=True)
    event = torch.cuda.Event(blocking=True)  # otherwise the waiting writer takes a core
    event.record(torch.cuda.current_stream(device))
    return host, event
