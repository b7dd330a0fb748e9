"""Speed of measuring: the trace of FID's matrix square root, Inception features, distances from files to numbers.

    python -m benchmarks.bench_metrics [--what=trace,features,fid] [--dim=2048] [--images=2000] [--batch=32]

References: scipy's sqrtm, which the published fid_npzs.py uses, and torchvision's Inception-v3 in float32 (both with
random weights: speed does not depend on them).
"""

import tempfile
import time
from pathlib import Path

import click
import numpy as np
import scipy.linalg
import torch
import torchvision

from dnnlib.cli import blame
from metrics.detectors import load_detector, prepare_
from metrics.frechet import trace_sqrt_product
from metrics.inception import InceptionV3
from metrics.measure import measure
from metrics.sources import open_source
from torch_utils.device import count_flops, select_device, select_precision

from .bench_sampling import CommaList
from .common import interleave, machine, matrix_peak, peak_memory, print_table

REFERENCES = dict(trace='scipy.linalg.sqrtm', features='torchvision, fp32')


def covariance(dim: int, count: int, seed: int) -> np.ndarray:
    """Of `count` random features whose scales fall as those of Inception's do."""
    features = np.random.default_rng(seed).standard_normal([count, dim]) * np.linspace(1, 0.05, dim)
    return np.cov(features, rowvar=False)


def trace(dim, rounds):
    """Time and accuracy of tr (S1 S2)^(1/2), where both have full rank and where one does not."""
    for name, counts in (('full rank', (2 * dim, 2 * dim)), ('of rank D / 2', (2 * dim, dim // 2 + 1))):
        first, second = (covariance(dim, count, seed) for seed, count in enumerate(counts))
        found = {}

        def ours(first=first, second=second, found=found):
            found['ours'] = trace_sqrt_product(first, second)
            return 1

        def scipys(first=first, second=second, found=found):
            found['scipy'] = np.trace(scipy.linalg.sqrtm(first @ second)).real
            return 1
        timings = interleave({'ours': (ours, 0), REFERENCES['trace']: (scipys, 0)}, 'cpu', rounds, warm=False)
        print_table(f'Trace of the square root, {dim} dimensions, {name} (a matrix is an "image")', timings,
                    reference=REFERENCES['trace'])
        click.echo(f'\ndifference {abs(found["ours"] - found["scipy"]):.1e} of {found["ours"]:.6g}')


def features(batch, rounds, device):
    """Images per second of Inception-v3 on 299x299 inputs (the resize from 32x32 included in ours)."""
    theirs = torchvision.models.inception_v3(weights=None, init_weights=False, aux_logits=True).to(device).eval()
    images = torch.randint(256, [batch, 3, 299, 299], dtype=torch.uint8, device=device)
    small = torch.randint(256, [batch, 3, 32, 32], dtype=torch.uint8, device=device)

    @torch.no_grad()
    def published():
        theirs(images.float() / 127.5 - 1)
        return batch
    flops = count_flops(published) / batch
    jobs, peaks = {}, {REFERENCES['features']: matrix_peak(device, torch.float32)}
    for precision in ('fp32', 'bf16'):
        dtype = select_precision(precision, device)
        net = prepare_(InceptionV3(), device, dtype)

        @torch.no_grad()
        def ours(net=net, dtype=dtype):
            net(small)
            return batch
        jobs[precision], peaks[precision] = (ours, flops), matrix_peak(device, dtype)
    jobs[REFERENCES['features']] = published, flops
    print_table(f'Inception-v3 features, batch {batch}', interleave(jobs, device, rounds), peaks,
                REFERENCES['features'])


def fid(count, device):
    """From shards on disk to moments with the shipped detector, beside the features alone; and the memory it takes."""
    detector = load_detector('cifar10', device)
    with tempfile.TemporaryDirectory() as folder:
        for first in range(0, count, 500):
            images = np.random.randint(256, size=[min(500, count - first), 32, 32, 3], dtype=np.uint8)
            np.savez(Path(folder, f'samples_{first:08d}.npz'), samples=images)
        source = open_source(folder)
        measure(source, detector, 0, min(count, 500), batch=100)
        for name, stop in (('a fifth', count // 5), ('all', count)):
            started = time.perf_counter()
            measure(source, detector, 0, stop, batch=100)
            seconds = time.perf_counter() - started
            click.echo(f'{name}: {stop} images in {seconds:.1f} s, {stop / seconds:.0f} img/s, '
                       f'largest memory so far {peak_memory():.0f} MiB')
        batch = torch.from_numpy(images[:100]).permute(0, 3, 1, 2).to(device)
        alone = interleave({'features': (lambda: len(detector(batch)), 0)}, device, 10)['features']
        click.echo(f'the features alone: {1 / alone.seconds:.0f} img/s')


@click.command()
@click.option('--what', help='Comma-separated', type=CommaList(['trace', 'features', 'fid']),
              default='trace,features,fid', show_default=True)
@click.option('--dim', help='Dimensions of the features', type=click.IntRange(min=4), default=2048, show_default=True)
@click.option('--images', help='Images of the end-to-end run', type=click.IntRange(min=100), default=5000,
              show_default=True)
@click.option('--batch', help='Images per Inception batch', type=click.IntRange(min=1), default=32, show_default=True)
@click.option('--rounds', help='Interleaved repetitions', type=click.IntRange(min=1), default=3, show_default=True)
@click.option('--device', help='auto, cpu, cuda or cuda:0', type=str, default='auto', show_default=True)
def main(what, dim, images, batch, rounds, device):
    """Print tables of the speed of measuring."""
    with blame('--device'):
        device = select_device(device)
    click.echo(machine(device))
    if 'trace' in what:
        trace(dim, rounds)
    if 'features' in what:
        features(batch, rounds, device)
    if 'fid' in what:
        click.echo(f'\nFD-CIFAR10 from shards, {images} images\n')
        fid(images, device)


if __name__ == '__main__':
    main()
