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

from torch_utils.device import count_flops  # noqa: F401


@dataclass
class Timing:
    """Seconds of the repetitions of one piece of work on `images` images of `flops` operations each (0: unknown)."""

    images: int
    flops: float = 0.0
    seconds: list[float] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)  # share of the time by part, where it was taken apart

    @property
    def per_image(self) -> float:
        """Median seconds per image."""
        return statistics.median(self.seconds) / self.images

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median of the repetitions."""
        return (max(self.seconds) - min(self.seconds)) / statistics.median(self.seconds)


def synchronize(device) -> None:
    """Wait for the device."""
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize(device)


def interleave(jobs: dict[str, tuple[Callable[[], object], int, float]], device, rounds: int = 3) -> dict[str, Timing]:
    """Time jobs {name: (work, images per call, flops per image)} in turns, so that a slow minute hits all alike.

    Each is called once beforehand, which pays for compilers and caches.
    """
    timings = {name: Timing(images, flops) for name, (_, images, flops) in jobs.items()}
    for work, _, _ in jobs.values():
        work()
    for _ in range(rounds):
        for name, (work, _, _) in jobs.items():
            synchronize(device)
            started = time.perf_counter()
            work()
            synchronize(device)
            timings[name].seconds.append(time.perf_counter() - started)
    return timings


@functools.cache
def matrix_peak(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Measured rate of a large matrix product, FLOP/s: what shares of the peak refer to."""
    size = size or (8192 if device.type == 'cuda' else 2048)
    a, b = torch.randn(2, size, size, device=device).to(dtype).unbind()
    timing = interleave({'mm': (lambda: a @ b, 1, 2 * size**3)}, device, rounds=7)['mm']
    return timing.flops / min(timing.seconds)


def machine(device: torch.device) -> str:
    """Hardware and versions in one line."""
    if device.type == 'cuda':
        what = torch.cuda.get_device_name(device)
    else:
        what = f'{cpu_name()}, {torch.get_num_threads()} threads'
    return f'{what}, torch {torch.__version__}, python {platform.python_version()}'


def cpu_name() -> str:
    """The processor's name, with the matrix units that matter here."""
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
    slow = timings[reference].per_image if reference in timings else None
    for name, t in timings.items():
        rate = t.flops / t.per_image
        cells = [name, f'{1 / t.per_image:.3g}', f'{1000 * t.per_image:.4g}', f'{t.spread:.0%}',
                 f'{rate / 1e12:.3g}' if t.flops else '', f'{rate / peaks[name]:.0%}' if name in peaks else '',
                 f'{slow / t.per_image:.2f}' if slow else '',
                 ', '.join(f'{part} {share:.1%}' for part, share in t.parts.items())]
        click.echo(f'| {" | ".join(cells)} |')
