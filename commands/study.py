"""A study: rows that differ in one thing, what has been measured of them, and how they compare."""

import contextlib
import hashlib
import json
from dataclasses import replace

import click
import torch

from dnnlib import demo
from dnnlib.cli import blame
from dnnlib.files import only_a_picture, resolve_output
from dnnlib.int_lists import format_int_list
from dnnlib.run_folder import OPTIONS_FILE, RunFolder, read_options
from generation.costs import NAMES
from generation.folder import MOVABLE
from metrics.compare import run_options
from metrics.estimate import Estimate
from metrics.evaluate import Space, evaluate
from metrics.results import Results, summarise
from metrics.sources import open_source
from metrics.trainings import as_text, over_trainings
from torch_utils import distributed as dist

from .machine import Machine, start
from .measure import load_spaces
from .study_rows import Row

RESULTS, PICTURE = 'study.json', 'study.png'


class StudyFolder(RunFolder):
    """The folder of a study. Rows, metrics and blocks may be added later; rows of one name must be the same."""

    def __init__(self, path, options: dict):
        super().__init__(path, options, lambda options, name: name in (RESULTS, f'{RESULTS}.npz', PICTURE))

    def may_differ(self, earlier):
        return super().may_differ(earlier) | {'rows', 'blocks', 'metrics'}

    def check(self, undecided=()):
        super().check(undecided)
        rows, earlier = self.options['rows'], read_options(self.path / OPTIONS_FILE).get('rows', {})
        for name in rows.keys() & earlier.keys():
            now, before = identity(rows[name]), identity(earlier[name])
            for key in now | before:
                if now.get(key) != before.get(key):
                    raise ValueError(f'{self.path} holds the row {name} with other options ({key} was '
                                     f'{before.get(key)!r}, now {now.get(key)!r}); use another folder or --overwrite')
        self.options['rows'] = earlier | rows


class Study:
    """Rows with what decides each (`records`, entries of an options.json), and what has been measured of them."""

    def __init__(self, kind: str, label: str, rows: list[Row], records: dict[str, dict], opts: dict, spaces):
        self.kind, self.label, self.rows, self.records = kind, label, rows, json.loads(json.dumps(records))
        self.spaces: dict[str, Space] = spaces
        names = [row.name for row in rows]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise click.ClickException(f'two rows of this study would be called {repeated[0]}; rename the file or '
                                       'folder of one, or leave it out')
        self.num, self.blocks, self.seed = opts['num_samples'], opts['blocks'], opts.get('seed')
        self.against = opts['against'] or rows[0].name
        if self.against not in records:
            raise click.ClickException(f'--against: {self.against} is no row of this study ({", ".join(records)})')
        self.statistics = {ref: hashlib.sha256(space.ref.mu.tobytes() + space.ref.sigma.tobytes()).hexdigest()[:16]
                           for ref, space in spaces.items()}
        metrics = {metric: None for space in spaces.values() for metric in space.metrics}
        with blame('--outdir'):
            self.folder = StudyFolder(resolve_output(opts['outdir']), dict(
                study=kind, seed=self.seed, num_samples=self.num, blocks=self.blocks, batch=opts['batch'],
                statistics=[*self.statistics.values()], metrics=[*metrics], rows=records))
        self.results = Results(self.folder.path / RESULTS, writer='study.py')
        self.overwrite = opts['overwrite']

    @contextlib.contextmanager
    def claimed(self):
        """Keep the folder for this study while the block runs, with what an earlier call has measured."""
        with contextlib.ExitStack() as stack:
            def claim():
                stack.enter_context(self.folder.claim(self.overwrite))
                self.results.load()

            with blame('--outdir'):
                dist.on_rank0(claim)
            yield

    def key(self, row: Row, block: int, ref: str) -> str:
        """What decides the numbers of a block."""
        space = self.spaces[ref]
        text = json.dumps(identity(self.records[row.name]), sort_keys=True)
        return '|'.join(map(str, (row.name, hashlib.sha256(text.encode()).hexdigest()[:16], self.seed, block * self.num,
                                  self.num, space.detector.name, space.detector.fingerprint, self.statistics[ref])))

    def left(self) -> list[tuple[Row, int, dict[str, list[str]]]]:
        """(Row, block, metrics by statistics) of what has not been measured; the same on all ranks."""
        found = [(row, block, {ref: missing for ref, space in self.spaces.items()
                               if (missing := self.results.missing(self.key(row, block, ref), space))})
                 for row in self.rows for block in range(self.blocks)]
        decided = dist.broadcast_object([missing for _, _, missing in found])
        return [(row, block, missing) for (row, block, _), missing in zip(found, decided, strict=True) if missing]

    def measure(self, source, first: int, row: Row, block: int, missing: dict[str, list[str]], spent=dict, *,
                option: str, **how) -> None:
        """Measure a block, which begins at image `first` of `source`, and write it down.

        spent(): the report of costs; option: the one to blame for what is wrong with the images.
        """
        spaces = [self.spaces[ref].only(metrics) for ref, metrics in missing.items()]
        with blame(option):
            found = evaluate(source, spaces, first, self.num, **how)
        report = spent()
        each_cost = {name: Estimate(report[name]['mean']) for name in NAMES if name in report}
        for ref, values in zip(missing, found, strict=True):
            # Terms as the file keeps them, so that a study that resumes ends in the same numbers.
            kept = {name: each._replace(terms=None if each.terms is None else each.terms.float().double())
                    for name, each in values.items()}
            self.results.blocks.setdefault(self.key(row, block, ref), {}).update(kept | each_cost)
        with blame('--outdir'):
            dist.on_rank0(self.results.save)

    def report(self) -> None:
        """Print the tables, write the JSON and the picture; on rank 0."""
        seeds = {} if self.seed is None else dict(seeds=format_int_list(self.seeds))
        for ref, space in self.spaces.items():
            runs = {row.name: [self.results.found(self.key(row, block, ref), space) for block in range(self.blocks)]
                    for row in self.rows}
            options = [self.records[row.name] | seeds for row in self.rows]
            shown = demo.DEMO_STATS.name if ref == str(demo.DEMO_STATS) else ref
            summary = summarise(space, shown, runs, options, self.num, self.against)
            for row, result in zip(self.rows, summary['results'], strict=True):
                kept = [self.results.blocks[self.key(row, block, ref)] for block in range(self.blocks)]
                result['costs'] = {name: sum(block[name].value for block in kept) / self.blocks
                                   for name in NAMES if all(name in block for block in kept)}
            summary['study'] = dict(kind=self.kind, label=self.label, against=self.against,
                                    rows=[dict(name=row.name, x=row.x, group=row.group) for row in self.rows],
                                    groups=self._groups(runs, space))
            self.results.summaries.append(summary)
            click.echo(as_text(summary) + '\n')
        with blame('--outdir'):
            self.results.save()
        click.echo(self.folder.path / RESULTS)
        with only_a_picture(self.folder.path):
            from figures.canvas import save  # here: matplotlib is slow to import, or broken
            from figures.study import study_figure

            (self.folder.path / PICTURE).unlink(missing_ok=True)  # of earlier numbers
            save(study_figure(self.results.summaries), self.folder.path / PICTURE)
            click.echo(self.folder.path / PICTURE)

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.num * self.blocks)

    def _groups(self, runs, space) -> list[dict]:
        """Groups of trainings, compared with --against if that is a group of its own, else with its group."""
        groups = {}
        for row in self.rows:
            groups.setdefault(row.group or row.name, []).append(runs[row.name])
        if all(row.group is None for row in self.rows):
            return []
        base = next(row.group or row.name for row in self.rows if row.name == self.against)
        return over_trainings(groups, base, space.detector.distance, paired=True)


def measure_study(kind: str, label: str, rows: list[Row], opts: dict) -> None:
    """Measure and compare images that are there, a place for each row, on all ranks; the last act of a script."""
    machine = start(opts['device'], 'fp32')
    spaces = spaces_of(opts, machine)
    with blame('--images'):
        sources = {row.name: open_source(row.options['images']) for row in rows}
        for source in sources.values():
            source.choose(opts['num_samples'], opts['blocks'])
    records = {name: dict(seeds=(run_options(source.path) or {}).get('seeds'), images=str(source.path),
                          changed=source.path.stat().st_mtime_ns) for name, source in sources.items()}
    study = Study(kind, label, rows, records, opts, spaces)
    with study.claimed():
        for row, block, missing in study.left():
            study.measure(sources[row.name], block * study.num, row, block, missing, option='--images',
                          batch=opts['batch'], desc=row.name)
        if dist.get_rank() == 0:
            study.report()
    dist.shutdown()


def spaces_of(opts: dict, machine: Machine) -> dict[str, Space]:
    """What is measured, in float32 whatever the precision of the networks."""
    return load_spaces(opts['refs'], opts['metrics'], replace(machine, dtype=torch.float32), opts['weights'],
                       opts['allow_code'])


def identity(record: dict) -> dict:
    """The entries of a row's options that decide its images: a file is known by its digest, wherever it lies."""
    return {name: value for name, value in record.items() if not record.get(MOVABLE.get(name, ''))}
