"""Run folders of the published reflected diffusion code: .hydra/config.yaml and checkpoints/checkpoint_<n>.pth."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from dnnlib.files import file_digest
from torch_utils.checkpoint import load_state

from .formats import score_sde
from .song_unet import SongUNet

CONFIG = Path('.hydra') / 'config.yaml'
CONFIG_BYTES = 1 << 20  # the published ones have 1 kB
FIXED = dict(normalization='GroupNorm', nonlinearity='swish', conditional=True, fir=False, skip_rescale=True,
             resamp_with_conv=True, resblock_type='biggan', progressive='none', progressive_input='residual',
             attention_type='ddpm', embedding_type='fourier', conv_size=3)  # what SongUNet has of NCSN++'s variants


class RunFolder(NamedTuple):
    """A published run: arguments of ReflectedPrecond, tensors under their published names, where they are from."""

    kwargs: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]


def read_run_folder(folder: Path, raw: bool = False, number: int | None = None) -> RunFolder:
    """A checkpoint of a run folder, by default the newest; its averaged weights, or, if `raw`, those in training.

    Raises ValueError or OSError, in one line, for a folder without configuration or checkpoints, for another
    architecture than published, and for a checkpoint of another kind.
    """
    kwargs = network_arguments(read_config(folder / CONFIG))
    path = find_checkpoint(folder / 'checkpoints', number)
    state = load_state(path)
    try:
        tensors, step = dict(state['model']), int(state['step'])
        shadows = state['ema']['shadow_params']
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path} is not a checkpoint of a run: it lacks {error}') from None
    if not raw:
        trained = [name for name in tensors if not _is_buffer(name)]
        if len(trained) != len(shadows) or any(tensors[n].shape != s.shape for n, s in zip(trained, shadows)):
            raise ValueError(f'{path}: its averaged weights do not fit its own network')
        tensors.update(zip(trained, shadows))
    return RunFolder(kwargs, tensors, dict(source=f'{folder.name}/{path.name}', step=step, sha256=file_digest(path)))


def is_run_folder(folder: Path) -> bool:
    """Whether there is a run's configuration in the folder."""
    return (folder / CONFIG).is_file()


def find_checkpoint(folder: Path, number: int | None = None) -> Path:
    """checkpoint_<number>.pth, by default that of the largest number, or checkpoint.pth, which a denoiser's run has."""
    numbered = {int(match[1]): path for path in folder.glob('checkpoint_*.pth')
                if (match := re.fullmatch(r'checkpoint_(\d+)\.pth', path.name))}
    if number is None and not numbered and (folder / 'checkpoint.pth').is_file():
        return folder / 'checkpoint.pth'
    if not numbered or number not in {None, *numbered}:
        raise FileNotFoundError(f'{folder} holds no checkpoint_{"<n>" if number is None else number}.pth')
    return numbered[max(numbered) if number is None else number]


def read_config(path: Path) -> dict[str, dict]:
    """Sections of a run's configuration."""
    if path.stat().st_size > CONFIG_BYTES:
        raise ValueError(f'{path} is too large for a configuration')
    try:
        config = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not YAML ({str(error).splitlines()[0]})') from None
    sections = ('model', 'data', 'sde')
    if not isinstance(config, dict) or not all(isinstance(config.get(name), dict) for name in sections):
        raise ValueError(f'{path} lacks one of the sections {", ".join(sections)}')
    return config


def network_arguments(config: dict[str, dict]) -> dict[str, Any]:
    """Arguments of ReflectedPrecond for a published configuration. Raises ValueError for what it does not have."""
    model, data, sde = config['model'], config['data'], config['sde']
    try:
        name = model['name']
        kwargs = dict(img_resolution=data['image_size'], img_channels=data['num_channels'],
                      label_dim=data['num_classes'] if data.get('classes') else 0, sigma_min=sde['sigma_min'],
                      sigma_max=sde['sigma_max'], scale_by_sigma=model['scale_by_sigma'], dropout=model['dropout'])
        if name == 'ncsnpp':
            for option, value in FIXED.items():
                if model.get(option, value) != value:
                    raise ValueError(f'the configuration has {option} {model[option]!r}; only {value!r} is known')
            return kwargs | dict(
                model_type='SongUNet', model_channels=model['nf'], channel_mult=model['ch_mult'],
                num_blocks=model['num_res_blocks'], attn_resolutions=model['attn_resolutions'],
                embedding_type='fourier', channel_mult_noise=2, encoder_type='residual', residual_filter=[0, 1])
        if name == 'vdm':
            fourier = [model['image_fourier_start'], model['image_fourier_end']] if model['image_fourier'] else None
            return kwargs | dict(model_type='VDM', model_channels=model['channels'], num_blocks=model['num_blocks'],
                                 attention=model['attention'], image_fourier=fourier)
        if name == 'adm':
            return kwargs | dict(model_type='DhariwalUNet') | {option: model[option] for option in (
                'model_channels', 'channel_mult', 'channel_mult_emb', 'num_blocks', 'attn_resolutions')}
    except KeyError as error:
        raise ValueError(f'the configuration lacks {error}') from None
    raise ValueError(f'the configuration has model {name!r}; known are ncsnpp, vdm, adm')


#----------------------------------------------------------------------------
# Published names.

def _is_buffer(name: str) -> bool:
    """Whether a published tensor is not trained: a table, or the frozen frequencies of an embedding."""
    return name in ('sigmas', 'all_modules.0.W') or name.endswith(('resample_filter', 'image_fourier.freqs'))


def renamed(net, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of `net` (ReflectedPrecond) from tensors under their published names. Raises ValueError."""
    if isinstance(net.model, SongUNet):
        numbered = {name.removeprefix('all_modules.'): tensor for name, tensor in tensors.items() if name != 'sigmas'}
        return {f'model.{name}': tensor for name, tensor in score_sde.renamed(numbered, net.model).items()}
    if all(name.startswith('model.') for name in tensors):
        return tensors
    return {f'model.{name}': tensor for name, tensor in tensors.items() if name != 'image_fourier.freqs'}
