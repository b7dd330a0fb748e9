"""Checkpoints of small score_sde and Soft-Truncation networks, made by the weight recipe, and their golden arrays."""

import functools
import json

import numpy as np
import torch
from goldens import GOLDENS, load, recipe_tensor

import networks
from networks.formats.song_config import read_yaml

NAMES = [f'{folder}/{path.stem}' for folder in ('score_sde', 'soft_truncation')
         for path in sorted((GOLDENS / folder).glob('*.yaml'))]


def config_path(name):
    return GOLDENS / f'{name}.yaml'


def make_checkpoint(name) -> dict:
    """The file that the reference would save: averages of seed 1, raw weights twice as large, noise levels."""
    model, averages = _weights(name)
    ema = dict(decay=0.999, num_updates=7, shadow_params=list(averages))
    return dict(optimizer=dict(state={}, param_groups=[]), model=dict(model), ema=ema, step=1234)


@functools.cache
def _weights(name) -> tuple[dict, list]:
    d, config = load(f'{name}.npz'), read_yaml(config_path(name))
    keys = json.loads(str(d['keys']))
    names = (f'module.{key.removeprefix("module.")}' for key in json.loads(str(d['parameter_order_ema'])))
    averages = {key: recipe_tensor(key, keys[key], 1) for key in names}
    model = {key: 2 * averages[key] if key in averages else recipe_tensor(key, shape) for key, shape in keys.items()}
    ends = np.log([config['sigma_max'], config['sigma_min']])
    model['module.sigmas'] = torch.from_numpy(np.exp(np.linspace(*ends, config['num_scales'])))
    return model, list(averages.values())


@functools.cache
def golden(name, folder):
    """(the network, read from a checkpoint written to `folder`, and its golden arrays as tensors)."""
    path = folder / f'{name.replace("/", "-")}.pth'
    torch.save(make_checkpoint(name), path)
    arrays = {key: torch.as_tensor(value) for key, value in load(f'{name}.npz').items() if value.dtype.kind in 'fi'}
    return networks.load_network(path, preset=config_path(name)), arrays
