"""Throughput of DiffRS per accepted image, the share of each part, and the published script on the same weights.

    python -m benchmarks.bench_diffrs [--images=64] [--batch=32] [--precision=fp32,bf16] [--reference EDM DIFFRS]

Uses the shipped demo networks and thresholds of a short warm-up; the warm-up is not timed. The parts' times are taken
around each call of a network, waiting for the device there, so that the total with them is a little longer.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch

import classifier_lib
import networks
from dnnlib import demo
from sampling.diffrs import WARMUP_SEED, calibrate, diffrs_sampler
from torch_utils.checkpoint import read_network
from torch_utils.device import PRECISIONS, select_device, select_precision


class Timed:
    """A network with a stop watch."""

    def __init__(self, net, device):
        self.net, self.device, self.seconds, self.rows, self.calls = net, device, 0.0, 0, 0

    def __getattr__(self, name):
        return getattr(self.net, name)

    def wait(self):
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __call__(self, x, *args):
        started = self.wait()
        result = self.net(x, *args)
        self.seconds += self.wait() - started
        self.rows += len(x)
        self.calls += 1
        return result


def load(device, precision):
    """(demo score network, its log-ratio)."""
    dtype = select_precision(precision, device)
    net = networks.load_network(demo.DEMO_SCORE, device=device, dtype=dtype)
    return net, classifier_lib.load_log_ratio(demo.DEMO_CLASSIFIER, demo.DEMO_DISCRIMINATOR, net, False, device, dtype)


def ours(precision, device, images, batch, percentile, calibration, timed=False):
    """One run: dict of seconds, images, nfe and, where `timed`, the shares of the parts."""
    net, log_ratio = load(device, precision)
    parts = dict(net=Timed(net, device), log_ratio=Timed(log_ratio, device)) if timed else dict(
        net=net, log_ratio=log_ratio)
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    results = list(diffrs_sampler(**parts, seeds=range(images), batch_size=batch, device=device,
                                  rej_percentile=percentile, thresholds=calibration))
    results[-1].images.cpu()
    seconds = time.perf_counter() - started
    run = dict(seconds=seconds, images=images, nfe=float(np.mean(np.concatenate([r.nfe for r in results]))))
    if timed:
        for name, part in parts.items():
            run[f'{name}_share'], run[f'{name}_batch'] = part.seconds / seconds, part.rows / part.calls
        run['host_share'] = 1 - run['net_share'] - run['log_ratio_share']
    return run


def published_loop(edm, diffrs, device, images, batch, percentile, calibration):
    """The published loop in a process of its own."""
    files = {name: read_network(path) for name, path in dict(
        network=demo.DEMO_SCORE, classifier=demo.DEMO_CLASSIFIER, discriminator=demo.DEMO_DISCRIMINATOR).items()}
    job = dict(device=str(device), images=images, batch=batch, rej_percentile=percentile,
               threads=torch.get_num_threads(),
               network=dict(constructor=files['network'].constructor, kwargs=files['network'].kwargs))
    default = dict(classifier_attention_resolutions='32,16,8')
    for name in ('classifier', 'discriminator'):
        job[name] = default | {key: value for key, value in files[name].kwargs.items() if key != 'num_classes'}
    log_ratio = torch.from_numpy(calibration.log_ratio).float()
    states = {name: {key: value.float() for key, value in file.state.items()} for name, file in files.items()}
    states |= dict(log_ratio=log_ratio, increments=torch.diff(log_ratio, dim=0, prepend=log_ratio[:1]))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / 'job.json').write_text(json.dumps(job))
        torch.save(states, Path(folder) / 'states.pt')
        worker = Path(__file__).with_name('reference_diffrs.py')
        subprocess.run([sys.executable, str(worker), edm, diffrs, folder], check=True, stdout=subprocess.DEVNULL)
        return json.loads((Path(folder) / 'result.json').read_text())


def row(name, run):
    per_image = run['seconds'] / run['images']
    text = f'{name:22s} {1 / per_image:8.3f} img/s {1000 * per_image:9.1f} ms/img  NFE {run["nfe"]:5.1f}'
    if 'host_share' in run:
        text += (f'  score network {run["net_share"]:.1%} (batch {run["net_batch"]:.1f})  discriminator '
                 f'{run["log_ratio_share"]:.1%} (batch {run["log_ratio_batch"]:.1f})  host {run["host_share"]:.2%}')
    click.echo(text)


@click.command()
@click.option('--images', type=click.IntRange(min=1), default=64, show_default=True)
@click.option('--batch', type=click.IntRange(min=1), default=32, show_default=True)
@click.option('--rej_percentile', type=click.FloatRange(0, 1), default=0.75, show_default=True)
@click.option('--precision', help='Comma-separated', type=str, default='fp32,bf16', show_default=True)
@click.option('--device', type=str, default='auto', show_default=True)
@click.option('--rounds', help='Interleaved repetitions', type=click.IntRange(min=1), default=2, show_default=True)
@click.option('--reference', nargs=2, help='Checkouts of EDM and DiffRS', metavar='EDM DIFFRS', type=str)
def main(images, batch, rej_percentile, precision, device, rounds, reference):
    """Print images per second of each mode, the shares of the parts, and ratios to the published script."""
    device = select_device(device)
    modes = precision.split(',')
    if not set(modes) <= set(PRECISIONS):
        raise click.UsageError(f'--precision: use some of {", ".join(PRECISIONS)}')
    net, log_ratio = load(device, modes[-1])
    warmup = range(WARMUP_SEED, WARMUP_SEED + 2 * batch)
    calibration = calibrate(net, log_ratio, warmup, batch_size=batch, device=device)
    click.echo(f'{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, batch {batch}, '
               f'{images} images, percentile {rej_percentile}')
    best, job = {}, (device, images, batch, rej_percentile, calibration)
    for _ in range(rounds):
        runs = {f'ours, {mode}': ours(mode, *job) for mode in modes}
        if reference:
            runs['published, fp32'] = published_loop(*reference, *job)
        for name, run in runs.items():
            if name not in best or run['seconds'] / run['images'] < best[name]['seconds'] / best[name]['images']:
                best[name] = run
    for name, run in best.items():
        row(name, run)
    for mode in modes:
        row(f'parts, {mode}', ours(mode, *job, timed=True))
    if reference:
        slow = best['published, fp32']['seconds'] / best['published, fp32']['images']
        for mode in modes:
            click.echo(f'{mode}: {slow * images / best[f"ours, {mode}"]["seconds"]:.2f} times the published throughput')


if __name__ == '__main__':
    main()
