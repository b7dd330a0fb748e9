"""A sampling command whose images go to a function of this process; nothing is written."""

import contextlib
import hashlib
import itertools
import json
import runpy
import tempfile
import time
from collections.abc import Callable, Sequence

import click
import torch

from dnnlib.demo import ROOT
from generation import costs
from generation.folder import SampleFolder
from generation.run import NonFiniteSample
from metrics.sources import ImageSource
from metrics.stream import ImageStream
from torch_utils import distributed as dist

from .draw import Taker

_passes = itertools.count()  # all ranks begin equally many, so this names one


class Drawn(ImageSource):
    """The images of a sampling run, as metrics read them: drawn when a pass asks for them, and not kept.

    options: what options.json would say. batch: images that the run draws together; a pass has to begin and end at
    multiples of it and read that many at a time, since the seeds of some samplers belong together. Each rank draws its
    part of the pass. progress(images): this many more images' worth of this rank's work is done.
    """

    def __init__(self, stream, folder: SampleFolder, decode: Callable[[torch.Tensor], torch.Tensor] | None, name: str,
                 progress: Callable[[float], None] = lambda images: None):
        super().__init__(None, len(folder.seeds))
        self._stream, self._decode, self._name, self._progress = stream, decode, name, progress
        self.seeds, self.options, self.batch = folder.seeds, folder.options, len(folder.shards[0].seeds)
        self._counts = torch.zeros([len(costs.NAMES), len(self)], dtype=torch.int64)  # zero where others draw
        self._seconds, self._drawn = 0.0, 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def identity(self) -> str:
        return hashlib.sha256(json.dumps(self.options).encode()).hexdigest()

    def batches(self, start, stop, batch):
        yield from ImageStream(self._draw(start, stop)).batches(0, stop - start, batch)
        dist.wait_for_all(f'drawn/{next(_passes)}')  # a collective would not wait as long

    def _draw(self, start: int, stop: int):
        """Yields images [n, C, H, W] of the seeds at positions start to stop - 1. Raises NonFiniteSample."""
        def progress(images: float) -> None:
            dist.sign_of_life()
            self._progress(images)

        began = time.monotonic()
        for samples in self._stream(iter(self.seeds[start:stop]), progress):
            images = samples.images if self._decode is None else self._decode(samples.images)
            wrong = images.isfinite().flatten(1).all(1).logical_not().nonzero()
            if len(wrong):
                raise NonFiniteSample(f'the sample of seed {self.seeds[start + int(wrong[0])]} holds NaN or infinity')
            for counts, name in zip(self._counts, costs.NAMES, strict=True):
                counts[start:start + len(images)] = torch.as_tensor(samples.costs[name])
            start += len(images)
            self._drawn += len(images)
            self._seconds += time.monotonic() - began
            yield images
            began = time.monotonic()

    def report(self) -> dict | None:
        """What the images have cost, as options.json says it; None before all are drawn. Call it once on every rank."""
        dist.all_reduce_(self._counts)
        drawn = int(dist.all_reduce_(torch.tensor(self._drawn)))
        if drawn < len(self):
            return None
        found = dict(zip(costs.NAMES, self._counts.numpy(), strict=True))
        return costs.make_report(found, self.options['precision'], wall_sec=self._seconds, timed_images=drawn)


def block_length(drawn: Drawn, blocks: int) -> int:
    """Images of each of `blocks` equal blocks, which are whole batches. Raises click's error if there are none."""
    count = len(drawn) // blocks
    if len(drawn) % blocks or blocks > 1 and count % drawn.batch:
        raise click.ClickException(f'--blocks: {len(drawn)} images in batches of {drawn.batch} are not {blocks} equal '
                                   'blocks of whole batches; change --seeds or --batch of the sampling command')
    return count


def sampling_context(words: Sequence[str], take: Callable[[Drawn], None]) -> click.Context:
    """The context of a sampling command, such as ['generate.py', '--steps=9', '--seeds=0-999'], checked but not begun.

    `run_in_memory` runs it, in a `with` of the context, whose end removes what the run left. Raises click's errors for
    another command, for options that it does not know, and for --likelihood, which draws no images.
    """
    scripts = {path.name: path for path in sorted(ROOT.glob('generate*.py'))}
    script, *arguments = words or ['']
    if script not in scripts:
        raise click.ClickException(f'COMMAND: {script or "nothing"} is not a sampling script; use one of '
                                   f'{", ".join(scripts)}, and its options')
    if any(word.partition('=')[0] == '--outdir' for word in arguments):
        raise click.ClickException('COMMAND: --outdir: no images are saved here; leave it out')
    name = scripts[script].stem
    command = runpy.run_path(str(scripts[script]), run_name=name)['main']
    taker = Taker(lambda stream, folder, decode: take(Drawn(stream, folder, decode, name)))
    with contextlib.ExitStack() as stack:
        # The folder is for what a run leaves beside its samples, such as the warm-up of DiffRS.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='samples-'))
        context = command.make_context(script, arguments, obj=taker, default_map=dict(outdir=folder))
        if context.params.get('data'):
            raise click.ClickException('COMMAND: --likelihood: draws no images; run the script itself')
        context.call_on_close(stack.pop_all().close)
    return context


def run_in_memory(context: click.Context) -> None:
    """Run the command of `sampling_context`, on every rank; its errors are those of the script."""
    context.command.invoke(context)
