"""Score networks of reflected diffusion (Lou and Ermon, ICML 2023), and files of them."""

import os

import torch

from diffusion.reflected_sde import ReflectedVE
from dnnlib.download import fetch
from dnnlib.files import resolve_path
from torch_utils import checkpoint

from .dhariwal_unet import DhariwalUNet
from .formats.text import shown
from .io import read_network_file
from .precond import label_rows, set_precision
from .reflected_runs import is_run_folder, read_run_folder, renamed
from .song_unet import SongUNet
from .vdm import VDM, ImageFourier

MODELS = {'SongUNet': SongUNet, 'DhariwalUNet': DhariwalUNet, 'VDM': VDM}
CONSTRUCTOR = 'ReflectedPrecond'


class ReflectedPrecond(torch.nn.Module):
    """A U-Net F behind D(x; sigma) = x + sigma^2 score, score = F(x; sigma) / sigma; x in [0, 1].

    Called as `net(x, sigma, class_labels=None)`: x [N, C, H, W] in [0, 1] is an image y in [0, 1] diffused with
    reflecting walls; sigma [] or [N]; class_labels one-hot [N, label_dim] (None is the all-zero label). Gives D in the
    dtype of x, float32 or float64: with float64, (D - x) / sigma^2 is the score to full precision. D is no mean of
    images near the walls, so other samplers than those of sampling/reflected.py have no use for it.

    Args:
        img_resolution, img_channels, label_dim: of the images; label_dim 0: no classes.
        sigma_min, sigma_max: range of the noise levels in training.
        scale_by_sigma: whether F is the score times sigma, or the score itself.
        image_fourier: (start, end) of ImageFourier in front of F, or None.
        sigma_data: None: F is the U-Net, as published. A number: F is made of a U-Net in EDM's preconditioning
        with this sigma_data, see `edm_raw`.
        model_type, model_kwargs: the U-Net and its arguments. As published, SongUNet sees 2 x - 1 and log(sigma),
        DhariwalUNet x and log(sigma / 2), VDM x and the place of sigma between sigma_min and sigma_max.
    """

    def __init__(self, img_resolution, img_channels, label_dim=0, sigma_min=0.01, sigma_max=5.0, scale_by_sigma=True,
                 image_fourier=None, sigma_data=None, model_type='SongUNet', **model_kwargs):
        super().__init__()
        if model_type not in MODELS:
            raise ValueError(f'model_type {model_type!r} is not one of {", ".join(MODELS)}')
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f'noise levels from {sigma_min:g} to {sigma_max:g}: give 0 < sigma_min < sigma_max')
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.sigma_min, self.sigma_max, self.scale_by_sigma = float(sigma_min), float(sigma_max), scale_by_sigma
        if sigma_data is not None and not (scale_by_sigma and image_fourier is None):
            raise ValueError('sigma_data: EDM\'s preconditioning is scaled by sigma and has no image_fourier')
        self.sigma_data = sigma_data
        self.body_dtype = torch.float32
        self.features = None if image_fourier is None else ImageFourier(*image_fourier)
        count = 1 if image_fourier is None else 1 + 2 * len(self.features.freqs)
        self.model = MODELS[model_type](img_resolution=img_resolution, in_channels=count * img_channels,
                                        out_channels=img_channels, label_dim=label_dim, **model_kwargs)

    def raw(self, x, sigma, class_labels=None):
        """F(x; sigma) [N, C, H, W], float32, of x [N, C, H, W] and sigma [] or [N]."""
        x, sigma = x.to(torch.float32), sigma.to(torch.float32).reshape(-1)
        class_labels = label_rows(class_labels, self.label_dim, x.device)
        if self.sigma_data is not None:
            return self.edm_raw(2 * x - 1, 2 * sigma, class_labels)
        inputs, noise = 2 * x - 1 if isinstance(self.model, SongUNet) else x, self._noise_label(sigma)
        if self.features is not None:
            inputs = self.features(inputs)  # before x loses its last bits
        body_in = inputs.to(self.body_dtype, memory_format=torch.channels_last)
        return self.model(body_in, noise, class_labels=class_labels).to(torch.float32)

    def edm_raw(self, x, sigma, class_labels):
        """score_size (D(x; sigma) - x) / sigma with EDM's D (Karras et al., NeurIPS 2022, Eq. 7), in units of [-1, 1].

        Away from the walls the kernels of both diffusions are alike, and (D - x) / sigma is sigma times the score of
        EDM's, so a trained D is a start for the reflected one. At large sigma the reflected score vanishes and EDM's
        does not; hence `score_size`. Written so that x does not cancel.
        """
        size = score_size(sigma / 2).reshape(-1, 1, 1, 1)
        sigma = sigma.reshape(-1, 1, 1, 1)
        total = sigma**2 + self.sigma_data**2
        body_in = (x / total.sqrt()).to(self.body_dtype, memory_format=torch.channels_last)
        F_x = self.model(body_in, sigma.log().flatten() / 4, class_labels=class_labels).to(torch.float32)
        return size * (self.sigma_data / total.sqrt() * F_x - sigma / total * x)

    def _noise_label(self, sigma):
        if isinstance(self.model, VDM):
            return 1000 * ((sigma - self.sigma_min) / (self.sigma_max - self.sigma_min))
        return sigma.log() if isinstance(self.model, SongUNet) else (sigma / 2).log()

    def forward(self, x, sigma, class_labels=None):
        dtype = torch.promote_types(x.dtype, torch.float32)
        factor = sigma.to(dtype).reshape(-1, 1, 1, 1)
        factor = factor if self.scale_by_sigma else factor**2
        return x.to(dtype) + factor * self.raw(x, sigma, class_labels)

    def round_sigma(self, sigma):
        """The nearest noise level that the network knows: every one."""
        return torch.as_tensor(sigma)

    def decode(self, x):
        """Images [-1, 1] of states [0, 1]."""
        return 2 * x - 1


def score_size(sigma: torch.Tensor) -> torch.Tensor:
    """How large sigma times the score of the heat kernel on [0, 1] is, up to a factor below 2: 1 up to sigma = 1 / pi.

    Beyond it is pi sigma exp((1 - (pi sigma)^2) / 2). The kernel's first mode, the last to vanish, has the root mean
    square pi sigma exp(-(pi sigma)^2 / 2) under even x and clean values; times sqrt(e) this goes over into 1 smoothly.
    """
    u = (torch.pi * sigma).clamp(min=1)
    return u * ((1 - u**2) / 2).exp()


def construct_reflected(kwargs: dict) -> ReflectedPrecond:
    """A network that remembers its arguments, so that it can be saved. Raises ValueError."""
    try:
        net = ReflectedPrecond(**kwargs)
    except TypeError as error:
        raise ValueError(f'{CONSTRUCTOR} does not take these arguments ({error})') from None
    net.constructor, net.init_kwargs = CONSTRUCTOR, dict(kwargs)
    return net


def reflected_from(path_or_url: str | os.PathLike, sigma_min: float, sigma_max: float, dropout: float = 0.0):
    """A reflected network that begins with the weights of an EDM network, which denoises images in [-1, 1].

    sigma_min, sigma_max: noise levels of images in [0, 1], half those of images in [-1, 1]. Raises ValueError and
    OSError, in one line, also for a network of another preconditioning.
    """
    file = read_network_file(fetch(path_or_url))
    if file.constructor != 'EDMPrecond':
        raise ValueError(f'{path_or_url} is a {file.constructor}; only EDM\'s preconditioning has a reflected form')
    dropped = ('use_fp16', 'sigma_min', 'sigma_max', 'augment_dim')
    kwargs = {name: value for name, value in file.kwargs.items() if name not in dropped}
    kwargs = dict(sigma_data=0.5, model_type='DhariwalUNet') | kwargs | dict(
        sigma_min=sigma_min, sigma_max=sigma_max, dropout=dropout)
    ReflectedVE(sigma_min, sigma_max)  # a wrong range is not the file's mistake
    state = {name: tensor for name, tensor in file.state.items() if 'map_augment' not in name}  # augmented by nothing
    return _build(path_or_url, kwargs, state)


def _build(source, kwargs: dict, tensors: dict, named=lambda net, tensors: tensors) -> ReflectedPrecond:
    """The network of a file or folder `source`; `named(net, tensors)` is its state. Raises ValueError."""
    try:
        with checkpoint.limited(tensors):
            net = construct_reflected(kwargs)
        net.load_state_dict(named(net, tensors))
    except Exception as error:  # unexpected arguments can fail in any way
        raise ValueError(f'{source} does not fit its own description: {shown(error, 300)}') from None
    return net


def load_reflected(path_or_url: str | os.PathLike, device: torch.device | str = 'cpu',
                   dtype: torch.dtype = torch.float32, raw: bool = False,
                   number: int | None = None) -> ReflectedPrecond:
    """A network from safetensors or a published run folder (see reflected_runs.py); nothing in it is executed.

    `dtype` is that of the U-Net's body. Of a run folder: `raw`, the weights instead of their average; `number`, that of
    the checkpoint (None: the newest). The network is in evaluation mode, frozen; `metadata` says where it is from.
    Raises ValueError or OSError, in one line.
    """
    if is_run_folder(resolve_path(path_or_url)):
        file = read_run_folder(resolve_path(path_or_url), raw, number)
        net = _build(path_or_url, file.kwargs, file.tensors, renamed)
    else:
        path = fetch(path_or_url)
        if path.is_dir():
            raise ValueError(f'{path} is not a run folder: it has no .hydra/config.yaml')
        file = checkpoint.read_network(path)
        if file.constructor != CONSTRUCTOR:
            raise ValueError(f'{path} is a {file.constructor}, not a network of reflected diffusion')
        net = _build(path_or_url, file.kwargs, file.state)
    net.metadata = file.metadata
    return set_precision(net.to(device), dtype).eval().requires_grad_(False)
