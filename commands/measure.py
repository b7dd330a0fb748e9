"""What the measuring scripts share: options of detectors, and reference statistics with the detector that made them."""

import click

from dnnlib.cli import blame
from dnnlib.download import fetch
from metrics.detectors import DETECTORS, load_detector
from metrics.evaluate import Space
from metrics.reference import load_reference
from torch_utils import distributed as dist
from torch_utils.device import PRECISIONS

from .machine import Machine

WEIGHTS = [
    click.option('--detector_ckpt', 'weights', help='Weights of a detector; default: shipped or published ones. '
                 'Repeatable', metavar='NAME=FILE', type=str, multiple=True),
    click.option('--allow_code', help="Run NVIDIA's detector, whose file is a program", is_flag=True),
]
DEVICE = click.option('--device', help='auto, cpu, cuda or cuda:N', metavar='STR', type=str, default='auto',
                      show_default=True)
DETECTOR_OPTIONS = [
    *WEIGHTS,
    click.option('--batch', help='Images per forward pass', metavar='INT', type=click.IntRange(min=1), default=64,
                 show_default=True),
    click.option('--precision', help='Arithmetic of the detectors; fp32 is comparable with published values',
                 type=click.Choice(PRECISIONS), default='fp32', show_default=True),
    DEVICE,
]


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
