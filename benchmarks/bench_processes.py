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
from sampling import runner
from sampling.edm import edm_sampler
from torch_utils import distributed as dist

from .common import machine

ROOT = Path(__file__).resolve().parent.parent
# A network of 0.1 M parameters: the data of the samples, not the network, is what would fill the memory.
SMALL = dict(img_resolution=32, img_channels=3, label_dim=0, model_type='SongUNet', model_channels=8,
             channel_mult=[1, 1], num_blocks=1, attn_resolutions=[])
Block = tuple[float, float, int]  # of a rank: when it began and ended (time.monotonic), and its images


@click.command()
@click.option('--processes',    help='Ranks to start', metavar='INT', type=click.IntRange(min=2), default=2,
              show_default=True)
@click.option('--images',       help='Images to draw together', metavar='INT', type=click.IntRange(min=1), default=160,
              show_default=True)
@click.option('--batch',        help='Images per block', metavar='INT', type=click.IntRange(min=1), default=8,
              show_default=True)
@click.option('--steps',        help='Sampling steps', metavar='INT', type=click.IntRange(min=1), default=3,
              show_default=True)
@click.option('--slowdown',     help='The last rank takes so many times as long, by sleeping', metavar='FLOAT',
              type=click.FloatRange(min=1), default=4, show_default=True)
@click.option('--memory',       help='Measure memory instead', is_flag=True)
@click.option('--batches',      help='With --memory: lengths of the runs, in batches of 256 images', metavar='INT',
              type=click.IntRange(min=1), multiple=True, default=[20, 200], show_default=True)
@click.option('--worker',       metavar='DIR', type=str, hidden=True)
def main(processes, images, batch, steps, slowdown, memory, batches, worker):
    """Start generate's runner under torchrun with a slow rank, and show who drew what and who waited.

    With --memory: the largest resident memory of generate.py and of fid_npzs.py, each a process of its own.

    Examples:

    \b
    python -m benchmarks.bench_processes --processes=4
    python -m benchmarks.bench_processes --memory
    """
    if worker:
        draw(Path(worker), images, batch, steps, slowdown)
        return
    click.echo(machine(torch.device('cpu')))
    with tempfile.TemporaryDirectory() as folder:
        if memory:
            print_memory(Path(folder), batches)
            return
        torchrun = Path(sys.executable).with_name('torchrun')
        command = [str(torchrun), '--standalone', f'--nproc_per_node={processes}', '-m', 'benchmarks.bench_processes',
                   f'--images={images}', f'--batch={batch}', f'--steps={steps}', f'--slowdown={slowdown}',
                   f'--worker={folder}']
        execute(command)
        ranks = [json.loads(Path(folder, f'rank{rank}.json').read_text()) for rank in range(processes)]
    print_shares(ranks)


def execute(command: list[str]) -> float:
    """Run a command with one thread per process; its largest resident memory in MiB. Its errors are shown."""
    environment = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise click.ClickException(f'{" ".join(command)} failed:\n{output.read().decode()[-4000:]}')
    return usage.ru_maxrss / (1024**2 if sys.platform == 'darwin' else 1024)


def draw(folder: Path, images: int, batch: int, steps: int, slowdown: float) -> None:
    """One rank: draw with the demo network and write down when each block began and ended."""
    dist.init()
    net = networks.load_network(demo.DEMO_SCORE)
    slow = dist.get_rank() == dist.get_world_size() - 1
    blocks: list[Block] = []

    def sample(seeds, tick):
        began = time.monotonic()  # of the machine: ranks can be compared
        rnd, latents, labels = runner.draw_inputs(net, seeds, 'cpu')
        drawn = edm_sampler(net, latents, labels, randn_like=rnd.randn_like, num_steps=steps)
        if slow:
            time.sleep((slowdown - 1) * (time.monotonic() - began))
        blocks.append((began, time.monotonic(), len(seeds)))
        return runner.Samples(drawn, labels)

    dist.barrier()
    runner.run(sample, range(images), folder / 'samples', batch=batch, options={})
    (folder / f'rank{dist.get_rank()}.json').write_text(json.dumps(blocks))
    dist.shutdown()


def shares(ranks: list[list[Block]]) -> list[dict]:
    """Per rank: images drawn; in seconds the longest and the mean block, waiting for the last rank at the end.

    `fixed_sec` and `fixed_idle_sec` are computed: what an equal number of blocks would take at the measured mean.
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
    """Tables of the shared queue (measured) and of a fixed share (computed); fails where a rank idles for long."""
    if not all(ranks):
        raise click.ClickException('--images: a rank drew none; use more images')
    rows = shares(ranks)
    seconds = max(blocks[-1][1] for blocks in ranks) - min(blocks[0][0] for blocks in ranks)
    click.echo('\n| rank | images | s per block | shared queue, measured: idle at the end, s '
               '| fixed share, computed: its work, s | its idle at the end, s |\n|---|---|---|---|---|---|')
    for rank, row in enumerate(rows):
        click.echo(f'| {rank} | {row["images"]} | {row["mean_sec"]:.2f} | {row["idle_sec"]:.2f} | '
                   f'{row["fixed_sec"]:.1f} | {row["fixed_idle_sec"]:.1f} |')
    block = max(row['longest_sec'] for row in rows)
    click.echo(f'\nwhole run: shared queue {seconds:.1f} s measured, fixed share '
               f'{max(row["fixed_sec"] for row in rows):.1f} s computed; longest block {block:.2f} s')
    if max(row['idle_sec'] for row in rows) > block:
        raise click.ClickException('a rank idled for longer than one block')


def print_memory(folder: Path, lengths) -> None:
    """A table of the memory of generate.py and fid_npzs.py over runs of so many batches of 256 images."""
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
