"""NVIDIA's Inception-v3, a TorchScript file: it runs as a program."""

import hashlib
import warnings
from collections.abc import Callable

import torch

from dnnlib.download import fetch

URL = 'https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt'


def load_nvidia(path=None, device='cpu') -> tuple[Callable[[torch.Tensor], torch.Tensor], str]:
    """NVIDIA's network as a function of uint8 images [N, 3, H, W], which resizes and scales; its fingerprint.

    The file, `path` or the published one, is a program that runs with the user's rights: ask the user first.
    Raises ValueError for another file, FileNotFoundError for none.
    """
    path = fetch(path or URL)
    if path.suffix == '.pkl':
        raise ValueError(f'{path.name} is a pickle, which this project never loads; '
                         f'give the TorchScript file {URL.rsplit("/", 1)[1]} instead')
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # TorchScript is deprecated, but the file exists in no other safe form
            net = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f'{path.name} is not a TorchScript file ({str(error).splitlines()[0]})') from None
    return lambda images: net(images, return_features=True), hashlib.sha256(path.read_bytes()).hexdigest()[:8]
