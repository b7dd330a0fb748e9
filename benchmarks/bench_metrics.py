"""Speed of measuring: the trace in the Frechet distance, Inception features, and files to moments in one pass."""

import contextlib
import copy
import io
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import scipy.linalg
import torch

from dnnlib.cli import blame
from metrics.detectors import Detector, load_detector, prepare_
from metrics.frechet import frechet_distance
from metrics.inception import InceptionV3
from metrics.measure import measure, measure_all
from metrics.moments import Moments
from metrics.neighbours import neighbours
from metrics.sources import open_source
from torch_utils.compiler import count_flops
from torch_utils.device import PRECISIONS, select_device, select_precision

from .bench_sampling import CommaList
from .common import Timing, interleave, machine, matrix_peak, peak_memory, print_table
from .reference_client import NEEDED, Reference, find_checkouts

SQRTM = 'scipy.linalg.sqrtm'  # as the published scripts
PUBLISHED = 'published'
EAGER = 'fp32, as published'  # Inception with its batch norms, in the layout of its weights
SHARD = 500  # images in a file


def standard_features(dim: int, count: int, seed: int) -> np.ndarray:
    """[count, dim] centred random features over sqrt(count - 1), so that their covariance is F^T F.

    Their scales decay like those of Inception's features.
    """
    features = np.random.default_rng(seed).standard_normal([count, dim]) * np.linspace(1, 0.05, dim)
    return (features - features.mean(axis=0)) / np.sqrt(count - 1)


def trace_by_scipy(sigma1: np.ndarray, sigma2: np.ndarray) -> float:
    """tr (S1 S2)^(1/2) by computing the root itself."""
    return float(np.trace(scipy.linalg.sqrtm(sigma1 @ sigma2)).real)


def bench_trace(dim: int, rounds: int, reference: str | None) -> None:
    """Time and accuracy of the distance, for moments of more and of fewer images than dimensions."""
    with contextlib.ExitStack() as stack:
        published = None
        if reference:
            published = stack.enter_context(Reference(find_checkouts(reference, NEEDED['frechet']), {}, 'cpu'))
        for name, counts in (('full rank', (2 * dim, 2 * dim)), ('n = D / 2', (2 * dim, dim // 2))):
            bench_trace_of(name, dim, counts, rounds, published)


def bench_trace_of(name: str, dim: int, counts: tuple[int, int], rounds: int, published: Reference | None) -> None:
    """A table of the distance between the moments of `counts` images, by `published` if it is there, else by scipy."""
    first, second = (standard_features(dim, count, seed) for seed, count in enumerate(counts))
    moments = dict(mu=np.zeros(dim), sigma=first.T @ first, mu_ref=np.zeros(dim), sigma_ref=second.T @ second)
    sides = float(np.trace(moments['sigma']) + np.trace(moments['sigma_ref']))  # d = sides - 2 trace
    traces = {}

    def ours():
        traces['ours'] = (sides - frechet_distance(*moments.values())) / 2
        return 1

    def scipys():
        traces[SQRTM] = trace_by_scipy(moments['sigma'], moments['sigma_ref'])
        return 1

    def published_distance():
        traces[PUBLISHED] = (sides - published.run('frechet')['distance']) / 2
        return 1

    jobs = dict(ours=(ours, 0)) | ({PUBLISHED: (published_distance, 0)} if published else {SQRTM: (scipys, 0)})
    if published:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder, 'moments.npz'))
            np.savez(path, **moments)
            published.run('read_moments', path=path)
    timings = interleave(jobs, 'cpu', rounds, warm=False)
    print_table(f'Frechet distance, {dim} dimensions, {name}: per distance', timings, reference=list(jobs)[-1])
    if counts[1] < dim:  # F2 S1 F2^T [n, n] has the eigenvalues of S1 S2 that are not 0
        lam = np.linalg.eigvalsh(second @ moments['sigma'] @ second.T)
        exact, of = float(np.sqrt(lam.clip(min=0)).sum()), 'the exact one'
    else:
        exact, of = traces[list(jobs)[-1]], list(jobs)[-1]
    errors = ', '.join(f'{key} {abs(value - exact):.1e}' for key, value in traces.items() if key != of)
    click.echo(f'\ntrace {traces["ours"]:.6g}; difference from {of}: {errors}')


def inception(precision: str, device, weights: InceptionV3) -> torch.nn.Module:
    """Inception as metrics.detectors runs it, with the given weights."""
    return prepare_(copy.deepcopy(weights), device, select_precision(precision, device))


def bench_features(weights: InceptionV3, batch: int, precisions, rounds: int, device) -> None:
    """Images per second of Inception-v3 on 32x32 images, and how far each precision is from float32."""
    images = torch.randint(256, [batch, 3, 32, 32], dtype=torch.uint8, device=device)
    networks = {name: inception(name, device, weights) for name in precisions}
    networks[EAGER] = copy.deepcopy(weights).to(device)
    settings = {name: name if name in precisions else 'fp32' for name in networks}
    found = {}

    def job(name):
        select_precision(settings[name], device)
        with torch.inference_mode():
            found[name] = networks[name](images)
        return batch
    flops = count_flops(lambda: job(EAGER)) / batch
    timings = interleave({name: (lambda name=name: job(name), flops) for name in networks}, device, rounds)
    peaks = {name: matrix_peak(device, select_precision(setting, device)) for name, setting in settings.items()}
    print_table(f'Inception-v3 features (random weights), batch {batch}', timings, peaks, EAGER)
    exact = found[EAGER]
    errors = ', '.join(f'{name} {float((found[name] - exact).norm() / exact.norm()):.1e}' for name in precisions)
    click.echo(f'\nrelative difference from float32: {errors}')


def write_shards(folder: str, count: int) -> None:
    """`count` random images as generate.py writes samples."""
    rng = np.random.default_rng(0)
    for first in range(0, count, SHARD):
        images = rng.integers(256, size=[min(SHARD, count - first), 32, 32, 3], dtype=np.uint8)
        np.savez(Path(folder, f'samples_{first:08d}.npz'), samples=images)


def quiet_measure(*arguments, **options):
    """measure() without its progress bar."""
    with contextlib.redirect_stderr(io.StringIO()):
        return measure(*arguments, **options)


def bench_pass(detector: Detector, source, count: int, batch: int, rounds: int) -> None:
    """The pass of fid_npzs.py next to its parts in turn, and the memory of a short and of a long one."""
    memory = []
    for stop in (max(count // 10, 2), count):
        quiet_measure(source, detector, 0, stop, batch=batch)
        memory.append(f'{peak_memory():.0f} MiB after {stop} images')
    images = next(source.batches(0, min(batch, count), batch))
    features = detector(images)
    moments = Moments(detector.feature_dim, detector.device)

    def one_pass():
        return quiet_measure(source, detector, 0, count, batch=batch).moments.count

    def read():
        return sum(map(len, source.batches(0, count, batch)))

    def repeat(work):
        for _ in range(0, count, len(images)):
            work()
        return -(-count // len(images)) * len(images)

    parts = {'reading alone': read, 'features alone': lambda: repeat(lambda: detector(images)),
             'moments alone': lambda: repeat(lambda: moments.add(features))}
    jobs = {name: (work, 0) for name, work in ({'one pass': one_pass} | parts).items()}
    timings = interleave(jobs, detector.device, rounds, warm=False)
    timings['the parts in turn'] = Timing(per_image=[sum(timings[name].seconds for name in parts)])
    print_table(f'{detector.distance} from files, {count} images, batch {batch}', timings,
                reference='the parts in turn')
    click.echo(f'\nlargest memory: {", ".join(memory)}')


def bench_fid(weights: InceptionV3, count: int, batch: int, precision: str, rounds: int, device) -> None:
    """With the shipped detector, and with Inception on a tenth of the images."""
    with tempfile.TemporaryDirectory() as folder:
        write_shards(folder, count)
        source = open_source(folder)
        bench_pass(load_detector('cifar10', device, select_precision(precision, device)), source, count, batch, rounds)
        detector = Detector('inception', 'FID', 2048, device, inception(precision, device, weights))
        bench_pass(detector, source, max(count // 10, 2), batch, rounds)


def bench_neighbours(count: int, dim: int, device) -> None:
    """Time and memory of precision, recall, density and coverage of `count` images beside as many of a reference."""
    x, y = (torch.from_numpy(standard_features(dim, count, seed)).to(device, torch.float32) for seed in (0, 1))
    memory, began, worked = peak_memory(), time.monotonic(), time.process_time()
    found = neighbours(x, y)
    seconds, core_seconds = time.monotonic() - began, time.process_time() - worked
    click.echo(f'\nprecision, recall, density and coverage, {count} x {count} features of {dim} dimensions: '
               f'{seconds:.1f} s, {core_seconds:.1f} s of cores; largest memory {memory:.0f} MiB before, '
               f'{peak_memory():.0f} MiB after; precision {found.precision.value:.3f}, '
               f'coverage {found.coverage.value:.3f}')


def bench_detectors(weights: InceptionV3, count: int, batch: int, rounds: int, device) -> None:
    """One pass of two detectors beside a pass of each."""
    first = load_detector('cifar10', device)
    second = Detector('inception', 'FID', 2048, device, inception('fp32', device, weights))

    def one_pass(*detectors):
        with contextlib.redirect_stderr(io.StringIO()):
            return measure_all(source, detectors, 0, count, batch=batch)[0].moments.count

    with tempfile.TemporaryDirectory() as folder:
        write_shards(folder, count)
        source = open_source(folder)
        jobs = {'both in one pass': lambda: one_pass(first, second), 'cifar10': lambda: one_pass(first),
                'inception': lambda: one_pass(second)}
        timings = interleave({name: (job, 0) for name, job in jobs.items()}, device, rounds, warm=False)
    timings['the two in turn'] = Timing(per_image=[timings['cifar10'].seconds + timings['inception'].seconds])
    print_table(f'Two detectors, {count} images from files, batch {batch}', timings, reference='the two in turn')


POSITIVE = click.IntRange(min=1)


@click.command()
@click.option('--what',      help='Comma-separated: trace, features, fid, neighbours, detectors',
              type=CommaList(['trace', 'features', 'fid', 'neighbours', 'detectors']),
              default='trace,features,fid', show_default=True)
@click.option('--dim',       help='Dimensions of the trace, and of the features of neighbours',
              type=click.IntRange(min=8), default=2048, show_default=True)
@click.option('--images',    help='Images of a pass over files (fid: a tenth of them with Inception), or features',
              type=click.IntRange(min=20), default=5000, show_default=True)
@click.option('--batch',     help='Images per forward pass', type=POSITIVE, default=32, show_default=True)
@click.option('--precision', help='Comma-separated, of the features; the last one for the pass over files',
              type=CommaList(PRECISIONS), default='bf16,fp32', show_default=True)
@click.option('--rounds',    help='Interleaved repetitions', type=POSITIVE, default=3, show_default=True)
@click.option('--device',    help='auto, cpu, cuda or cuda:0', type=str, default='auto', show_default=True)
@click.option('--reference', help='Folder with a checkout of the published code: DG', metavar='DIR', type=str)
def main(what, dim, images, batch, precision, rounds, device, reference):
    """Print tables of the speed of measuring, and with --reference distances by the published code, interleaved.

    Examples:

    \b
    python -m benchmarks.bench_metrics --reference=..
    python -m benchmarks.bench_metrics --what=fid --images=500000 --batch=64 --rounds=1
    python -m benchmarks.bench_metrics --what=neighbours --images=50000 --dim=256
    """
    with blame('--device'):
        device = select_device(device)
    with blame('--precision'):
        for name in precision:
            select_precision(name, device)
    with blame('--reference'):
        if reference:
            find_checkouts(reference, NEEDED['frechet'])
    torch.manual_seed(0)
    weights = None
    if not {'features', 'fid', 'detectors'}.isdisjoint(what):
        weights = InceptionV3().eval().requires_grad_(False)
    click.echo(machine(device))
    if 'fid' in what:  # first, so that the largest memory is that of the pass
        bench_fid(weights, images, batch, precision[-1], rounds, device)
    if 'neighbours' in what:
        bench_neighbours(images, dim, device)
    if 'detectors' in what:
        bench_detectors(weights, images, batch, rounds, device)
    if 'trace' in what:
        bench_trace(dim, rounds, reference)
    if 'features' in what:
        bench_features(weights, batch, precision, rounds, device)


if __name__ == '__main__':
    main()
