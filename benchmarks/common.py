"""What the benchmarks share: interleaved timing, the machine's measured matrix rate, tables."""

import functools
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import click
import torch


@dataclass
class Timing:
    """Repetitions of one piece of work."""

    flops: float = 0.0  # operations per image; 0: not counted
    per_image: list[float] = field(default_factory=list)  # seconds
    parts: dict[str, float] = field(default_factory=dict)  # shares of the time by part, if measured

    @property
    def seconds(self) -> float:
        """Median seconds per image."""
        return statistics.median(self.per_image)

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median."""
        return (max(self.per_image) - min(self.per_image)) / self.seconds


def synchronize(device) -> None:
    """Wait for the device."""
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize(device)


def interleave(jobs: dict[str, tuple[Callable[[], float], float]], device, rounds: int = 3,
               warm: bool = True) -> dict[str, Timing]:
    """Time jobs {name: (work, flops per image)} in turns, so that a slow minute affects all of them.

    work() returns its number of images. If `warm`, each is called once before, which fills caches and compiles; else
    the caller has done so.
    """
    timings = {name: Timing(flops) for name, (_, flops) in jobs.items()}
    for work, _ in jobs.values() if warm else ():
        work()
    for _ in range(rounds):
        for name, (work, _) in jobs.items():
            synchronize(device)
            started = time.perf_counter()
            images = work()
            synchronize(device)
            timings[name].per_image.append((time.perf_counter() - started) / images)
    return timings


def matrix_peak(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Measured rate of a large matrix product, FLOP/s, in the selected precision, to which shares of the peak refer."""
    return _matrix_peak(device, dtype, size, torch.backends.cuda.matmul.allow_tf32)


@functools.cache
def _matrix_peak(device, dtype, size, tf32):
    size = size or (8192 if device.type == 'cuda' else 2048)
    a, b = torch.randn(2, size, size, device=device).to(dtype).unbind()

    def multiply():
        torch.mm(a, b)
        return 1

    timing = interleave({'mm': (multiply, 2 * size**3)}, device, rounds=10)['mm']
    return timing.flops / min(timing.per_image)


def machine(device: torch.device) -> str:
    """Hardware and versions in one line."""
    if device.type == 'cuda':
        what = torch.cuda.get_device_name(device)
    else:
        what = f'{cpu_name()}, {torch.get_num_threads()} threads'
    return f'{what}, torch {torch.__version__}, python {platform.python_version()}'


def cpu_name() -> str:
    """The processor's name and its relevant vector units."""
    try:
        with open('/proc/cpuinfo') as file:
            lines = [line.split(':', 1)[1].strip() for line in file if line.startswith(('model name', 'flags'))][:2]
    except OSError:
        return platform.processor()
    units = [name for name in ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16') if name in lines[-1].split()]
    return f'{lines[0]} ({units[-1] if units else "no vector units known"})'


def peak_memory() -> float:
    """Largest resident memory of this process so far, in MiB."""
    unit = 1024**2 if platform.system() == 'Darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def print_table(title: str, timings: dict[str, Timing], peaks: dict[str, float] | None = None,
                reference: str | None = None) -> None:
    """A Markdown table of timings; `peaks` [FLOP/s] by name, `reference`: the row that ratios refer to."""
    peaks = peaks or {}
    click.echo(f'\n{title}\n\n| mode | img/s | ms/img | spread | TFLOP/s | share of peak | ratio | parts |\n'
               '|---|---|---|---|---|---|---|---|')
    slow = timings[reference].seconds if reference in timings else None
    for name, t in timings.items():
        rate = t.flops / t.seconds
        cells = [name, f'{1 / t.seconds:.3g}', f'{1000 * t.seconds:.4g}',
                 f'{t.spread:.0%}' if len(t.per_image) > 1 else '',
                 f'{rate / 1e12:.3g}' if t.flops else '', f'{rate / peaks[name]:.0%}' if name in peaks else '',
                 f'{slow / t.seconds:.2f}' if slow else '',
                 ', '.join(f'{part} {share:.1%}' for part, share in t.parts.items())]
        click.echo(f'| {" | ".join(cells)} |')
