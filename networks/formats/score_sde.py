"""Checkpoints of score_sde and Soft-Truncation: `torch.save` of optimizer, model, ema and step.

Their modules are numbered in the order of their calls; here they get the names of our U-Nets, in the same order.
Weights are the moving averages, which all published results use. Images in [0, 1] become [-1, 1]: the networks
themselves map them so, and noise levels double (song_config.py).
"""

import contextlib
import zipfile
from pathlib import Path

import torch

from torch_utils.checkpoint import NetworkFile, limited, load_state

from ..layers import FourierEmbedding, GroupNorm, UNetBlock
from ..precond import construct
from .song_config import describe, find_config
from .text import shown

NEEDS_PRESET = True
LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # the first bytes of files of torch before 1.6


def _both(theirs: str, ours: str) -> dict[str, str]:
    return {f'{theirs}.weight': f'{ours}.weight', f'{theirs}.bias': f'{ours}.bias'}


# Kinds of numbered modules: their parameters, and our names for them.
KINDS = {
    'Fourier features': {'W': 'freqs'},
    'layer': {'weight': 'weight', 'bias': 'bias'},
    'resampling convolution': {'Conv_0.weight': 'weight', 'Conv_0.bias': 'bias'},
    'strided convolution': {'Conv2d_0.weight': 'weight', 'Conv2d_0.bias': 'bias'},
    'attention': _both('GroupNorm_0', 'norm2') | {
        f'NIN_{i}.{part}': f'{part}{i}' for i in range(4) for part in 'Wb'},  # joined by _join_attention
    'block': _both('GroupNorm_0', 'norm0') | _both('Conv_0', 'conv0') | _both('Dense_0', 'affine') | _both(
        'GroupNorm_1', 'norm1') | _both('Conv_1', 'conv1'),
    'block with a shortcut': {},
}
CONVOLUTIONS = dict(residual='strided convolution', skip='resampling convolution', down='resampling convolution',
                    up='resampling convolution')  # by the last part of our name
SKIPS = {'SongUNet': _both('Conv_2', 'skip'), 'DDPMUNet': {'NIN_0.W': 'skip.weight', 'NIN_0.b': 'skip.bias'}}
# The key of a configuration to blame if a module is not the expected one.
DECIDES = {'Fourier features': 'embedding_type', 'attention': 'attn_resolutions', 'strided convolution':
           'progressive_input', 'resampling convolution': 'progressive_input', 'layer': 'progressive',
           'block': 'num_res_blocks or ch_mult', 'block with a shortcut': 'num_res_blocks or ch_mult'}


def recognises(head: bytes, path) -> bool:
    """Whether this is any file of torch.save; `read` looks inside."""
    if head.startswith(LEGACY):
        return True
    if not head.startswith(b'PK'):
        return False
    try:
        with zipfile.ZipFile(path) as file:
            return any(name.endswith('/data.pkl') for name in file.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read(path, preset=None) -> NetworkFile:
    """The network with averaged weights; `preset` as in `find_config`. Raises ValueError and OSError.

    All tensors must be present, used, and of the shapes that the configuration gives.
    """
    data = load_state(path)
    if not _is_checkpoint(data):
        raise ValueError(f'{path} is a PyTorch file, but not a checkpoint of score_sde (model, ema, step)')
    config = find_config(preset, path)
    constructor, kwargs = describe(config)
    try:
        model, sigmas = _averaged(data)
        _check_sigmas(sigmas, config)
        from_outside = str(preset).endswith(('.yaml', '.yml'))  # the sizes of presets are known
        with limited(model) if from_outside else contextlib.nullcontext():
            unet = construct(constructor, kwargs).model
        state = renamed(model, unet)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
    metadata = dict(source=Path(path).name, step=int(data['step']), weights='ema')
    return NetworkFile({f'model.{key}': value for key, value in state.items()}, constructor, kwargs, metadata)


def _is_checkpoint(data) -> bool:
    if not isinstance(data, dict):
        return False
    parts = [data.get(key) for key in ('model', 'ema')]
    if type(data.get('step')) is not int or not all(isinstance(part, dict) for part in parts):
        return False
    averages = parts[1].get('shadow_params')
    return (isinstance(averages, list) and all(isinstance(key, str) for key in parts[0])
            and all(map(torch.is_tensor, [*averages, *parts[0].values()])))


def _averaged(data) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(the parameters by their names, averaged; the table of noise levels). Fourier frequencies are not trained."""
    model = {key.removeprefix('module.').removeprefix('all_modules.'): value for key, value in data['model'].items()}
    sigmas = model.pop('sigmas', None)
    trained = [key for key in model if key != '0.W']
    averages = list(data['ema']['shadow_params'])
    if sigmas is None or not sigmas.numel():
        raise ValueError('it has no table of noise levels (sigmas)')
    if len(trained) != len(averages):
        raise ValueError(f'ema has {len(averages)} tensors for the {len(trained)} parameters of model')
    for key, average in zip(trained, averages):
        if model[key].shape != average.shape:
            raise ValueError(f'ema holds {list(average.shape)} for all_modules.{key} {list(model[key].shape)}')
        model[key] = average
    return model, sigmas


def _check_sigmas(sigmas: torch.Tensor, config: dict) -> None:
    """Compare the noise levels that variance-exploding files hold, the largest first. Raises ValueError."""
    if config['sde'] in ('vpsde', 'subvpsde'):
        return
    for key, value in (('sigma_max', float(sigmas[0])), ('sigma_min', float(sigmas[-1]))):
        if abs(value - config[key]) > 1e-4 * value:
            raise ValueError(f'{key} is {value:g} in the file, {config[key]:g} in the configuration')
    if not config['continuous'] and len(sigmas) != config['num_scales']:
        raise ValueError(f'num_scales is {len(sigmas)} in the file, {config["num_scales"]} in the configuration')


def _modules(unet) -> list[tuple[str, str]]:
    """(kind, our name) of the modules of a U-Net with parameters, in the order of the numbers."""
    found = [('Fourier features', 'map_noise')] if isinstance(unet.map_noise, FourierEmbedding) else []
    found += [('layer', 'map_layer0'), ('layer', 'map_layer1')]
    for half in ('enc', 'dec'):
        for name, module in getattr(unet, half).items():
            prefix = f'{half}.{name}'
            if isinstance(module, UNetBlock):
                found.append(('block' if module.skip is None else 'block with a shortcut', prefix))
                found += [('attention', prefix)] if module.num_heads else []
            elif isinstance(module, GroupNorm):
                found.append(('layer', prefix))
            elif module.weight is not None:
                kind = CONVOLUTIONS.get(name.split('_')[-1], 'layer')
                plain = kind == 'strided convolution' and module.resample_filter.shape[-1] < 4  # without a filter
                found.append(('resampling convolution' if plain else kind, prefix))
    return found


def renamed(model: dict[str, torch.Tensor], unet) -> dict[str, torch.Tensor]:
    """The state dict of `unet`, a SongUNet or DDPMUNet, from tensors named <number of the module>.<name in it>.

    Raises ValueError, in one line, unless each tensor is used, has the right shape, and none is missing.
    """
    kinds = KINDS | {'block with a shortcut': KINDS['block'] | SKIPS[type(unet).__name__]}
    numbered: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in model.items():
        number, _, name = key.partition('.')
        numbered.setdefault(int(number) if number.isdigit() else -1, {})[name] = value
    expected, shapes = _modules(unet), {key: value.shape for key, value in unet.state_dict().items()}
    state = {}
    for number in range(max(len(expected), len(numbered))):
        kind, prefix = expected[number] if number < len(expected) else ('nothing', '')
        tensors = numbered.get(number, {})
        if kind == 'nothing' or tensors.keys() != kinds[kind].keys():
            found = next((k for k, names in kinds.items() if names.keys() == tensors.keys()), 'nothing')
            keys = {DECIDES[k] for k in (kind, found) if k in DECIDES}
            raise ValueError(f'all_modules.{number} is {found} ({shown(", ".join(tensors))}), the configuration has '
                             f'{kind} there; see its {" or ".join(sorted(keys))}')
        ours = {f'{prefix}.{kinds[kind][name]}': _turned(name, value) for name, value in tensors.items()}
        state.update(_join_attention(ours, prefix) if kind == 'attention' else ours)
    for key, value in state.items():
        if value.shape != shapes[key]:
            raise ValueError(f'{key} has shape {list(value.shape)}, the configuration gives it {list(shapes[key])}; '
                             f'see its nf, ch_mult, embedding_dim, image_size or num_channels')
    return state | {key: value for key, value in unet.state_dict().items() if key not in state}


def _turned(name: str, value: torch.Tensor) -> torch.Tensor:
    """Their 1x1 convolutions "NIN" keep [in, out], ours [out, in, 1, 1]."""
    return value.T[:, :, None, None].contiguous() if name.endswith('.W') and value.ndim == 2 else value


def _join_attention(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Queries, keys and values as one convolution, whose channels alternate between the three."""
    W, b = ([tensors.pop(f'{prefix}.{part}{i}') for i in range(4)] for part in 'Wb')
    return tensors | {f'{prefix}.qkv.weight': torch.stack(W[:3], dim=1).flatten(0, 1),
                      f'{prefix}.qkv.bias': torch.stack(b[:3], dim=1).flatten(), f'{prefix}.proj.weight': W[3],
                      f'{prefix}.proj.bias': b[3]}
