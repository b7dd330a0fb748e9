"""The one place that decides on device and precision, and knows when memory is short."""

import ctypes
import functools

import torch

from . import distributed as dist

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
# Parts of other messages that mean out of memory: torch on a CPU; CUDA's driver and Triton; cuBLAS and cuDNN.
OUT_OF_MEMORY = ("can't allocate memory", 'out of memory', 'STATUS_ALLOC_FAILED')
PRECISIONS = ('auto', 'fp32', 'tf32', 'bf16', 'fp16')


def select_device(name: str = 'auto') -> torch.device:
    """The device 'auto' (a GPU if there is one; under torchrun this process's own), 'cpu', 'cuda' or 'cuda:N'.

    For a CPU, `keep_freed_memory` is called too. Raises ValueError if the device does not exist.
    """
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
    """Let glibc keep freed blocks of up to 1 GiB for the next request.

    By default it returns each large block to the system, which then clears the pages of the next one; that took a fifth
    of the demo score network's time at batch 32 and half of it at batch 256. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    if mallopt(M_MMAP_THRESHOLD, 2**30):  # the next setting without this one would make things worse
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device (or the CPU) has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


@functools.cache
def has_fast_bf16(device_type: str) -> bool:
    """Whether this hardware multiplies bfloat16 matrices faster than float32 ones."""
    if device_type == 'cuda':
        return torch.cuda.get_device_capability() >= (8, 0)
    try:
        supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return bool(supported) and not cpu_flags().isdisjoint(('amx_bf16', 'avx512_bf16', 'bf16'))
    except (AttributeError, RuntimeError):
        return False


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The features of this CPU by Linux's names (avx512_bf16, amx_bf16, ...); empty on other systems."""
    try:
        with open('/proc/cpuinfo') as file:
            line = next((line for line in file if line.startswith(('flags', 'Features'))), '')
    except OSError:
        line = ''
    return frozenset(line.partition(':')[2].split())


def select_precision(name: str, device: torch.device, tf32_beside_half: bool = False) -> torch.dtype:
    """The dtype in which a network's body runs: 'fp32', 'tf32' (float32, TF32 matrix units), 'bf16', 'fp16'.

    'auto' is bf16 if the hardware is fast at it, else float32. Everything outside the networks
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
