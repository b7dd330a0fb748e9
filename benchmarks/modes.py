"""The networks that benchmarks run, and the ways to run them."""

import functools
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import networks
from commands.machine import Machine, compile_for_sampling
from commands.score import PRESETS
from dnnlib import demo
from guided_diffusion import create_classifier
from torch_utils.checkpoint import save_network
from torch_utils.compiler import count_flops
from torch_utils.device import select_precision

from .common import synchronize

# The networks that EDM and DG publish for unconditional CIFAR-10.
FULL_SIZE = dict(
    score=dict(img_resolution=32, img_channels=3, label_dim=0, model_type='SongUNet', dropout=0.13, augment_dim=9,
               **PRESETS['cifar10-edm']['network']),
    classifier=dict(image_size=32, classifier_width=128, classifier_depth=4, out_channels=1000),
    discriminator=dict(image_size=8, classifier_width=128, classifier_depth=2, out_channels=1, in_channels=512))


@dataclass(frozen=True)
class Mode:
    """One way to run the networks."""

    precision: str
    dtype: torch.dtype
    net: networks.Precond
    log_ratio: networks.LogRatio
    net_flops: float  # operations per image of one evaluation, by direct convolutions
    log_ratio_flops: float


class Part:
    """A network that counts its images and, if `timed`, the seconds spent in it."""

    def __init__(self, net, device, timed: bool):
        self.net, self.device, self.timed = net, device, timed
        self.rows, self.seconds = 0, 0.0

    def __getattr__(self, name):
        return getattr(self.net, name)

    def watch(self, function, x, *args):
        if self.timed:
            synchronize(self.device)
        started = time.perf_counter()
        result = function(x, *args)
        if self.timed:
            synchronize(self.device)
        self.seconds += time.perf_counter() - started
        self.rows += len(x)
        return result

    def __call__(self, x, *args):
        return self.watch(self.net, x, *args)

    def value_and_grad(self, x, *args):
        return self.watch(self.net.value_and_grad, x, *args)


def network_files(kind: str, folder: Path) -> dict[str, Path]:
    """Files of score network, classifier and discriminator: the demo's, or full-size ones with random weights."""
    if kind == 'demo':
        return dict(score=demo.DEMO_SCORE, classifier=demo.DEMO_CLASSIFIER, discriminator=demo.DEMO_DISCRIMINATOR)
    torch.manual_seed(0)
    files = {name: folder / f'{name}.safetensors' for name in FULL_SIZE}
    networks.save_network(files['score'], networks.construct('EDMPrecond', FULL_SIZE['score']))
    for name in ('classifier', 'discriminator'):
        save_network(files[name], create_classifier(**FULL_SIZE[name]), 'create_classifier', FULL_SIZE[name])
    return files


def load_modes(files: dict[str, Path], precisions: list[str], compiled: bool, device) -> dict[str, Mode]:
    """The modes by name: each precision and, if `compiled`, the last one as scripts compile it."""
    modes = {}
    for precision, compiles in [(name, False) for name in precisions] + [(precisions[-1], True)] * compiled:
        dtype = select_precision(precision, device)
        net = networks.load_network(files['score'], device=device, dtype=dtype)
        log_ratio = networks.load_log_ratio(net, files['classifier'], files['discriminator'], dtype=dtype)
        flops = [count_flops(functools.partial(call_network, part, net, precision, 1, 1, device))
                 for part in (net, log_ratio)]
        if compiles:  # operations cannot be counted any more
            compile_for_sampling(Machine(device, dtype, precision, compile='on'), net, log_ratio, 1)
        modes[f'{precision} compiled' if compiles else precision] = Mode(precision, dtype, net, log_ratio, *flops)
    return modes


def noise(net, batch: int, device) -> torch.Tensor:
    """The images [batch, C, H, W] that networks are timed on, the same as in reference_worker."""
    return _noise((batch, net.img_channels, net.img_resolution, net.img_resolution), device)


@functools.lru_cache(maxsize=4)  # drawing and uploading them takes as long as some calls on a GPU
def _noise(shape, device):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


@torch.no_grad()
def call_network(evaluate, net, precision: str, batch: int, calls: int, device) -> int:
    """Call evaluate(images, sigma) `calls` times with images of the size of `net`'s; returns the number of images."""
    select_precision(precision, device)
    x = noise(net, batch, device).to(torch.float64)  # as samplers call it
    sigma = torch.ones([batch], dtype=torch.float64, device=device)
    for _ in range(calls):
        evaluate(x, sigma)
    return batch * calls
