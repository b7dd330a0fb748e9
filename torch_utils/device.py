"""The one place that decides on device and precision."""

import contextlib
import ctypes
import functools
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Iterator

import click
import torch

# Operations of a run from which compiling pays. On a CPU it takes one to two and a half minutes and gains a fifth to a
# third: two minutes or more of what is ahead. An H200 trained the demo's networks at some 50 TFLOP/s as they come; this
# is a minute of it, of which half is hoped for.
COMPILE_FLOPS = {'cpu': 2e14, 'cuda': 3e15}
CPU_COMPILERS = {'Darwin': 'clang++', 'Windows': 'cl'}  # what torch.compile calls; elsewhere g++
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
PRECISIONS = ('auto', 'fp32', 'tf32', 'bf16', 'fp16')


def select_device(name: str = 'auto') -> torch.device:
    """'auto' (CUDA where there is one, this process's own under torchrun), 'cpu', 'cuda' or 'cuda:N'.

    For a CPU, also has the C library `keep_freed_memory`. Raises ValueError where the device does not exist.
    """
    from . import distributed as dist

    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f'{name!r} is not a device; use auto, cpu, cuda or cuda:0') from None
    if device.type == 'cuda':
        if not torch.cuda.is_available():
            raise ValueError(f'{name} asked for, but no CUDA device is available; use --device=cpu')
        if dist.get_world_size() > 1:  # each process of a launch has its own GPU
            device = torch.device('cuda', dist.get_local_rank() % torch.cuda.device_count())
        elif device.index is None:
            device = torch.device('cuda', torch.cuda.current_device())
        if device.index >= torch.cuda.device_count():
            raise ValueError(f'{name} asked for, but there are only {torch.cuda.device_count()} CUDA devices')
        torch.cuda.set_device(device)
    elif device.type != 'cpu':
        raise ValueError(f'{name!r} is not supported; use auto, cpu, cuda or cuda:0')
    else:
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Have glibc keep freed memory of up to 1 GiB a piece for the next request.

    As it comes, it gives every larger tensor back to the system, which clears the pages that the next one gets: a
    fifth of the time of the demo's score network at batch 32, half of it at batch 256. Elsewhere nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    if mallopt(M_MMAP_THRESHOLD, 2**30):  # without this one, the next one alone would make things worse
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on a device, without waiting for the work that the device has before it."""
    if device.type == 'cuda' and tensor.device.type == 'cpu':
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device, the CPU too, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextlib.contextmanager
def enough_memory(option: str) -> Iterator[None]:
    """Turn a device's lack of memory, in a block or a decorated script, into one line that names `option`."""
    try:
        yield
    except RuntimeError as error:
        if not is_lack_of_memory(error):
            raise
        raise click.ClickException(f'{option}: so many images do not fit into memory; use fewer') from None


@functools.cache
def has_fast_bf16(device_type: str) -> bool:
    """Does this hardware multiply bfloat16 matrices faster than float32 ones?"""
    if device_type == 'cuda':
        return torch.cuda.get_device_capability() >= (8, 0)
    try:
        supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return bool(supported) and not cpu_flags().isdisjoint(('amx_bf16', 'avx512_bf16', 'bf16'))
    except (AttributeError, RuntimeError):
        return False


@functools.cache
def cpu_flags() -> frozenset[str]:
    """What this CPU can do, by Linux's names (avx512_bf16, amx_bf16, ...); empty on other systems."""
    try:
        with open('/proc/cpuinfo') as file:
            line = next((line for line in file if line.startswith(('flags', 'Features'))), '')
    except OSError:
        line = ''
    return frozenset(line.partition(':')[2].split())


def select_precision(name: str, device: torch.device, tf32_beside_half: bool = False) -> torch.dtype:
    """The dtype in which a network's body runs: 'fp32', 'tf32' (float32, TF32 matrix units), 'bf16', 'fp16'.

    'auto' is bf16 where the hardware is fast at it, float32 elsewhere. Everything outside the networks
    (sampler state, moments) keeps its own precision; with `tf32_beside_half`, what is float32 beside a bf16 or fp16
    body may use TF32 matrix units too. Raises ValueError for fp16 on a CPU.
    """
    if name not in PRECISIONS:
        raise ValueError(f'{name!r} is not a precision; use one of {", ".join(PRECISIONS)}')
    if name == 'auto':
        name = 'bf16' if has_fast_bf16(device.type) else 'fp32'
    if name == 'fp16' and device.type == 'cpu':
        raise ValueError('fp16 needs a GPU; on a CPU use bf16 or fp32')
    tf32 = name == 'tf32' or tf32_beside_half and name in ('bf16', 'fp16')
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    return {'fp32': torch.float32, 'tf32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}[name]


def prepare_compiler() -> None:
    """Let torch.compile make a graph for each network, shape and use of gradients, without advice on TF32.

    By default a process makes 8 of them, and what comes after that runs as it is, without a word. TF32 is what
    `select_precision` decides about: what is float32 beside a bf16 body is little, and float32 on purpose.
    """
    torch._dynamo.config.recompile_limit = 64
    warnings.filterwarnings('ignore', message='TensorFloat32 tensor cores for float32 matrix multiplication available')


def go_on_uncompiled(mode: str, error: Exception) -> None:
    """What a run says when it fails as compiled, and goes on without; where the mode is 'on', it ends in one line."""
    from . import distributed as dist

    reason = f'torch.compile does not work here ({type(error).__name__})'
    if mode != 'on':
        dist.print0(f'{reason}; going on without it')
    elif isinstance(error, torch._dynamo.exc.TorchDynamoException):
        raise click.ClickException(f'--compile: {reason}; use --compile=off') from error
    else:
        raise error


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions in a call (a multiply-add is two)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def select_compile(mode: str, device: torch.device, evaluate: Callable[[], object], evaluations: int) -> bool:
    """Whether to compile a network of which `evaluate()` is one evaluation, for a run of so many: 'on', 'off', 'auto'.

    'auto' compiles where the work ahead is worth it, and where there is a compiler. It follows from the machine and
    the run's options alone, so that the same command decides alike when it resumes.
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

