"""train_score.py as a user calls it, on a tiny network and few images."""

import json
import time

import numpy as np
import pytest
import torch
from script_runs import invoke

import networks
import train_score
from commands import fit
from commands.machine import Machine
from commands.score import PRESETS
from torch_utils.stats import JsonLines
from training.run import TrainResult

TINY = ['--channels=8', '--kimg=1', '--batch=250', '--tick=1', '--device=cpu', '--precision=fp32']


@pytest.fixture(scope='module')
def images():
    """uint8 [40, 4, 4, 3], smaller than those of the other scripts: a kimg is the least that can be asked for."""
    return np.random.RandomState(0).randint(256, size=[40, 4, 4, 3], dtype=np.uint8)


def call(*args):
    return invoke(train_score.main, *args)


def test_train_and_resume(tmp_path, data, images):
    images = images.repeat(2, axis=1).repeat(2, axis=2)  # 8x8: augmentation takes no smaller ones
    np.savez(tmp_path / 'data.npz', samples=images, label=np.arange(40) % 4)
    arguments = [f'--outdir={tmp_path / "run"}', data, '--cond=1', '--augment=0.5', *TINY]
    first = call(*arguments, '--max_minutes=0.0001')
    assert first.exit_code == 0 and 'the same command resumes' in first.output
    second = call(*arguments)
    assert second.exit_code == 0 and 'resuming' in second.output and 'finished' in second.output
    files = sorted(path.name for path in (tmp_path / 'run').iterdir())
    assert files == ['network-000001.safetensors', 'options.json', 'stats.jsonl', 'training-state.pt']
    assert [line['nimg'] for line in JsonLines(tmp_path / 'run' / 'stats.jsonl').read()] == [1000]
    net = networks.load_network(tmp_path / 'run' / 'network-000001.safetensors')
    assert (net.img_resolution, net.label_dim, net.model.map_augment.in_features) == (8, 4, 9)
    assert net(torch.randn(2, 3, 8, 8), torch.tensor(1.0), torch.eye(4)[:2]).isfinite().all()

    other = call(*arguments, '--lr=0.5')
    assert other.exit_code == 1 and 'other options (lr was 0.001, now 0.5)' in other.output
    np.savez(tmp_path / 'data.npz', samples=images ^ 1, label=np.arange(40) % 4)
    other = call(*arguments)
    assert other.exit_code == 1 and 'other options (data_sha256' in other.output


def test_the_time_of_a_run_begins_with_its_command(tmp_path, data, monkeypatch):
    """Not with the import of the script, for --max_minutes of a second run in the same process."""
    runs, before = [], time.monotonic()
    monkeypatch.setattr(fit, 'train', lambda run: runs.append(run) or TrainResult(0, 'time', {}))
    assert call(f'--outdir={tmp_path / "run"}', data, *TINY).exit_code == 0
    assert before <= runs[0].started <= time.monotonic()


def test_snapshots_are_pruned(tmp_path, data):
    call(f'--outdir={tmp_path / "run"}', data, *TINY, '--batch=500', '--kimg=3', '--snap=1', '--keep=2')
    names = sorted(path.name for path in (tmp_path / 'run').glob('network-*'))
    assert names == [f'network-{kimg:06d}.safetensors' for kimg in (2, 3)]  # a multiple of 2, the newest


@pytest.mark.parametrize('precond', ['vp', 've'])
def test_other_preconditionings(tmp_path, data, precond):
    result = call(f'--outdir={tmp_path / "run"}', data, f'--precond={precond}', *TINY)
    assert result.exit_code == 0, result.output
    net = networks.load_network(tmp_path / 'run' / 'network-000001.safetensors')
    assert type(net).__name__ == f'{precond.upper()}Precond'


@pytest.mark.parametrize('preset', PRESETS)
def test_dry_run_writes_nothing(tmp_path, data, preset):
    result = call(f'--outdir={tmp_path / "run"}', data, f'--preset={preset}', '--dry-run')
    assert result.exit_code == 0
    config = json.loads(result.output[result.output.index('{'):])
    assert config['preset'] == preset and config['images'] == 40
    assert not (tmp_path / 'run').exists()


def test_both_names_of_the_batch(tmp_path, data):
    for option in ('--batch=20', '--batch_size=20'):
        output = call(f'--outdir={tmp_path / "run"}', data, *TINY, option, '-n').output
        assert json.loads(output[output.index('{'):])['batch'] == 20


def network(path, **kwargs):
    """A file of a small network unlike those of the presets."""
    settings = dict(img_resolution=4, img_channels=3, label_dim=4, model_type='DhariwalUNet', model_channels=32,
                    channel_mult=[1, 1], channel_mult_emb=2, num_blocks=1, attn_resolutions=[4], dropout=0.3)
    torch.manual_seed(7)
    net = networks.construct('VPPrecond', settings | kwargs)
    with torch.no_grad():
        for parameter in net.parameters():  # many are 0 at first
            parameter.normal_(std=0.05)
    networks.save_network(path, net)
    return net


def test_transfer_takes_weights_and_architecture(tmp_path, data, monkeypatch):
    given = network(tmp_path / 'given.safetensors')
    arguments = [f'--outdir={tmp_path / "run"}', data, '--cond=1', f'--transfer={tmp_path / "given.safetensors"}',
                 *TINY[1:], '--dropout=0.1']
    monkeypatch.setattr(fit, 'train', lambda run: runs.append(run) or TrainResult(0, 'time', {}))
    runs = []
    assert call(*arguments).exit_code == 0
    for net in (runs[0].module, runs[0].ema.module):
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), given.parameters(), strict=True))
    assert runs[0].module.init_kwargs['dropout'] == 0.1 and runs[0].config['precond'] == 'vp'
    monkeypatch.undo()

    first = call(*arguments, '--max_minutes=0.0001')
    assert first.exit_code == 0 and 'the same command resumes' in first.output
    second = call(*arguments)
    assert second.exit_code == 0 and 'resuming' in second.output and 'finished' in second.output
    tuned = networks.load_network(tmp_path / 'run' / 'network-000001.safetensors')
    moved = [(a - b).abs().max() for a, b in zip(tuned.parameters(), given.parameters(), strict=True)]
    assert 0 < max(moved) < 0.1
    network(tmp_path / 'given.safetensors', dropout=0.2)
    other = call(*arguments)
    assert other.exit_code == 1 and 'transfer_sha256' in other.output


@pytest.mark.parametrize('kwargs, arguments, message', [
    (dict(img_resolution=16), [], 'it has resolution 16, not 4 (--data)'),
    (dict(label_dim=0), [], 'it has classes 0, not 4 (--cond)'),
    (dict(), ['--channels=64'], 'it has model_channels 32, not 64 (--channels)'),
    (dict(), ['--blocks=2', '--precond=edm'], 'it has num_blocks 1, not 2 (--blocks); precond vp, not edm (--precond)'),
    (dict(), ['--augment=0.1'], 'it has augment_dim 0, not 9 (--augment)'),
    (None, [], 'nowhere.safetensors does not exist'),
])
def test_a_network_that_does_not_fit(tmp_path, data, kwargs, arguments, message):
    path = tmp_path / 'nowhere.safetensors'
    if kwargs is not None:
        path = tmp_path / 'given.safetensors'
        network(path, **kwargs)
    result = call(f'--outdir={tmp_path / "run"}', data, '--cond=1', f'--transfer={path}', *TINY[1:], *arguments)
    last = result.output.splitlines()[-1]
    assert result.exit_code == 1 and last.startswith('Error: --transfer: ') and last.endswith(message), result.output
    assert not (tmp_path / 'run').exists()


def test_training_states_of_edm_are_refused(tmp_path, data):
    result = call(f'--outdir={tmp_path / "run"}', data, '--resume=training-state-000001.pt')
    assert result.exit_code == 1 and len(result.output.splitlines()) == 1
    assert result.output.startswith('Error: --resume: ') and '--transfer' in result.output
    torch.save(dict(net=torch.zeros(1)), tmp_path / 'training-state-000001.pt')
    result = call(f'--outdir={tmp_path / "run"}', data, f'--transfer={tmp_path / "training-state-000001.pt"}')
    assert result.exit_code == 1 and 'Error: --transfer: ' in result.output.splitlines()[-1]


def test_the_published_configuration(tmp_path, data):
    """55.7 million weights and nine augmentation labels, as edm-cifar10-32x32-uncond-vp has (Karras et al. 2022)."""
    result = call(f'--outdir={tmp_path}', data, '--preset=cifar10-edm', '--dry-run')
    config = json.loads(result.output[result.output.index('{'):]) | dict(resolution=32)
    with torch.device('meta'):  # only shapes
        net = train_score.make_network(config, Machine(torch.device('meta'), torch.float32, 'fp32'))
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(55.7e6, rel=2e-3)
    assert net.model.map_augment.in_features == 9


@pytest.mark.parametrize('arguments, message', [
    (['--data=absent.zip'], '--data: absent.zip does not exist'),
    (['--device=cuda:77'], '--device: cuda:77 asked for'),
    (['--kimg=0'], '--kimg'),
    (['--dropout=2'], '--dropout'),
    (['--channels=30'], '--preset/--channels: 30 channels cannot be normalised'),
])
def test_mistakes_end_in_one_line(tmp_path, data, arguments, message):
    result = call(f'--outdir={tmp_path / "run"}', data, *TINY, *arguments)
    assert result.exit_code in (1, 2) and message in result.output and 'Traceback' not in result.output
    assert not (tmp_path / 'run').exists()


def test_labels_that_are_not_used_do_not_matter(tmp_path, data, images):
    arguments = [f'--outdir={tmp_path / "run"}', data, *TINY]
    assert call(*arguments).exit_code == 0
    np.savez(tmp_path / 'data.npz', samples=images)
    assert 'nothing to do' in call(*arguments).output


def test_a_rate_too_large_is_one_line(tmp_path, data):
    result = call(f'--outdir={tmp_path / "run"}', data, *TINY, '--lr=1e30')
    assert result.exit_code == 1 and 'Error: --lr: the loss is not a finite number' in result.output


def test_labels_are_needed_for_cond(tmp_path, images):
    np.savez(tmp_path / 'plain.npz', images)
    result = call(f'--outdir={tmp_path / "run"}', f'--data={tmp_path / "plain.npz"}', '--cond=1', *TINY)
    assert result.exit_code == 1 and 'has no labels' in result.output
