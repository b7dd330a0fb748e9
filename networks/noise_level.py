"""The noise-level model of denoising MCMC (Kim and Ye, ICML 2023): which of K noise levels an image has.

Two sizes are published, for 32 and 256 pixels. Their weights have the same shapes and names, so a published file says
neither which of the two it is nor the range of its levels.
"""

import math
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from torch_utils import checkpoint

CONSTRUCTOR = 'NoiseLevelNet'
WIDTHS = (32, 64, 128, 256)
STRIDES = {32: (2, 2, 2, 2), 256: (4, 4, 4, 2)}  # of the poolings, by resolution; each averages 2x2 pixels
# Published files: their resolution and largest level; levels of images in [-1, 1] are twice those in [0, 1].
PUBLISHED = {'cifar10-32': dict(img_resolution=32, sigma_min=0.02, sigma_max=100.0),
             'celebahq-256': dict(img_resolution=256, sigma_min=0.02, sigma_max=696.0)}


class NoiseLevelNet(nn.Module):
    """Four convolutions with average pooling, and a linear layer: x [N, C, R, R] = y + sigma n -> logits [N, K].

    x is in units of images y in [-1, 1]; the layers see (x + 1) / 2, as published. `sigmas` [K], float64, are
    sigma_min (sigma_max / sigma_min)^t for t from 1 down to 1e-3: class 0 is the largest. Raises ValueError for another
    resolution R than 32 and 256, and for an empty range.
    """

    def __init__(self, img_resolution=32, img_channels=3, sigma_min=0.002, sigma_max=80.0, levels=1000):
        super().__init__()
        if img_resolution not in STRIDES:
            raise ValueError(f'a noise-level model for {img_resolution}x{img_resolution} images is not known; there '
                             f'are {" and ".join(map(str, STRIDES))}')
        if not (0 < sigma_min < sigma_max < math.inf and levels > 1):
            raise ValueError(f'{levels} noise levels from {sigma_min:g} to {sigma_max:g} are not a range')
        self.init_kwargs = dict(img_resolution=img_resolution, img_channels=img_channels, sigma_min=sigma_min,
                                sigma_max=sigma_max, levels=levels)
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        t = torch.linspace(1, 1e-3, levels, dtype=torch.float64)
        self.sigmas = sigma_min * (sigma_max / sigma_min) ** t
        for i, (before, after) in enumerate(zip((img_channels, *WIDTHS), WIDTHS), 1):
            setattr(self, f'conv{i}', nn.Conv2d(before, after, 3, padding=1))
        self.fc = nn.Linear(WIDTHS[-1] * 4, levels)

    def forward(self, x):
        h = (x.to(torch.float32) + 1) / 2
        for i, stride in enumerate(STRIDES[self.img_resolution], 1):
            h = F.avg_pool2d(F.relu(getattr(self, f'conv{i}')(h)), 2, stride)
        return self.fc(h.flatten(1))  # of [N, 256, 2, 2]


def save_noise_level(path, net: NoiseLevelNet, metadata: dict | None = None) -> None:
    """Write `net` as safetensors."""
    checkpoint.save_network(path, net, CONSTRUCTOR, net.init_kwargs, metadata)


def load_noise_level(path, published: str | None = None, device='cpu') -> NoiseLevelNet:
    """A noise-level model from a file of `save_noise_level`, or from a published one.

    published: which one of PUBLISHED a published .pt is. Frozen, in float32. Raises ValueError and OSError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist')
    kwargs, state = _read_published(path, published) if is_published(path) else _read_own(path, published)
    try:
        net = NoiseLevelNet(**kwargs)
        net.load_state_dict({name: tensor.to(torch.float32) for name, tensor in state.items()})
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f'{path} is not a noise-level model: {" ".join(str(error).split())[:200]}') from None
    return net.to(device).eval().requires_grad_(False)


def is_published(path) -> bool:
    """Whether a file, if there is one, is of torch.save, as the published ones are; ours describe themselves."""
    path = Path(path)
    if not path.is_file():
        return False
    with open(path, 'rb') as file:
        return file.read(2) == b'PK'


def _read_own(path: Path, published):
    if published is not None:
        raise ValueError(f'{path} describes itself; leave out the name, which only a published .pt needs')
    file = checkpoint.read_network(path)
    if file.constructor != CONSTRUCTOR:
        raise ValueError(f'{path} holds a {file.constructor}, not a noise-level model; '
                         f'train_classifier.py --task=noise_level makes one')
    return file.kwargs, file.state


def _read_published(path: Path, published):
    if published not in PUBLISHED:
        raise ValueError(f'{path} says neither its resolution nor its levels; name what it is: '
                         f'{" or ".join(PUBLISHED)}')
    data = checkpoint.load_state(path)
    if not isinstance(data, dict) or not isinstance(data.get('net'), dict):
        raise ValueError(f'{path} is a PyTorch file, but not a published noise-level model (epoch, opt, net)')
    return PUBLISHED[published], data['net']
