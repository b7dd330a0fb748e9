"""Refusals in one message: folders that belong to another run (nothing changes), batches beyond the memory."""

import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from script_runs import ROOT, another_run, contents, diffrs_arguments, few_trajectories, finish, generate_arguments

import dataset_tool
import fid_npzs
import generate
import generate_diffrs
import train
import train_classifier
import train_score
from commands import diffrs, machine

SCRIPTS = dict(generate=(generate.main, generate_arguments), generate_diffrs=(generate_diffrs.main, diffrs_arguments))
RUN = ('--seeds=0-7', '--batch=4')


def assert_refused(code, output, words):
    errors = [line for line in output.splitlines() if 'Error: ' in line and 'ChildFailedError' not in line]
    assert code == 1 and len(errors) == 1, output
    assert errors[0].startswith('Error: --outdir: ') and words in errors[0], output


def invoke(script, files, *args):
    main, arguments = SCRIPTS[script]
    result = CliRunner().invoke(main, arguments(files, *args))
    return result.exit_code, result.output


@pytest.fixture(scope='module', params=SCRIPTS)
def finished(request, files, tmp_path_factory):
    """(script, the folder of a finished run of it)."""
    folder = tmp_path_factory.mktemp('finished') / 'out'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffrs, 'warmup_seeds', few_trajectories)
        code, output = invoke(request.param, files, f'--outdir={folder}', *RUN)
    assert code == 0, output
    return request.param, folder


def test_other_options(files, finished):
    script, folder = finished
    before = contents(folder)
    assert_refused(*invoke(script, files, f'--outdir={folder}', *RUN, '--S_noise=1.003'), 'S_noise was 1')
    assert_refused(*invoke(script, files, f'--outdir={folder}', '--seeds=1-8', '--batch=4'), "'1-8'")
    assert contents(folder) == before


def test_a_folder_of_the_other_script(files, finished):
    """DiffRS refuses before its warm-up, and leaves no thresholds."""
    script, folder = finished
    before = contents(folder)
    other, = SCRIPTS.keys() - {script}
    assert_refused(*invoke(other, files, f'--outdir={folder}', *RUN), 'other options')
    assert contents(folder) == before


@pytest.mark.parametrize('script', SCRIPTS)
def test_foreign_files(files, tmp_path, script):
    """Samples of unknown origin are refused; other files are left alone."""
    (tmp_path / 'samples_00000000.npz').write_bytes(b'x')
    (tmp_path / 'notes.txt').write_text('keep')
    before = contents(tmp_path)
    assert_refused(*invoke(script, files, f'--outdir={tmp_path}', *RUN), 'no options.json')
    assert contents(tmp_path) == before


def test_two_runs_at_once(files, finished, tmp_path):
    script, folder = finished
    before = contents(folder)
    with another_run(folder), another_run(tmp_path):
        for place in (folder, tmp_path):  # in the second, DiffRS would have to warm up first
            assert_refused(*invoke(script, files, f'--outdir={place}', *RUN), 'another run is writing')
            assert_refused(*invoke(script, files, f'--outdir={place}', *RUN, '--overwrite'), 'another run is writing')
    assert contents(folder) == before and not os.listdir(tmp_path)


@pytest.mark.slow
def test_lost_thresholds_are_made_again(files, tmp_path):
    command = ('generate_diffrs', files, f'--outdir={tmp_path}', '--seeds=0-3', '--batch=4')
    assert invoke(*command)[0] == 0
    before = contents(tmp_path)
    (tmp_path / 'thresholds.json').unlink()
    code, output = invoke(*command)
    assert code == 0 and ' 0 of them new' in output, output
    assert contents(tmp_path)['thresholds.json'] == before['thresholds.json']


@pytest.mark.parametrize('script', ['generate', pytest.param('generate_diffrs', marks=pytest.mark.slow)])
@pytest.mark.parametrize('processes', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_refuse_with_one_voice(files, tmp_path, script, processes):
    """All ranks end, and only one says why."""
    (tmp_path / 'samples_00000000.npz').write_bytes(b'x')
    code, output = finish(ROOT / f'{script}.py', SCRIPTS[script][1](files, f'--outdir={tmp_path}', *RUN), processes)
    assert_refused(code, output, 'no options.json')
    assert os.listdir(tmp_path) == ['samples_00000000.npz']


def test_training_processes_refuse_with_one_voice(tmp_path):
    np.savez(tmp_path / 'data.npz', samples=np.zeros([4, 8, 8, 3], dtype=np.uint8))
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'network-000001.safetensors').write_bytes(b'x')
    code, output = finish(ROOT / 'train_score.py', [f'--outdir={tmp_path}/out', f'--data={tmp_path}/data.npz',
                                                    '--channels=8', '--batch=2', '--device=cpu'], 2)
    assert_refused(code, output, 'no options.json')
    assert os.listdir(tmp_path / 'out') == ['network-000001.safetensors']


def full_cpu(name):
    torch.empty(2**60, dtype=torch.uint8)


def full_gpu(name):
    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB.')


@pytest.mark.parametrize('full', [full_cpu, full_gpu])
@pytest.mark.parametrize('place, command, option, arguments', [
    (machine, generate.main, '--batch', ['--outdir=out']),
    (machine, generate_diffrs.main, '--batch', ['--outdir=out']),
    (machine, fid_npzs.main, '--batch', ['--images=out']),
    (machine, dataset_tool.main, '--batch', ['stats', '--source=in.npz', '--dest=out']),
    (machine, train.main, '--batch_gpu', ['--savedir=out', '--gendir=in', '--datadir=in.npz']),
    (machine, train_classifier.main, '--batch_gpu', ['--outdir=out', '--data=in.npz']),
    (machine, train_score.main, '--batch_gpu', ['--outdir=out', '--data=in.npz']),
])
def test_too_little_memory(tmp_path, monkeypatch, place, command, option, arguments, full):
    """A batch that does not fit, on a GPU or a CPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(place, 'select_device', full)
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 1
    said = f'Error: {option}: not enough memory for this many images at a time; use fewer'
    assert result.output.splitlines()[-1] == said


def test_other_errors_are_not_taken_for_it(monkeypatch):
    def fails(name):
        raise RuntimeError('mat1 and mat2 shapes cannot be multiplied')

    monkeypatch.setattr(machine, 'select_device', fails)
    result = CliRunner().invoke(generate.main, ['--outdir=out'])
    assert isinstance(result.exception, RuntimeError)
