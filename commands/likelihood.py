"""The likelihood of a data set under a network of reflected diffusion, on all ranks: its options, values and file."""

import json
import math

import click
import torch

from dnnlib.cli import blame
from dnnlib.files import atomic_write, resolve_output
from sampling.reflected_likelihood import bits_per_dim, log_likelihood
from torch_utils import distributed as dist
from torch_utils.progress import progress
from torch_utils.rng import StackedRandomGenerator
from training.data import ImageData

LIKELIHOOD = [
    click.option('--likelihood', 'data', help='Instead of drawing: bits per dimension of these images',
                 metavar='ZIP|DIR|NPZ', type=str),
    click.option('--max_images', help='Use a subset of this many images', metavar='INT', type=click.IntRange(min=1)),
    click.option('--probes', help='Random probes of the divergence for each image', metavar='INT',
                 type=click.IntRange(min=1), default=1, show_default=True),
]


def likelihood(net, data, *, probes: int, batch: int, device, **flow) -> dict:
    """Bits per dimension of the images of `data` (ImageData), with errors.

    Image k is dequantised, and its probes are drawn, by a generator of seed k, so that ranks and batches do not matter.
    `flow` are options of `log_likelihood`. The standard error is that of the mean over images; the spread is the mean
    over images of the standard deviation over an image's probes (0 for one probe).
    """
    count, dims = len(data), data.images[0].numel()
    bits = torch.zeros([count, probes], dtype=torch.float64)
    own = range(dist.get_rank(), count, dist.get_world_size())
    with progress(total=len(own) * probes, desc='likelihood') as bar:
        for start in range(0, len(own), batch):
            rows = list(own[start:start + batch])
            rnd = StackedRandomGenerator('cpu', rows)
            images = data.images[rows].to(torch.float64)
            x = ((images + rnd.rand(images.shape, dtype=torch.float64)) / 256).to(device)
            labels = None
            if net.label_dim:
                labels = torch.eye(net.label_dim)[data.labels[rows]].to(device)
            for probe in range(probes):
                signs = (2.0 * rnd.randint(2, size=images.shape) - 1).to(device)
                bits[rows, probe] = bits_per_dim(log_likelihood(net, x, signs, labels, **flow).cpu(), dims)
                bar.update(len(rows))
                dist.sign_of_life()
    dist.all_reduce_(bits)
    means = bits.mean(1)
    return dict(bits_per_dim=means.mean().item(), images=count, probes=probes,
                standard_error=means.std().item() / math.sqrt(count) if count > 1 else None,
                probe_spread=bits.std(1).mean().item() if probes > 1 else None)


def measure(opts: dict, net, machine, record: dict) -> None:
    """Write likelihood.json, and show what is in it."""
    with blame('--likelihood'):
        data = ImageData(opts['data'], max_images=opts['max_images'], resolution=net.img_resolution,
                         channels=net.img_channels, quiet=dist.get_rank() != 0)
        if net.label_dim and (data.labels is None or data.num_classes > net.label_dim):
            raise ValueError(f'the network has {net.label_dim} classes, the images {data.num_classes or "none"}')
    with blame('--tolerance'):
        found = likelihood(net, data, probes=opts['probes'], batch=opts['batch'], device=machine.device,
                           moll=opts['moll'], rtol=opts['tolerance'], atol=opts['tolerance'])
    if dist.get_rank() == 0:
        outdir = resolve_output(opts['outdir'])
        found = record | dict(data=data.name, data_sha256=data.digest(), moll=opts['moll'],
                              tolerance=opts['tolerance']) | found
        with blame('--outdir'), atomic_write(outdir / 'likelihood.json') as file:
            file.write((json.dumps(found, indent=1) + '\n').encode())
        error = '' if found['standard_error'] is None else f' +- {found["standard_error"]:.4f}'
        spread = '' if found['probe_spread'] is None else f', {found["probe_spread"]:.4f} between probes'
        print(f'{found["bits_per_dim"]:.4f}{error} bits per dimension of {len(data)} images{spread}', flush=True)
    dist.shutdown()
