"""ADM classifiers of noisy images, and discriminators on their features, read from files (DG, Kim et al. 2023)."""

from pathlib import Path

import torch

from diffusion.vpsde import VPSDE
from dnnlib.files import resolve_path
from guided_diffusion import Architecture, create_classifier, read_architecture, set_precision
from torch_utils.checkpoint import limited, load_state, read_network

from .lora import Adapters, merge

FEATURE_SIZE = 8  # height and width of the features that published discriminators read


def time_convention(resolution: int) -> str:
    """The time that published classifiers of this resolution were trained with: 'cosine' or 'linear'."""
    return 'cosine' if resolution == 64 else 'linear'


def vp_mean_and_time(sigma, x, time: str):
    """VP mean [N, 1, 1, 1] and network time [N] for noise levels [] or [N] of x [N, C, H, W], computed in float64.

    A classifier sees mean(tau) x at time tau(sigma); `time` is 'linear', or 'cosine' for that of the cosine schedule.
    """
    sde = VPSDE()
    sigma = torch.as_tensor(sigma, dtype=torch.float64, device=x.device).expand(x.shape[0])
    tau = sde.tau(sigma)
    mean, _ = sde.marginal(tau)
    t = sde.t_cos(tau) if time == 'cosine' else tau
    return mean[:, None, None, None], t.to(torch.float32)


def new_classifier(kwargs: dict, dtype, device):
    """ADM's classifier with fresh weights, ready to be trained; `kwargs` as `guided_diffusion.create_classifier`'s."""
    return set_precision(create_classifier(**kwargs).to(device), dtype, training=True)


def load_classifier(ckpt_path, img_resolution, device, eval=True, *, dtype=torch.float32):
    """The ADM classifier whose middle block feeds discriminators.

    Its width, depth and channels come from the file; without a file (None) it is DG's, with fresh weights.
    Frozen if `eval`. Raises ValueError for another resolution, or if the file is something else.
    """
    if ckpt_path is None:
        depth = 4 if img_resolution in (32, 64) else 2
        net = create_classifier(img_resolution, classifier_width=128, classifier_depth=depth)
        return _ready(net, dtype, device, eval)
    net, architecture = read_classifier(ckpt_path, 'classifier', img_resolution, dtype, device, eval)
    if architecture.image_size != img_resolution:
        raise ValueError(f'classifier {ckpt_path} is for {architecture.image_size}x{architecture.image_size} images, '
                         f'these are {img_resolution}x{img_resolution}')
    return net


def load_discriminator(ckpt_path, device, condition, eval=False, channel=512, *, depth=2, width=128, num_classes=1000,
                       dtype=torch.float32):
    """A discriminator on features of `channel` channels.

    Its size comes from the file; without a file (None) it is new, for features of 8x8, with `width`, `depth` (2, for
    FFHQ 4) and, if `condition`, `num_classes`. Frozen if `eval`. Raises ValueError if the file contradicts `condition`
    or `channel`.
    """
    if ckpt_path is None:
        net = Architecture(FEATURE_SIZE, width, depth, '8', channel, 1, num_classes if condition else 0).build()
        return _ready(net, dtype, device, eval)
    net, architecture = read_classifier(ckpt_path, 'discriminator', FEATURE_SIZE, dtype, device, eval)
    check_discriminator(ckpt_path, architecture, condition, channel, architecture.feature_size)
    return net


def read_classifier(path, what: str, image_size: int, dtype, device, eval: bool = True,
                    adapters: Adapters | None = None):
    """(network, its architecture) from a file; the network carries the file's metadata. `what` is for messages.

    If the shapes leave a choice of image size, the size that the file records decides, else `image_size`. `adapters`
    are added to the weights.
    Raises ValueError and OSError.
    """
    state, metadata, recorded = _read(path, what)
    try:
        architecture = read_architecture(state, recorded or image_size)
        with limited(state):
            net = architecture.build()
        net.load_state_dict(state if adapters is None else merge(state, adapters))
    except Exception as error:  # unexpected shapes and names can fail in any way
        raise ValueError(f'{what} {path}: {" ".join(str(error).split())[:300]}') from None
    net.metadata = metadata
    return _ready(net, dtype, device, eval), architecture


def check_discriminator(path, architecture, condition, channel, feature_size) -> None:
    """Raises ValueError if a discriminator does not fit the request or the classifier's features."""
    size = architecture.image_size
    if size != feature_size:
        kind = '' if architecture.out_channels == 1 else 'a classifier, '
        raise ValueError(f'{path} is for {size}x{size} images: '
                         f'{kind}not a discriminator of {feature_size}x{feature_size} features')
    if architecture.out_channels != 1:
        raise ValueError(f'{path} has {architecture.out_channels} outputs: a classifier, not a discriminator')
    if bool(architecture.num_classes) != bool(condition):
        kind, option = ('conditional', 1) if architecture.num_classes else ('unconditional', 0)
        raise ValueError(f'discriminator {path} is {kind}; use --cond={option}')
    if architecture.in_channels != channel:
        raise ValueError(f'discriminator {path} reads {architecture.in_channels} feature channels, '
                         f'the classifier has {channel}; use the classifier it was trained with')


def check_resolution(path, what, metadata, img_resolution) -> None:
    """Raises ValueError if a file says that it was trained for images of another size; features do not show it."""
    trained = metadata.get('resolution', img_resolution)
    if trained != img_resolution:
        raise ValueError(f'{what} {path} was trained for {trained}x{trained} images, '
                         f'these are {img_resolution}x{img_resolution}')


def _read(path, what: str):
    """(state dict, metadata, image size) of a file; a plain state dict (.pt) records neither: {} and None."""
    path = resolve_path(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f'{what} {path} does not exist')
    if Path(path).suffix == '.safetensors':
        file = read_network(path)
        if file.constructor != 'create_classifier':
            raise ValueError(f'{path} is a {file.constructor}, not a {what}')
        return file.state, file.metadata, file.kwargs.get('image_size')
    state = load_state(path)
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise ValueError(f'{path} is not a state dict of a {what}')
    return state, {}, None


def _ready(net, dtype, device, eval):
    """`net` on its device in its precision: frozen for use if `eval`, else ready for training."""
    net = set_precision(net, dtype, training=not eval).to(device)
    return net.eval().requires_grad_(False) if eval else net.train()
