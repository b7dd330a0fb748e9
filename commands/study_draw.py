"""A study from the command line: each row drawn from the same seeds, and measured in memory, or kept if asked for."""

import contextlib
import functools
import re

import click

from dnnlib.cli import blame
from generation import costs
from generation.folder import SampleFolder
from generation.run import NonFiniteSample, choose_seeds, run
from metrics.sources import open_source
from torch_utils import distributed as dist
from torch_utils.progress import progress

from . import samplers
from .in_memory import Drawn
from .loading import Loaded, load_network
from .machine import start
from .prepare import Prepared, prepare
from .study import Study, spaces_of
from .study_rows import Row

SAMPLES = 'samples'  # folder of what --keep keeps


def draw_study(kind: str, label: str, rows: list[Row], opts: dict) -> None:
    """Draw, measure and compare rows of options of generate.py, on all ranks; the last act of a script."""
    machine = start(opts['device'], opts['precision'], opts['compile_mode'])
    spaces = spaces_of(opts, machine)
    network = load_network(opts, machine)
    with blame('--seed'):
        seeds = choose_seeds(range(opts['seed'], opts['seed'] + opts['num_samples'] * opts['blocks']), None, None)

    def ready(row: Row) -> Prepared:
        given = opts | row.options
        prepared = prepare(samplers.settle(given | dict(seeds=seeds, num_samples=None, seed=None)), seeds, machine,
                           network)
        trained_on, used = given.get('classifier_of_run'), prepared.record.get('classifier_sha256')
        if None not in (trained_on, used) and trained_on != used:
            raise click.ClickException(f'--pretrained_classifier_ckpt: {row.name} was trained on another classifier '
                                       f'({trained_on}, this one is {used}); name that one')
        return prepared

    study = Study(kind, label, rows, {row.name: ready(row).record for row in rows}, opts, spaces)
    with study.claimed():
        left = study.left()
        bar = StudyBar(len(left) * study.num, shown=not opts['keep'])
        for row in rows:
            blocks = [(block, missing) for other, block, missing in left if other is row]
            if blocks or opts['keep']:
                draw_row(study, row, blocks, ready(row), network, opts, bar)
        bar.close()
        if dist.get_rank() == 0:
            study.report()
    dist.shutdown()


def draw_row(study: Study, row: Row, blocks: list, prepared: Prepared, network: Loaded, opts: dict, bar) -> None:
    """Draw and measure `blocks` of a row, pairs of number and missing metrics as in `Study.left`."""
    kept = keep(study, row, prepared, network, opts) if opts['keep'] else None
    for block, missing in blocks:
        first = block * study.num
        bar.begin(row.name if study.blocks == 1 else f'{row.name}, block {block + 1}/{study.blocks}', study.num)
        with none_broken():
            if kept is None:
                of_block = SampleFolder(study.folder.path, study.seeds[first:first + study.num], opts['batch'],
                                        prepared.record)  # says what is drawn; nothing is written
                drawn = Drawn(prepared.stream, of_block, network.value.decode, row.name, bar.advance)
                study.measure(drawn, 0, row, block, missing, drawn.report, batch=opts['batch'], shown=False)
            else:
                study.measure(open_source(kept), first, row, block, missing, functools.partial(report_of, kept),
                              batch=opts['batch'])
        bar.end()


def keep(study: Study, row: Row, prepared: Prepared, network: Loaded, opts: dict):
    """Draw the samples of a row into a folder of their own, as generate.py does; its path."""
    path = study.folder.path / SAMPLES / re.sub(r'[^\w.-]+', '_', row.name)
    with blame('--outdir'), none_broken():
        folder = SampleFolder(path, study.seeds, opts['batch'], prepared.record)
        run(prepared.stream, folder, overwrite=opts['overwrite'], decode=network.value.decode)
    return path


def report_of(path) -> dict:
    """What the images of a folder have cost."""
    return costs.make_report(costs.collect(path), precision='')


@contextlib.contextmanager
def none_broken():
    """Turn a sample of NaN into one line."""
    try:
        yield
    except NonFiniteSample as error:
        raise click.ClickException(f'--network: {error}; a lower --dg_weight_1st_order or --precision=fp32 may help, '
                                   f'else the checkpoint is broken') from None


class StudyBar:
    """Progress over all blocks that are left, seen from rank 0, whose part may be the largest."""

    def __init__(self, total: int, shown: bool):
        self.bar = progress(total=total, shown=shown)
        self.last = self.first = self.drawn = 0

    def begin(self, name: str, images: int) -> None:
        self.bar.set_description(name)
        self.first, self.last, self.drawn = self.last, self.last + images, 0

    def advance(self, images: float) -> None:
        """This many more images' worth of work of this rank is done."""
        dist.sign_of_life()
        self.drawn += images * dist.get_world_size()
        self._move(min(self.first + int(self.drawn), self.last))

    def end(self) -> None:
        self._move(self.last)

    def close(self) -> None:
        self.bar.close()

    def _move(self, position: int) -> None:
        if position > self.bar.n:
            self.bar.update(position - self.bar.n)
