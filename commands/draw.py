"""A sampling run from the command line: samples into a folder, messages on the screen, costs into options.json."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import click

from dnnlib.cli import blame, command_line
from dnnlib.run_folder import COMMAND
from generation import costs
from generation.folder import SampleFolder, read_report, write_labels, write_report
from generation.run import NonFiniteSample, Report, run
from torch_utils import distributed as dist

LOWER_WEIGHT = 'a lower --dg_weight_1st_order or --precision=fp32'  # what may help against samples of NaN


@dataclass
class Taker:
    """The object of a command's context whose `take` gets what `draw` was given, instead of a folder."""

    take: Callable[[Callable, SampleFolder, Callable | None], None]


def open_folder(outdir, seeds, opts: dict, record: dict) -> SampleFolder:
    """The folder of a run: its shards and its options.json."""
    with blame('--outdir'):
        return SampleFolder(outdir, seeds, opts['batch'], record, opts['save_type'])


def draw(stream, folder: SampleFolder, *, decode=None, overwrite: bool = False, remedy: str = '--precision=fp32',
         details: Callable[[dict], dict] | None = None, describe: Callable[[dict], str] | None = None) -> None:
    """Run `stream` into `folder` on all ranks, then write and show the cost report; the last act of a script.

    remedy: what may help against samples of NaN; details(costs) adds to the report, describe(report) to what is shown
    of it. If the command is run by `in_memory.run_in_memory`, its images are taken there, and nothing is written.
    """
    folder.options[COMMAND] = command_line()
    taker = click.get_current_context().find_object(Taker)
    with none_broken(remedy):
        if taker is not None:
            return taker.take(stream, folder, decode)
        dist.print0(f'Drawing {len(folder.seeds)} images to {folder.path}')
        with blame('--outdir'):
            result = run(stream, folder, overwrite=overwrite, decode=decode)
    if dist.get_rank() == 0:
        print(f'{result.images} images in {folder.path}, {result.drawn} of them new, in {result.seconds:.1f} s')
        with blame('--outdir'):
            _finish(folder, result, details, describe)
    dist.shutdown()


@contextlib.contextmanager
def none_broken(remedy: str) -> Iterator[None]:
    """Turn a sample of NaN into one line, with what may help."""
    try:
        yield
    except NonFiniteSample as error:
        raise click.ClickException(f'--network: {error}; {remedy} may help; if not, the checkpoint is broken') from None


def _finish(folder: SampleFolder, result: Report, details, describe) -> None:
    """Write the classes of PNG files; write and show the report."""
    if folder.save_type == 'png':
        write_labels(folder.path)
    found = costs.collect(folder.path)
    if 'nfe' not in found:  # an earlier version drew all of them
        return
    earlier = read_report(folder.path)
    report = costs.make_report(found, folder.options['precision'],
                               wall_sec=earlier.get('wall_sec', 0.0) + (result.seconds if result.drawn else 0.0),
                               timed_images=earlier.get('timed_images', 0) + result.drawn)
    report |= details(found) if details else {}
    if report != earlier:
        write_report(folder.path, report)
    print(costs.format_report(report) + (f'\n{describe(report)}' if describe else ''), flush=True)
