"""What the measuring scripts share: options of detectors, statistics with their detectors, a pass over all images."""

import click

from dnnlib import demo
from dnnlib.cli import blame
from dnnlib.download import fetch
from dnnlib.files import check_writable, resolve_output
from metrics.detectors import DETECTORS, load_detector
from metrics.estimate import Estimate
from metrics.evaluate import METRICS, Space, choose_metrics, evaluate, possible
from metrics.reference import load_reference
from metrics.results import Results, as_text, block_key, summarise
from torch_utils import distributed as dist
from torch_utils.device import PRECISIONS

from .machine import Machine

REF = click.option('--ref', 'refs', help='Statistics, each of another detector; default: the shipped ones. Repeatable',
                   metavar='NPZ|URL', type=str, multiple=True)
SPACE_OPTIONS = [
    REF,
    click.option('--metrics', 'names', help=f'Comma-separated: {", ".join(METRICS)}, or fid, fid_inf, fd_DETECTOR for '
                 'one detector; default: all that the statistics allow', metavar='LIST', type=str),
]
JSON_OPTION = click.option('--json', 'json_path', help='Write the results there, after each pass; the same command '
                           'again measures only what is missing', metavar='FILE', type=str)
WEIGHT_OPTIONS = [
    click.option('--detector_ckpt', 'weights', help='Weights of a detector; default: shipped or published ones. '
                 'Repeatable', metavar='NAME=FILE', type=str, multiple=True),
    click.option('--allow_code', help="Run NVIDIA's detector, whose file is a program", is_flag=True),
]
DEVICE = click.option('--device', help='auto, cpu, cuda or cuda:N', metavar='STR', type=str, default='auto',
                      show_default=True)
DETECTOR_OPTIONS = [
    *WEIGHT_OPTIONS,
    click.option('--batch', help='Images per forward pass', metavar='INT', type=click.IntRange(min=1), default=64,
                 show_default=True),
    click.option('--precision', help='Arithmetic of the detectors; fp32 is comparable with published values',
                 type=click.Choice(PRECISIONS), default='fp32', show_default=True),
    DEVICE,
]


def load_spaces(refs, names: str | None, machine: Machine, weights: tuple[str, ...],
                allow_code: bool) -> dict[str, Space]:
    """What --ref, --metrics and --detector_ckpt ask for: by statistics, their detector and metrics."""
    given = read_weights(weights)
    spaces = {ref: load_space(ref, machine, given, allow_code) for ref in refs or [str(demo.DEMO_STATS)]}
    with blame('--metrics'):
        choose_metrics(names.split(',') if names else possible(spaces.values()), spaces.values())
    return spaces


def refuse_tf32(precision: str) -> None:
    """Refuse, of networks that draw what is measured, a precision that would hold for the detectors too."""
    if precision == 'tf32':
        raise click.ClickException('--precision: tf32 would hold for the detectors too; use fp32, bf16 or fp16')


def load_results(json_path: str | None) -> Results:
    """Those of an earlier call with the same --json, if there are any."""
    results = Results(None if json_path is None else resolve_output(json_path))
    if json_path is not None:
        with blame('--json'):
            check_writable(results.path)
            results.load()
    return results


def measure_blocks(source, spaces: dict[str, Space], results: Results, num: int, blocks: int, *, batch: int,
                   precision: str, option: str) -> list[dict[str, dict[str, Estimate]]]:
    """Measure what `results` lacks of `blocks` blocks of `num` images; by statistics, the values of each block.

    Call it on every rank; only rank 0 gets values. option: the one to blame for what is wrong with the images.
    """
    found = []
    for block in range(blocks):
        keys = {ref: block_key(source, space, ref, block * num, num, precision) for ref, space in spaces.items()}
        left = {ref: results.missing(keys[ref], space) for ref, space in spaces.items()}
        left = {ref: missing for ref, missing in dist.broadcast_object(left).items() if missing}
        if left:
            with blame(option):
                measured = evaluate(source, [spaces[ref].only(missing) for ref, missing in left.items()], block * num,
                                    num, batch=batch, desc=f'{source.name} {block + 1}/{blocks}')
            for ref, values in zip(left, measured, strict=True):
                results.blocks.setdefault(keys[ref], {}).update(values)
            with blame('--json'):
                dist.on_rank0(results.save)
        if dist.get_rank() == 0:
            found.append({ref: results.found(keys[ref], space) for ref, space in spaces.items()})
    return found


def show_results(results: Results, spaces: dict[str, Space], found: dict[str, list], options: list, num: int) -> None:
    """Print the tables of runs and keep them in `results`, on rank 0.

    found: by run, what `measure_blocks` gave; options: the options.json of each run.
    """
    if dist.get_rank() != 0:
        return
    for ref, space in spaces.items():
        shown = demo.DEMO_STATS.name if ref == str(demo.DEMO_STATS) else ref
        runs = {name: [block[ref] for block in blocks] for name, blocks in found.items()}
        results.summaries.append(summarise(space, shown, runs, options, num))
        click.echo(as_text(results.summaries[-1]) + '\n')
    with blame('--json'):
        results.save()


def load_space(ref_path: str, machine: Machine, weights: dict[str, str], allow_code: bool) -> Space:
    """Statistics with their detector, without metrics; a note is printed if there is one."""
    with blame('--ref'), dist.rank0_first():  # it downloads
        ref = load_reference(fetch(ref_path))
        name = ref.default_detector()
    detector = load_weights(name, machine, weights, allow_code)
    with blame('--ref'):
        note = ref.check(detector)
    if note:
        dist.print0(f'Note: {note}')
    return Space(detector, ref)


def load_weights(name: str, machine: Machine, weights: dict[str, str], allow_code: bool):
    """The detector `name`, with `weights` by detector as `read_weights` gives them."""
    with blame('--detector_ckpt'), dist.rank0_first():
        return load_detector(name, machine.device, machine.dtype, weights.get(name), allow_code)


def read_weights(given: tuple[str, ...]) -> dict[str, str]:
    """--detector_ckpt=NAME=FILE: the files by detector."""
    found = {}
    for text in given:
        name, _, path = text.partition('=')
        if name not in DETECTORS or not path:
            raise click.ClickException(f'--detector_ckpt: {text} is not NAME=FILE, NAME one of {", ".join(DETECTORS)}')
        found[name] = path
    return found
