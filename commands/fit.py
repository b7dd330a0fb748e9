"""What the training scripts share: groups of options, showing the configuration, and a run to its exit code."""

import json
import sys
from collections.abc import Callable
from typing import NoReturn

import click
import torch

from dnnlib.cli import FloatRange, blame, command_line
from dnnlib.run_folder import COMMAND
from torch_utils import distributed as dist
from training.loop import share_of_batch, train
from training.run import NonFiniteLoss, TrainResult, TrainRun

BY_PRESET = '[default: by preset]'
POSITIVE = click.IntRange(min=1)

PROGRESS = [
    click.option('--max_minutes', help='Save and stop after this time; the same command resumes', metavar='FLOAT',
                 type=FloatRange(min=0)),
    click.option('--overwrite', help='Replace an earlier run in the folder', is_flag=True),
    click.option('-n', '--dry_run', '--dry-run', help='Print the configuration and exit', is_flag=True),
]


def hyperparameters(default_batch: int | None = None) -> list:
    """Options of every kind of training: --batch (by preset if it has no default) and --seed."""
    shown = {} if default_batch is None else dict(default=default_batch, show_default=True)
    note = f'  {BY_PRESET}' if default_batch is None else ''
    return [
        click.option('--batch', '--batch_size', help=f'Images per step, over all processes{note}', metavar='INT',
                     type=POSITIVE, **shown),
        click.option('--seed', help='Seed of weights, order and noise', metavar='INT', type=click.IntRange(min=0),
                     default=0, show_default=True),
    ]


def machine_options(computed: str, precisions=('auto', 'fp32', 'tf32', 'bf16'), except_for: str = '') -> list:
    """Options of the machine: --precision is that of the `computed` parts.

    `except_for`: what --batch_gpu changes in addition to rounding.
    """
    return [
        click.option('--device', help='auto, cpu, cuda or cuda:N', metavar='STR', type=str, default='auto',
                     show_default=True),
        click.option('--precision', help=f'Arithmetic of {computed}', type=click.Choice(precisions), default='auto',
                     show_default=True),
        click.option('--compile', help='torch.compile; auto: on GPUs, for runs that are long enough',
                     type=click.Choice(['auto', 'on', 'off']), default='auto', show_default=True),
        click.option('--batch_gpu', help='Images per forward pass of a process (gradient accumulation): less memory, '
                     f'and the same result except for rounding{except_for}  [default: the whole share]', metavar='INT',
                     type=POSITIVE),
    ]


def show_config(config: dict, dry_run: bool) -> None:
    """Print the configuration of a run; with `dry_run`, exit then."""
    dist.print0(json.dumps(config, indent=2))
    if dry_run:
        dist.shutdown()
        sys.exit(0)


def run_options(opts: dict, started: float) -> dict:
    """The fields of TrainRun that `machine_options` and PROGRESS set; --max_minutes counts from `started`."""
    return dict(started=started) | {name: opts[name] for name in ('batch_gpu', 'compile', 'max_minutes', 'overwrite')}


def how_far(result: TrainResult) -> str:
    """The default summary of a run: images and reason of the end."""
    return f'{result.nimg / 1000:g} kimg, {result.reason}'


def fit(run: TrainRun, folder: str = '--outdir', summary: Callable[[TrainResult], str] = how_far) -> NoReturn:
    """Train to the end of `run`, print its `summary`, and exit: with code 143 after a signal, else 0.

    `folder` is the option that names the run's folder; mistakes end in one line that names the option at fault.
    """
    torch.backends.cudnn.benchmark = True
    run.config = run.config | {COMMAND: command_line()}
    with blame('--batch'):
        share_of_batch(run.batch_size)
    try:
        with blame(folder):
            result = train(run)
    except NonFiniteLoss as error:
        raise click.ClickException(f'--lr: {error}') from None
    dist.print0(f'{run.outdir}: {summary(result)}' + ('' if result.complete else '; the same command resumes'))
    dist.shutdown()
    sys.exit(143 if result.reason == 'signal' else 0)
