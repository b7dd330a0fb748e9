"""The machine that a script runs on: ranks, device, precision, compilation, and their one-line errors."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import click
import torch

from dnnlib.cli import blame
from torch_utils import distributed as dist
from torch_utils.compiler import CompilerFailed, compiled_or_plain, prepare_compiler, select_compile
from torch_utils.device import is_out_of_memory, select_device, select_precision


@dataclass(frozen=True)
class Machine:
    """Where networks run: a device, the dtype of their bodies, and the options that chose it."""

    device: torch.device
    dtype: torch.dtype
    precision: str  # as given: auto, fp32, tf32, bf16, fp16
    compile: str = 'off'  # as given: auto, on, off

    def record(self) -> dict:
        """Entries of options.json; they affect how images round."""
        return dict(device=self.device.type, precision=str(self.dtype).removeprefix('torch.'),
                    tf32=self.precision == 'tf32')


def start(device: str, precision: str, compile: str = 'off', tf32_beside_half: bool = False) -> Machine:
    """Join the process group and choose the device and precision; ranks on different machines must agree."""
    dist.init()
    with blame('--device'):
        chosen = select_device(device)
    with blame('--precision'):
        dtype = select_precision(precision, chosen, tf32_beside_half)
        first = dist.broadcast_object(str(dtype))
        if first != str(dtype):
            raise ValueError(f'{precision} is {dtype} here and {first} in the first process; choose one')
    return Machine(chosen, dtype, precision, compile)


@contextlib.contextmanager
def blame_machine(option: str) -> Iterator[None]:
    """Turn a lack of memory or a failing compiler into one line; `option` sets the number of images at a time.

    Used for a block, or as a decorator of a script's main.
    """
    try:
        yield
    except CompilerFailed as error:
        raise click.ClickException(f'--compile: {error}; use --compile=off') from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise click.ClickException(f'{option}: not enough memory for this many images at a time; use fewer') from None


def compile_for_sampling(machine: Machine, net, log_ratio, evaluations: int) -> bool:
    """Compile if that pays for a run of `evaluations` evaluations of `net`; all ranks get the same answer.

    On CUDA this compiles the score network and the log-ratio (or None), on a CPU only the score network: there the
    log-ratio gets no faster (benchmarks/README.md). The answer does not depend on the number of ranks, so that another
    number can resume the run.
    """
    def evaluate():
        x = torch.zeros([1, net.img_channels, net.img_resolution, net.img_resolution], device=machine.device)
        net(x, torch.ones([1], device=machine.device))

    choose = functools.partial(compiled_or_plain, machine.compile)
    if getattr(net, '_compiled_call_impl', None) is None:  # else it drew an earlier row of a study
        if not dist.broadcast_object(select_compile(machine.compile, machine.device, evaluate, evaluations)):
            return False
        dist.print0('The first batch compiles the networks, which takes one to two and a half minutes')
        prepare_compiler(reproducible=machine.device.type == 'cuda')
        net.compile(dynamic=False)
        net._compiled_call_impl = choose(net._compiled_call_impl, net._call_impl)
    if log_ratio is not None and machine.device.type == 'cuda':
        log_ratio.compile(choose)
    return True
