"""Detectors: networks that turn uint8 images into the features that distances compare."""

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dnnlib import demo
from dnnlib.download import fetch
from torch_utils.checkpoint import load_state
from torch_utils.transfer import upload

from .feature_net import load_feature_net
from .inception import InceptionV3

INCEPTION_URL = ('https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
                 'pt_inception-2015-12-05-6726825d.pth')
INCEPTION_SHA256 = '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2'
NVIDIA_URL = 'https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt'
DETECTORS = ('inception', 'nvidia', 'cifar10')


@dataclass(frozen=True)
class Detector:
    """A feature network on a device: `detector(images)` with uint8 [N, C, H, W] gives float32 [N, feature_dim].

    name: what statistics remember it by; distance: what its Frechet distance may be called;
    fingerprint: tells versions of a detector's weights apart, empty where they are unknown.
    """

    name: str
    distance: str
    feature_dim: int
    device: torch.device
    network: Callable[[torch.Tensor], torch.Tensor]
    fingerprint: str = ''

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(upload(images, self.device)).to(torch.float32)


def load_detector(name: str, device='cpu', dtype: torch.dtype = torch.float32, path=None,
                  allow_code: bool = False) -> Detector:
    """The detector `name`, with weights from `path` (a file or URL) or from where they are published.

    inception: Inception-v3 with pytorch-fid's weights (a state dict, read weights-only); FID.
    nvidia: NVIDIA's TorchScript Inception-v3. Such a file is a program, so `allow_code` must be set; FID.
    cifar10: the feature network that ships with this project; its distance is FD-CIFAR10, not FID.

    `dtype` is that of the network's body. Raises ValueError or OSError.
    """
    device = torch.device(device)
    if name == 'cifar10':
        path = fetch(path or demo.DEMO_FEATURES)
        net = load_feature_net(path)
        if net.img_channels != 3 or net.img_resolution != 32:
            raise ValueError(f'{path} is not for 32x32 RGB images')
        # Of the weights as stored, before folding and casting; inference leaves them as they are.
        mark = fingerprint(net)
        net = prepare_(net, device, dtype)
        return Detector(name, 'FD-CIFAR10', net.feature_dim, device, lambda x: net(x, features=True), mark)
    if name == 'inception':
        net = load_inception(path)
        mark = fingerprint(net)
        net = prepare_(net, device, dtype)
        return Detector(name, 'FID', net.feature_dim, device, net, mark)
    if name == 'nvidia':
        if dtype != torch.float32:
            raise ValueError('nvidia brings its own arithmetic; leave out --precision')
        return Detector(name, 'FID', 2048, device, *_load_nvidia(path, device, allow_code))
    raise ValueError(f'{name!r} is not a detector; use {", ".join(DETECTORS)}')


def load_inception(path=None) -> InceptionV3:
    """Inception-v3 with the published weights, from `path` or fetched once and checked. Raises ValueError, OSError."""
    path = fetch(INCEPTION_URL, sha256=INCEPTION_SHA256) if path is None else fetch(path)
    if path.suffix == '.pkl':
        raise ValueError(f'{path.name} is a pickle, which would run code; give pt_inception-2015-12-05-6726825d.pth')
    state = load_state(path)
    with torch.device('meta'):  # the file brings all values
        net = InceptionV3()
    expected = net.state_dict()
    if not isinstance(state, dict) or not (expected.keys() - _counters(expected)) <= state.keys():
        raise ValueError(f'{path.name} does not hold the Inception-v3 of pytorch-fid '
                         '(pt_inception-2015-12-05-6726825d.pth)')
    # Published before torch counted batches in each normalisation; the counters play no part in inference.
    state = state | {key: torch.zeros([], dtype=torch.int64) for key in _counters(expected)}
    try:
        net.load_state_dict(state, assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f'{path.name} does not fit Inception-v3: {str(error).splitlines()[-1].strip()}') from None
    return net.eval().requires_grad_(False)


def _counters(state):
    return {key for key in state if key.endswith('num_batches_tracked')}


def _load_nvidia(path, device, allow_code):
    """NVIDIA's TorchScript detector as a function of uint8 images, which resizes and scales; its fingerprint."""
    if not allow_code:
        raise ValueError("NVIDIA's detector is a file that runs as a program; if you trust it, add --allow_code "
                         '(--detector=inception needs no such trust)')
    path = fetch(path or NVIDIA_URL)
    if path.suffix == '.pkl':
        raise ValueError(f'{path.name} is a pickle, which this project never loads; '
                         f'give the TorchScript file {NVIDIA_URL.rsplit("/", 1)[1]} instead')
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # TorchScript is deprecated, but the file exists in no other safe form
            net = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f'{path.name} is not a TorchScript file ({str(error).splitlines()[0]})') from None
    return lambda images: net(images, return_features=True), hashlib.sha256(path.read_bytes()).hexdigest()[:8]


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
