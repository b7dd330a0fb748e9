"""A study from the command line: each row drawn from the same seeds, and measured in memory, or kept if asked for."""

import functools
import re

import click

from dnnlib.cli import blame
from generation import costs
from generation.folder import SampleFolder
from generation.run import choose_seeds, run
from metrics.sources import open_source
from torch_utils import distributed as dist
from torch_utils.progress import progress

from . import samplers
from .draw import LOWER_WEIGHT, none_broken
from .in_memory import Drawn
from .loading import Loaded, load_network
from .machine import start
from .measure import refuse_tf32
from .prepare import Prepared, prepare
from .study import Study, spaces_of
from .study_rows import Row

SAMPLES = 'samples'  # folder of what --keep keeps
OF_ROWS = ('discriminator_ckpt', 'lora_checkpoint', 'lora_rank')  # what a training brings


def draw_study(kind: str, label: str, rows: list[Row], opts: dict) -> None:
    """Draw, measure and compare rows of options of generate.py, on all ranks; the last act of a script."""
    check_options(rows, opts)
    machine = start(opts['device'], opts['precision'], opts['compile_mode'])
    spaces = spaces_of(opts, machine)
    network = load_network(opts, machine)
    with blame('--seed'):
        seeds = choose_seeds(range(opts['seed'], opts['seed'] + opts['num_samples'] * opts['blocks']), None, None)
    block = seeds[:opts['num_samples']]  # it decides whether to compile, so that more blocks can be added

    def ready(row: Row) -> Prepared:
        given = opts | row.options
        prepared = prepare(samplers.settle(given | dict(seeds=block, num_samples=None, seed=None)), block, machine,
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


def check_options(rows: list[Row], opts: dict) -> None:
    """Refuse options that a study of these rows cannot have."""
    refuse_tf32(opts['precision'])
    for name in OF_ROWS:
        if opts[name] and any(name in row.options for row in rows):
            raise click.ClickException(f'--{name}: each row has its own, from --training; leave it out')
    count = opts['num_particles']
    if opts['num_samples'] % count and not opts['select']:
        raise click.ClickException(f'--num_samples: must be a multiple of {count}, the particles of a group')


def draw_row(study: Study, row: Row, blocks: list, prepared: Prepared, network: Loaded, opts: dict, bar) -> None:
    """Draw and measure `blocks` of a row, pairs of number and missing metrics as in `Study.left`."""
    kept = keep(study, row, prepared, network, opts) if opts['keep'] else None
    for block, missing in blocks:
        first = block * study.num
        bar.begin(row.name if study.blocks == 1 else f'{row.name}, block {block + 1}/{study.blocks}', study.num)
        with none_broken(LOWER_WEIGHT):
            if kept is None:
                of_block = SampleFolder(study.folder.path, study.seeds[first:first + study.num], opts['batch'],
                                        prepared.record)  # says what is drawn; nothing is written
                drawn = Drawn(prepared.stream, of_block, network.value.decode, row.name, bar.advance)
                study.measure(drawn, 0, row, block, missing, drawn.report, option='--network',
                              batch=opts['batch'], shown=False)
            else:
                study.measure(open_source(kept), first, row, block, missing, functools.partial(report_of, kept),
                              option='--network', batch=opts['batch'])
        bar.end()


def keep(study: Study, row: Row, prepared: Prepared, network: Loaded, opts: dict):
    """Draw the samples of a row into a folder of their own, as generate.py does; its path."""
    path = study.folder.path / SAMPLES / re.sub(r'[^\w.-]+', '_', row.name)
    with blame('--outdir'), none_broken(LOWER_WEIGHT):
        folder = SampleFolder(path, study.seeds, opts['batch'], prepared.record)
        run(prepared.stream, folder, overwrite=opts['overwrite'], decode=network.value.decode)
    return path


def report_of(path) -> dict:
    """What the images of a folder have cost."""
    return costs.make_report(costs.collect(path), precision='')


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
