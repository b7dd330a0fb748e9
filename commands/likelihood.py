"""The likelihood of a data set under a network of reflected diffusion, on all ranks."""

import math

import torch

from sampling.reflected_likelihood import bits_per_dim, log_likelihood
from torch_utils import distributed as dist
from torch_utils.progress import progress
from torch_utils.rng import StackedRandomGenerator


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
