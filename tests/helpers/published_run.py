"""Run folders of the published reflected diffusion code with the goldens' networks, their weights by the recipe."""

import json
from pathlib import Path

import torch
from goldens import load, recipe_tensor


def tensors_of(golden, seed: int) -> dict[str, torch.Tensor]:
    """The published state dict; buffers as the published code makes them."""
    state = {}
    for name, shape in json.loads(str(golden['keys'])).items():
        if name.endswith('resample_filter'):
            state[name] = torch.full(shape, 0.25)
        elif name.endswith('image_fourier.freqs'):
            state[name] = 2 ** torch.arange(6, 8)
        else:
            state[name] = recipe_tensor(name, shape, seed)
    return state


def write_run(folder: Path, which: str, number: int = 1, **changes) -> Path:
    """`folder` as a run of golden `which`; `changes`: text of the configuration -> other text."""
    golden = load(f'reflected/{which}.npz')
    config = str(golden['config'])
    for old, new in changes.items():
        config = config.replace(old.replace('__', ': '), new)
    (folder / '.hydra').mkdir(parents=True, exist_ok=True)
    (folder / 'checkpoints').mkdir(exist_ok=True)
    (folder / '.hydra' / 'config.yaml').write_text(config)
    average = tensors_of(golden, 1)
    shadows = [average[name] for name in json.loads(str(golden['parameter_order_ema']))]
    state = dict(optimizer={}, model=tensors_of(golden, 0), step=50_000, scaler=None,
                 ema=dict(decay=0.9999, num_updates=1234, shadow_params=shadows))
    torch.save(state, folder / 'checkpoints' / f'checkpoint_{number}.pth')
    return folder
