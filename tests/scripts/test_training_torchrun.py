"""The training scripts under torchrun: results do not depend on the number of processes, nor on kills."""

import json
import os
import random
import time

import numpy as np
import pytest
import torch
from script_runs import ROOT, finish, kill_all, kill_rank, start, wait_until

from guided_diffusion import create_classifier
from torch_utils.checkpoint import load_state, read_network

LINUX = pytest.mark.skipif(not os.path.isdir('/proc/self/task'), reason='finds processes through /proc')
MACHINE = ['--device=cpu', '--precision=fp32']


@pytest.fixture(scope='module')
def room(tmp_path_factory):
    """A folder with labelled images, 16x16 and 8x8, generated shards and a small classifier."""
    path, rng = tmp_path_factory.mktemp('room'), np.random.default_rng(0)
    real, generated = (rng.integers(low, 200, [48, 16, 16, 3]).astype(np.uint8) for low in (60, 0))
    np.savez(path / 'real.npz', samples=real, label=np.arange(48) % 3)
    np.savez(path / 'small.npz', samples=real[:, ::2, ::2])
    np.savez(path / 'true.npz', arr_0=real)
    (path / 'generated').mkdir()
    np.savez(path / 'generated' / 'samples_00000000.npz', samples=generated)
    torch.manual_seed(0)
    torch.save(create_classifier(16, 64, 1, '', out_channels=10).state_dict(), path / 'classifier.pt')
    return path


def commands(room, kimg=1):
    """Script and arguments by name, without the folder."""
    return {
        'score': ('train_score.py', '--outdir', [f'--data={room}/small.npz', '--channels=8', '--batch=100', '--tick=1',
                                                 f'--kimg={kimg}', '--save_minutes=0', *MACHINE]),
        'discriminator': ('train.py', '--savedir', [
            f'--gendir={room}/generated', f'--datadir={room}/true.npz', '--img_resolution=16', '--width=64',
            '--depth=1', f'--pretrained_classifier_ckpt={room}/classifier.pt', '--batch_size=16', '--epoch=2',
            '--val_fraction=0.25', *MACHINE]),
        'classifier': ('train_classifier.py', '--outdir', [f'--data={room}/real.npz', '--depth=1', '--batch_size=8',
                                                           '--kimg=0.04', '--val_fraction=0.2', *MACHINE]),
        'features': ('train_classifier.py', '--outdir', [
            f'--data={room}/real.npz', '--preset=cifar10-features', '--batch_size=8', '--kimg=0.04',
            '--val_fraction=0.2', *MACHINE])}


def run(command, folder, processes=1, *more):
    script, option, arguments = command
    code, output = finish(ROOT / script, [f'{option}={folder}', *arguments, *more], processes, timeout=600)
    assert code == 0, output
    return output


def outcome(folder):
    """(training state, lines of statistics without times)."""
    lines = [json.loads(line) for line in (folder / 'stats.jsonl').read_text().splitlines()]
    return load_state(folder / 'training-state.pt'), [
        {key: value for key, value in line.items() if 'sec' not in key and key != 'timestamp'} for line in lines]


def assert_same(a, b, exact=False, atol=2e-4):
    """Equal statistics and weights: the same bits, or equal up to the order of sums, which depends on the division."""
    (state_a, lines_a), (state_b, lines_b) = outcome(a), outcome(b)
    tolerance = dict(rtol=0, atol=0) if exact else dict(rtol=2e-3, atol=atol)
    assert len(lines_a) == len(lines_b) and state_a['nimg'] == state_b['nimg']
    for line_a, line_b in zip(lines_a, lines_b):
        assert line_a.keys() == line_b.keys()
        for key, value in line_a.items():
            if exact or isinstance(value, int | str):
                assert value == line_b[key], key
            elif key in ('loss', 'held_out_loss', 'lr'):
                assert value == pytest.approx(line_b[key], rel=5 * atol), key
    for part in ('module', 'ema'):
        if state_a[part] is not None:
            torch.testing.assert_close(state_a[part], state_b[part], **tolerance)


@pytest.mark.parametrize('name', ['score', *(pytest.param(name, marks=pytest.mark.slow)
                                             for name in ('discriminator', 'classifier', 'features'))])
def test_two_processes_train_as_one_does(room, tmp_path, name):
    """Gradient accumulation included: each of two processes takes its share in parts, the last of them smaller."""
    command = commands(room)[name]
    save = ['--save_minutes=60'] * (name == 'score')
    run(command, tmp_path / 'one', 1, *save)
    output = run(command, tmp_path / 'two', 2, f'--batch_gpu={20 if name == "score" else 3}', *save)
    assert output.count('finished') <= 1  # only rank 0 prints
    if name != 'features':  # batch norm sees one forward pass, so the division matters
        assert_same(tmp_path / 'one', tmp_path / 'two')
    if name == 'score':  # its learning rate rises so slowly that the weights say little about the gradients
        one, two = (torch.cat([moments['exp_avg'].flatten() for moments in load_state(
            tmp_path / folder / 'training-state.pt')['optimizer']['state'].values()]) for folder in ('one', 'two'))
        torch.testing.assert_close(two, one, rtol=0, atol=1e-4 * float(one.abs().max()))
    assert sorted(os.listdir(tmp_path / 'one')) == sorted(os.listdir(tmp_path / 'two'))


def test_statistics_of_batch_norm_are_those_of_all_processes(room, tmp_path):
    """One step, stopped before any tick, with nothing to measure on: as of one process, which sees all images."""
    for processes in (1, 2):
        run(commands(room)['features'], tmp_path / str(processes), processes, '--val_fraction=0', '--kimg=0.8',
            '--max_minutes=0')
    one, two = (tmp_path / name for name in '12')
    states = [[load_state(folder / 'training-state.pt')['module'],
               read_network(folder / 'features.safetensors').state] for folder in (one, two)]
    for a, b in zip(*states):
        torch.testing.assert_close(b['stem_norm.running_mean'], a['stem_norm.running_mean'], rtol=1e-4, atol=1e-6)


def saved_at(path):
    return path.stat().st_mtime_ns if path.is_file() else 0


def disturb(command, folder, draw: random.Random, early: float = 0.2) -> bool:
    """Start with two processes and SIGKILL one or both at a random moment; False if the run was complete before.

    The moment is after the state was saved, or, for a share `early`, at once.
    """
    script, option, arguments = command
    process = start(ROOT / script, [f'{option}={folder}', *arguments], 2)
    state = folder / 'training-state.pt'
    before = saved_at(state)
    if draw.random() >= early:  # otherwise while modules are loaded
        wait_until(lambda: process.poll() is not None or saved_at(state) != before, 120)
    time.sleep(draw.uniform(0, 1))
    if process.poll() is not None:
        return False
    victim = draw.choice([0, 1, 'all'])
    if victim == 'all' or not kill_rank(process, victim):
        kill_all(process)
    try:
        process.wait(60)
    finally:
        kill_all(process)
    return True


@LINUX
@pytest.mark.parametrize('kills', [1, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(room, tmp_path, kills):
    """Two processes, SIGKILL of one rank or of both: afterwards the same bits as an undisturbed run."""
    command = commands(room, kimg=2 if kills == 1 else 60)['score']
    draw, done = random.Random(kills), 0
    while done < kills and disturb(command, tmp_path / 'killed', draw):
        done += 1
    assert done >= min(kills, 1)
    run(command, tmp_path / 'killed', 2, '--save_minutes=60')
    run(command, tmp_path / 'whole', 2, '--save_minutes=60')
    assert_same(tmp_path / 'killed', tmp_path / 'whole', exact=True)
    if kills > 1:
        assert done == kills


@LINUX
@pytest.mark.slow
def test_resume_with_another_number_of_processes(room, tmp_path):
    command = commands(room, kimg=8)['score']
    assert disturb(command, tmp_path / 'changed', random.Random(0), early=0)
    assert 'resuming' in run(command, tmp_path / 'changed', 1)
    run(command, tmp_path / 'whole', 1)
    # 80 steps; Adam divides by the gradient's size, which for the keys' bias is only rounding
    assert_same(tmp_path / 'changed', tmp_path / 'whole', atol=2e-3)


def test_indivisible_batch_is_refused_in_one_line(room, tmp_path):
    script, option, arguments = commands(room)['score']
    code, output = finish(ROOT / script, [f'{option}={tmp_path}/odd', *arguments, '--batch=7'], 2)
    assert code == 1 and 'use a multiple of 2' in output, output
