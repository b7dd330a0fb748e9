"""Detectors: networks that turn uint8 images into the features that distances compare."""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dnnlib import demo
from dnnlib.download import fetch
from torch_utils.transfer import upload

from .dinov2 import load_dinov2
from .feature_net import load_feature_net
from .inception import load_inception
from .nvidia import load_nvidia


@dataclass(frozen=True)
class Detector:
    """A feature network on a device: `detector(images)` with uint8 [N, C, H, W] gives float32 [N, feature_dim].

    name: what statistics remember it by; distance: what its Frechet distance may be called;
    fingerprint: tells versions of a detector's weights apart, empty if they are unknown;
    size: height and width of its images, None if the network resizes them;
    classify: features [N, feature_dim] -> logits [N, K] for the Inception score, None if the network has no classes.
    """

    name: str
    distance: str
    feature_dim: int
    device: torch.device
    network: Callable[[torch.Tensor], torch.Tensor]
    fingerprint: str = ''
    size: int | None = None
    classify: Callable[[torch.Tensor], torch.Tensor] | None = None

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if self.size is not None and tuple(images.shape[1:]) != (3, self.size, self.size):
            raise ValueError(f'the detector {self.name} takes images [N, 3, {self.size}, {self.size}], '
                             f'not {list(images.shape)}')
        return self.network(upload(images, self.device)).to(torch.float32)


class Made(NamedTuple):
    """A detector's network; see Detector for the fields."""

    network: Callable[[torch.Tensor], torch.Tensor]
    feature_dim: int
    fingerprint: str
    classify: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass(frozen=True)
class DetectorKind:
    """How a detector is made, and what is known of it before it is.

    make: make(path, device, dtype) -> Made, with weights from `path` (a file or URL) or, for None, from where they are
    published; `dtype` is that of the network's body. Raises ValueError or OSError.
    distance, size: see Detector. runs_code: the file of weights is a program.
    """

    make: Callable[..., Made]
    distance: str
    size: int | None = None
    runs_code: bool = False


def make_cifar10(path, device, dtype):
    """The feature network that ships with this project."""
    path = fetch(path or demo.DEMO_FEATURES)
    net = load_feature_net(path)
    if net.img_channels != 3 or net.img_resolution != 32:
        raise ValueError(f'{path} is not for 32x32 RGB images')
    mark = fingerprint(net)  # of the weights as stored, before folding and casting; inference leaves them as they are
    weight, bias = net.head.weight.clone(), net.head.bias.clone()
    net = prepare_(net, device, dtype)
    return Made(lambda images: net(images, features=True), net.feature_dim, mark,
                lambda features: F.linear(features, weight, bias))


def make_inception(path, device, dtype):
    """Inception-v3 with pytorch-fid's weights, a state dict that is read weights-only."""
    net = load_inception(path)
    mark, weight = fingerprint(net), net.fc.weight.clone()  # the published Inception score has no biases
    return Made(prepare_(net, device, dtype), net.feature_dim, mark, lambda features: F.linear(features, weight))


def make_nvidia(path, device, dtype):
    """NVIDIA's TorchScript Inception-v3."""
    if dtype != torch.float32:
        raise ValueError('nvidia brings its own arithmetic; leave out --precision')
    network, mark = load_nvidia(path, device)
    return Made(network, 2048, mark)


def make_dinov2(path, device, dtype, resize='torch'):
    """DINOv2 ViT-L/14, a state dict that is read weights-only."""
    net = load_dinov2(path, resize)
    mark = fingerprint(net)
    return Made(net.to(device=device, dtype=dtype), net.feature_dim, mark)


DETECTORS = {
    'inception': DetectorKind(make_inception, 'FID'),
    'nvidia': DetectorKind(make_nvidia, 'FID', runs_code=True),
    'cifar10': DetectorKind(make_cifar10, 'FD-CIFAR10', size=32),
    'dinov2': DetectorKind(make_dinov2, 'FD-DINOv2'),
    'dinov2-pil': DetectorKind(functools.partial(make_dinov2, resize='pil'), 'FD-DINOv2'),  # as dgm-eval resizes
}


def load_detector(name: str, device='cpu', dtype: torch.dtype = torch.float32, path=None,
                  allow_code: bool = False) -> Detector:
    """The detector `name` of the table, with weights from `path` (a file or URL) or from where they are published.

    `dtype` is that of the network's body. A file that is a program needs `allow_code`. Raises ValueError or OSError.
    """
    if name not in DETECTORS:
        raise ValueError(f'{name!r} is not a detector; use {", ".join(DETECTORS)}')
    kind, device = DETECTORS[name], torch.device(device)
    if kind.runs_code and not allow_code:
        raise ValueError(f'the file of the detector {name} runs as a program; if you trust it, add --allow_code '
                         '(--detector=inception needs no such trust)')
    made = kind.make(path, device, dtype)
    return Detector(name, kind.distance, made.feature_dim, device, made.network, made.fingerprint, kind.size,
                    made.classify)


def prepare_(net: nn.Module, device, dtype: torch.dtype) -> nn.Module:
    """Makes `net` fast for inference, in place: normalisation folded, `dtype`, channels last, frozen."""
    fold_batch_norm_(net.eval().requires_grad_(False))
    return net.to(device=device, dtype=dtype, memory_format=torch.channels_last)


@torch.no_grad()
def fold_batch_norm_(net: nn.Module) -> nn.Module:
    """Folds each BatchNorm2d into the Conv2d registered right before it, in place; only for evaluation."""
    for parent in list(net.modules()):
        conv = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and conv is not None:
                conv.weight, conv.bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, child.running_mean, child.running_var, child.eps, child.weight, child.bias)
                conv.requires_grad_(False)
                setattr(parent, name, nn.Identity())
            conv = child if isinstance(child, nn.Conv2d) else None
    return net


def fingerprint(net: nn.Module) -> str:
    """Eight hexadecimal digits that change with any weight."""
    digest = hashlib.sha256()
    for key, tensor in sorted(net.state_dict().items()):
        digest.update(key.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]
