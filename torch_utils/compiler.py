"""torch.compile: whether it pays, its settings, and what happens if it fails."""

import os
import platform
import shutil
import warnings
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from . import distributed as dist
from .device import is_out_of_memory

# Floating-point operations of a run above which compiling pays. On a CPU compiling takes one to two and a half minutes
# and saves a fifth to a third of the run, here two minutes or more. An H200 trained the demo's networks at about
# 50 TFLOP/s uncompiled, so 3e15 take one minute, of which compiling should save half.
COMPILE_FLOPS = {'cpu': 2e14, 'cuda': 3e15}
CPU_COMPILERS = {'Darwin': 'clang++', 'Windows': 'cl'}  # what torch.compile calls; elsewhere g++


def prepare_compiler(reproducible: bool = False) -> None:
    """Let torch.compile make one graph for each network, shape and use of gradients, and silence its advice on TF32.

    By default a process makes 8 graphs and silently runs everything after that uncompiled. TF32 is decided by
    `select_precision`; what stays float32 beside a bf16 body does so on purpose. `reproducible`: on GPUs, kernels with
    sums are not chosen by measured time, which may differ between processes and change the rounding; torch 2.8 and 2.9
    don't have this setting.
    """
    if reproducible:
        import torch._inductor.config as inductor  # takes two seconds

        if hasattr(inductor, 'deterministic'):
            inductor.deterministic = True
    torch._dynamo.config.recompile_limit = 64
    warnings.filterwarnings('ignore', message='TensorFloat32 tensor cores for float32 matrix multiplication available')


class CompilerFailed(RuntimeError):
    """torch.compile was asked for and does not work here."""


def report_failure(mode: str, error: Exception) -> None:
    """Say that torch.compile failed and the run continues without it. Raises CompilerFailed if the mode is 'on'."""
    reason = f'torch.compile does not work here ({type(error).__name__})'
    if mode != 'on':
        dist.print0(f'{reason}; continuing without it')
    elif isinstance(error, torch._dynamo.exc.TorchDynamoException):
        raise CompilerFailed(reason) from error
    else:
        raise error


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions in a call (a multiply-add is two)."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def select_compile(mode: str, device: torch.device, evaluate: Callable[[], object], evaluations: int) -> bool:
    """Whether to compile a network for a run of `evaluations` evaluations, of which `evaluate()` does one.

    The mode is 'on', 'off' or 'auto', which compiles if the run is long enough and there is a compiler. The answer
    depends only on the machine and the run's options, so a command that resumes decides as it did before.
    """
    if mode != 'auto':
        return mode == 'on'
    if device.type == 'cpu':
        compilers = [os.environ.get('CXX', CPU_COMPILERS.get(platform.system(), 'g++'))]
    else:  # Triton compiles what launches its kernels
        compilers = [os.environ['CC']] if 'CC' in os.environ else ['gcc', 'clang']
    if not any(map(shutil.which, compilers)):
        return False
    return evaluations * count_flops(evaluate) >= COMPILE_FLOPS[device.type]


def compiled_or_plain(mode: str, compiled, plain):
    """A function that calls `compiled`, or only `plain` once the first call has failed and the mode is 'auto'."""
    chosen = None

    def function(*args, **kwargs):
        nonlocal chosen
        if chosen is not None:
            return chosen(*args, **kwargs)
        try:
            result = compiled(*args, **kwargs)
        except Exception as error:  # compilers fail in many ways; other failures happen again
            if is_out_of_memory(error):  # it would not fit uncompiled either
                raise
            report_failure(mode, error)
            chosen = plain
            return plain(*args, **kwargs)
        chosen = compiled
        return result

    return function
