"""How evenly ranks share the work when one of them is slow, and that memory does not grow with the number of images."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import torch

import networks
from dnnlib import demo
from generation import run as runner
from generation.folder import SampleFolder
from networks.log_ratio import load_log_ratio
from sampling.diffrs import WARMUP_SEED, calibrate, diffrs_sampler
from sampling.edm import edm_sampler
from sampling.levels import edm_levels
from sampling.samples import stream
from torch_utils import distributed as dist

from .common import machine
from .modes import Part

ROOT = Path(__file__).resolve().parent.parent
# A network of 0.1 M parameters, so that samples, not the network, would fill the memory.
SMALL = dict(img_resolution=32, img_channels=3, label_dim=0, model_type='SongUNet', model_channels=8,
             channel_mult=[1, 1], num_blocks=1, attn_resolutions=[])
Block = tuple[float, float, int]  # start and end of a rank's block (time.monotonic), and its images


@click.command()
@click.option('--processes',    help='Ranks to start', metavar='INT', type=click.IntRange(min=2), default=2,
              show_default=True)
@click.option('--method',       help='edm: blocks one by one; diffrs: two to three side by side',
              type=click.Choice(['edm', 'diffrs']), default='edm', show_default=True)
@click.option('--images',       help='Images to draw together', metavar='INT', type=click.IntRange(min=1), default=160,
              show_default=True)
@click.option('--batch',        help='Images per block', metavar='INT', type=click.IntRange(min=1), default=8,
              show_default=True)
@click.option('--steps',        help='Sampling steps', metavar='INT', type=click.IntRange(min=1), default=3,
              show_default=True)
@click.option('--slowdown',     help='How many times as long the last rank takes, by sleeping', metavar='FLOAT',
              type=click.FloatRange(min=1), default=4, show_default=True)
@click.option('--scaling',      help='Compare one process with all threads to several that share them', is_flag=True)
@click.option('--memory',       help='Instead: memory', is_flag=True)
@click.option('--batches',      help='Lengths of the runs of --memory, in batches of 256 images', metavar='INT',
              type=click.IntRange(min=1), multiple=True, default=[20, 200], show_default=True)
@click.option('--worker',       metavar='DIR', type=str, hidden=True)
def main(processes, method, images, batch, steps, slowdown, scaling, memory, batches, worker):
    """Start generate.py's engine under torchrun with a slow rank, and show what each rank drew and how long it waited.

    With --scaling: the rates of one process and of several on the same cores. With --memory: the largest resident
    memory of generate.py and of fid_npzs.py, each a process of its own.

    Examples:

    \b
    python -m benchmarks.bench_processes --processes=4
    python -m benchmarks.bench_processes --method=diffrs --steps=9
    python -m benchmarks.bench_processes --scaling
    python -m benchmarks.bench_processes --memory
    """
    work = dict(method=method, images=images, batch=batch, steps=steps)
    if worker:
        draw(Path(worker), slowdown=slowdown, **work)
        return
    click.echo(machine(torch.device('cpu')))
    with tempfile.TemporaryDirectory() as folder:
        if memory:
            print_memory(Path(folder), batches)
            return
        if scaling:
            print_scaling([(count, threads, launch(Path(folder, str(count)), count, threads, slowdown=1, **work))
                           for count in (1, processes) for threads in [max(1, torch.get_num_threads() // count)]])
        else:
            print_shares(launch(Path(folder), processes, 1, slowdown=slowdown, **work))


def launch(folder: Path, processes: int, threads: int, **work) -> list[list[Block]]:
    """Let the ranks of one run `draw`; returns the blocks of each."""
    folder.mkdir(exist_ok=True)
    execute([str(Path(sys.executable).with_name('torchrun')), '--standalone', f'--nproc_per_node={processes}',
             '-m', 'benchmarks.bench_processes', *(f'--{name}={value}' for name, value in work.items()),
             f'--worker={folder}'], threads)
    return [json.loads(Path(folder, f'rank{rank}.json').read_text()) for rank in range(processes)]


def execute(command: list[str], threads: int = 1) -> float:
    """Run a command with `threads` threads per process; returns its largest resident memory in MiB. Shows errors."""
    environment = os.environ | dict(OMP_NUM_THREADS=str(threads), PYTHONPATH=str(ROOT))
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise click.ClickException(f'{" ".join(command)} failed:\n{output.read().decode()[-4000:]}')
    return usage.ru_maxrss / (1024**2 if sys.platform == 'darwin' else 1024)


class Slowed(Part):
    """A network that takes `slowdown` times as long."""

    def __init__(self, net, slowdown: float):
        super().__init__(net, 'cpu', timed=False)
        self.slowdown = slowdown

    def __call__(self, x, *args):
        before = self.seconds
        result = super().__call__(x, *args)
        time.sleep((self.slowdown - 1) * (self.seconds - before))
        return result


def draw(folder: Path, method: str, images: int, batch: int, steps: int, slowdown: float) -> None:
    """One rank: draw with the demo network and record the start and end of each block."""
    dist.init()
    net = networks.load_network(demo.DEMO_SCORE)
    score = Slowed(net, slowdown if dist.get_rank() == dist.get_world_size() - 1 else 1)
    blocks: list[Block] = []

    options = dict(batch=batch, device='cpu', levels=edm_levels(net, steps))
    if method == 'diffrs':
        log_ratio = load_log_ratio(net)
        calibration = calibrate(net, log_ratio, range(WARMUP_SEED, WARMUP_SEED + 32), levels=options['levels'])
        draws = stream(diffrs_sampler, score, log_ratio=log_ratio, thresholds=calibration, **options)
    else:
        draws = stream(edm_sampler, score, **options)

    def watched(seeds, progress):
        """Count a block whenever as many samples as it has are finished, since blocks may be drawn side by side."""
        began, drawn = time.monotonic(), 0  # the machine's clock, so that ranks can be compared
        try:
            for piece in draws(seeds, progress):
                drawn += len(piece)
                if drawn >= batch:
                    blocks.append((began, began := time.monotonic(), drawn))
                    drawn = 0
                yield piece
        finally:  # even if another rank was faster
            blocks.append((began, time.monotonic(), drawn))

    dist.barrier()
    runner.run(watched, SampleFolder(folder / 'samples', range(images), batch, {}))
    (folder / f'rank{dist.get_rank()}.json').write_text(json.dumps(blocks))
    dist.shutdown()


def shares(ranks: list[list[Block]]) -> list[dict]:
    """Per rank: images drawn; in seconds the longest and mean block, and the wait for the last rank at the end.

    `fixed_sec` and `fixed_idle_sec` are computed: what equal shares of the blocks would take at the measured mean.
    """
    last = max(blocks[-1][1] for blocks in ranks)
    share = sum(map(len, ranks)) / len(ranks)
    rows = []
    for blocks in ranks:
        times = [end - begin for begin, end, _ in blocks]
        mean = sum(times) / len(times)
        rows.append(dict(images=sum(count for *_, count in blocks), mean_sec=mean, longest_sec=max(times),
                         idle_sec=last - blocks[-1][1], fixed_sec=share * mean))
    slowest = max(row['fixed_sec'] for row in rows)
    return [row | dict(fixed_idle_sec=slowest - row['fixed_sec']) for row in rows]


def print_shares(ranks: list[list[Block]]) -> None:
    """Tables of the shared queue (measured) and of a fixed share (computed); fails if a rank idles for long."""
    if not all(ranks):
        raise click.ClickException('--images: a rank drew none; use more images')
    rows = shares(ranks)
    click.echo('\n| rank | images | s per block | shared queue, measured: idle at the end, s '
               '| fixed share, computed: its work, s | its idle at the end, s |\n|---|---|---|---|---|---|')
    for rank, row in enumerate(rows):
        click.echo(f'| {rank} | {row["images"]} | {row["mean_sec"]:.2f} | {row["idle_sec"]:.2f} | '
                   f'{row["fixed_sec"]:.1f} | {row["fixed_idle_sec"]:.1f} |')
    block = max(row['longest_sec'] for row in rows)
    click.echo(f'\nwhole run: shared queue {duration(ranks):.1f} s measured, fixed share '
               f'{max(row["fixed_sec"] for row in rows):.1f} s computed; longest block {block:.2f} s')
    if max(row['idle_sec'] for row in rows) > block:
        raise click.ClickException('a rank idled for longer than one block')


def duration(ranks: list[list[Block]]) -> float:
    """Seconds from the first start of a block to the last end."""
    return max(blocks[-1][1] for blocks in ranks) - min(blocks[0][0] for blocks in ranks)


def print_scaling(runs: list[tuple[int, int, list[list[Block]]]]) -> None:
    """A table of runs: processes, threads in each, and the rate."""
    click.echo('\n| processes | threads in each | img/s | ratio |\n|---|---|---|---|')
    rates = [sum(images for blocks in ranks for *_, images in blocks) / duration(ranks) for *_, ranks in runs]
    for (count, threads, _), rate in zip(runs, rates):
        click.echo(f'| {count} | {threads} | {rate:.3g} | {rate / rates[0]:.2f} |')


def print_memory(folder: Path, lengths) -> None:
    """A table of the memory of generate.py and fid_npzs.py over runs of these numbers of batches of 256 images."""
    networks.save_network(folder / 'small.safetensors', networks.construct('EDMPrecond', SMALL))
    click.echo('\n| batches | images | their float64 images, MiB | generate.py, MiB | fid_npzs.py, MiB |\n'
               '|---|---|---|---|---|')
    for length in lengths:
        images = 256 * length
        samples = folder / str(length)
        drawing = execute([sys.executable, 'generate.py', f'--network={folder}/small.safetensors',
                           f'--outdir={samples}', '--dg_weight_1st_order=0', f'--num_samples={images}', '--batch=256',
                           '--steps=1', '--device=cpu', '--precision=fp32'])
        measuring = execute([sys.executable, 'fid_npzs.py', f'--images={samples}', f'--num_samples={images}',
                             '--batch=256', '--device=cpu', '--precision=fp32'])
        click.echo(f'| {length} | {images} | {images * 3 * 32 * 32 * 8 / 2**20:.0f} | {drawing:.0f} | '
                   f'{measuring:.0f} |')


if __name__ == '__main__':
    main()
