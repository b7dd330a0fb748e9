"""generate.py as a user runs it: small random networks on disk, real files, one-line errors."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import click
import numpy as np
import pytest
import script_runs
import torch
from sampler_runs import run_edm
from script_runs import comparable

import generate
import networks
from commands import machine
from dnnlib import demo
from sampling.guidance import DiscriminatorGuidance
from sampling.samples import draw_inputs
from torch_utils.compiler import CompilerFailed, compiled_or_plain
from torch_utils.images import to_uint8

ROOT = Path(__file__).resolve().parents[2]


def invoke(files, *args, network='uncond', guided=False, disc='disc_uncond'):
    """Run generate.py in-process with 3 steps in fp32 on the CPU; (exit code, output)."""
    command = ['--device=cpu', '--precision=fp32', '--steps=3', f'--network={files / network}.safetensors', *args]
    if guided:
        command += [f'--pretrained_classifier_ckpt={files / "classifier.pt"}',
                    f'--discriminator_ckpt={files / disc}.pt']
    elif not any('dg_weight' in str(arg) for arg in args):
        command += ['--dg_weight_1st_order=0']
    result = script_runs.invoke(generate.main, *command)
    return result.exit_code, result.output


def samples(folder):
    return {path.name: dict(np.load(path, allow_pickle=False)) for path in sorted(folder.glob('samples_*.npz'))}


@pytest.mark.parametrize('class_idx', [None, 7])
def test_conditional_guided_samples_are_those_of_the_sampler(files, tmp_path, class_idx):
    args = ['--cond=1', '--log_ratio=clipped', '--dg_weight_1st_order=1.5', '--dg_weight_2nd_order=0.5', '--S_churn=5']
    args += [] if class_idx is None else [f'--class={class_idx}']
    code, output = invoke(files, f'--outdir={tmp_path}/out', '--seeds=3-6', '--batch=4', *args, network='cond',
                          guided=True, disc='disc_cond')
    assert code == 0, output
    net = networks.load_network(files / 'cond.safetensors')
    log_ratio = networks.load_log_ratio(net, files / 'classifier.pt', files / 'disc_cond.pt', conditional=True,
                                        clip=True)
    rnd, latents, labels = draw_inputs(net, range(3, 7), 'cpu', class_idx)
    with torch.no_grad():
        expected = run_edm(net, latents, labels, randn_like=rnd.randn_like, num_steps=3, S_churn=5,
                               guidance=DiscriminatorGuidance(log_ratio, 1.5, 0.5))
    arrays = samples(tmp_path / 'out')['samples_00000003.npz']
    assert np.array_equal(arrays['samples'], to_uint8(expected)) and np.array_equal(arrays['label'], labels)


def test_vanilla_samples_are_those_of_the_sampler(files, tmp_path):
    assert invoke(files, f'--outdir={tmp_path}/out', '--seeds=3-6', '--batch=2')[0] == 0
    net = networks.load_network(files / 'uncond.safetensors')
    arrays = samples(tmp_path / 'out')
    assert list(arrays) == ['samples_00000003.npz', 'samples_00000005.npz']
    _, latents, _ = draw_inputs(net, [5, 6], 'cpu')
    assert np.array_equal(arrays['samples_00000005.npz']['samples'], to_uint8(run_edm(net, latents, num_steps=3)))
    record = json.loads((tmp_path / 'out' / 'options.json').read_text())
    assert record['num_steps'] == 3 and record['seeds'] == '3-6' and record['dg_weight_1st_order'] == 0


def test_guided_samples_differ_and_do_not_depend_on_the_batch(files, tmp_path):
    for batch in (2, 4):
        code, output = invoke(files, f'--outdir={tmp_path}/{batch}', '--seeds=0-3', f'--batch={batch}', guided=True)
        assert code == 0, output
    invoke(files, f'--outdir={tmp_path}/vanilla', '--seeds=0-3')
    whole = samples(tmp_path / '4')['samples_00000000.npz']['samples']
    halves = np.concatenate([array['samples'] for array in samples(tmp_path / '2').values()])
    vanilla = samples(tmp_path / 'vanilla')['samples_00000000.npz']['samples']
    assert np.abs(halves.astype(int) - whole).max() <= 1  # fp32 sums in another order
    assert (whole != vanilla).any()


def test_published_options(files, tmp_path):
    """Everything DG accepts, with second order, boosting and limits, on a conditional pair."""
    code, output = invoke(
        files, f'--outdir={tmp_path}/out', '--num_samples=3', '--seed=7', '--do_seed=1', '--class=2', '--batch=2',
        '--sigma_min=0.01', '--sigma_max=50', '--rho=5', '--S_churn=10', '--S_min=0.05', '--S_max=30',
        '--S_noise=1.003', '--save_type=npz', '--dg_weight_1st_order=1', '--dg_weight_2nd_order=1', '--time_min=0.02',
        '--time_max=0.9', '--boosting=1', '--cond=1', network='cond', guided=True, disc='disc_cond')
    assert code == 0, output
    arrays = samples(tmp_path / 'out')
    assert list(arrays) == ['samples_00000007.npz', 'samples_00000009.npz']
    assert (arrays['samples_00000007.npz']['label'].argmax(1) == 2).all()


@pytest.mark.parametrize('arguments, score, discriminator', [
    ([], 5, 0), (['--solver=euler'], 3, 0), (['--dg_weight_1st_order=2'], 5, 2),
    (['--dg_weight_1st_order=2', '--dg_weight_2nd_order=1'], 5, 3)])
def test_evaluations_per_image_are_shown(files, tmp_path, arguments, score, discriminator):
    """Heun's method leaves out the last correction; the lowest of three levels is below --time_min."""
    command = [f'--outdir={tmp_path}/out', '--seeds=0-3', '--batch=2', *arguments]
    _, output = invoke(files, *command, guided=discriminator > 0)
    shown = f'per image: {score} evaluations of the score network, {discriminator} evaluations of the discriminator'
    assert shown in output
    options = (tmp_path / 'out' / 'options.json').read_text()
    report = json.loads(options)['report']
    assert report['nfe']['mean'] == score and report['discriminator_calls']['max'] == discriminator
    assert report['images'] == report['timed_images'] == 4
    assert shown in invoke(files, *command, guided=discriminator > 0)[1]
    assert (tmp_path / 'out' / 'options.json').read_text() == options  # nothing was drawn


@pytest.mark.parametrize('options', [
    ['--solver=euler'], ['--disc=vp', '--schedule=vp', '--scaling=vp'], ['--disc=iddpm', '--schedule=ve']])
@pytest.mark.parametrize('guided', [False, True])
def test_ablation_options_work(files, tmp_path, options, guided):
    code, output = invoke(files, f'--outdir={tmp_path}/out', '--seeds=0-1', *options, guided=guided)
    assert code == 0, output
    invoke(files, f'--outdir={tmp_path}/edm', '--seeds=0-1', guided=guided)
    ours, edm = (samples(tmp_path / name)['samples_00000000.npz']['samples'] for name in ('out', 'edm'))
    assert (ours != edm).any()


def test_png(files, tmp_path):
    assert invoke(files, f'--outdir={tmp_path}/out', '--seeds=1,12', '--save_type=png')[0] == 0
    assert sorted(os.listdir(tmp_path / 'out')) == ['000001.png', '000012.png', 'options.json']


def test_the_same_command_resumes_and_another_is_refused(files, tmp_path):
    command = [f'--outdir={tmp_path}/out', '--seeds=0-3', '--batch=2']
    invoke(files, *command)
    (tmp_path / 'out' / 'samples_00000002.npz').unlink()
    assert '2 of them new' in invoke(files, *command)[1]
    code, output = invoke(files, *command, '--rho=6')
    assert code == 1 and '--outdir' in output and 'rho was 7' in output and '--overwrite' in output
    assert invoke(files, *command, '--rho=6', '--overwrite')[0] == 0
    os.replace(files / 'uncond.safetensors', tmp_path / 'kept')  # another network under the same name
    try:
        (files / 'uncond.safetensors').write_bytes((files / 'large.safetensors').read_bytes())
        assert 'network_sha256' in invoke(files, *command, '--rho=6')[1]
    finally:
        os.replace(tmp_path / 'kept', files / 'uncond.safetensors')


def test_published_paths_mean_the_working_folder(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke(files, '--outdir=/samples_of_a_test/run', '--seeds=0')[0] == 0
    assert (tmp_path / 'samples_of_a_test' / 'run' / 'samples_00000000.npz').is_file()


@pytest.mark.parametrize('args, kwargs, words', [
    (['--network=nowhere.pkl'], {}, '--network'),
    (['--network={files}/foreign.pt'], {}, '--network'),
    (['--network={files}/classifier.pt'], {}, '--network'),
    (['--seeds=0', '--num_samples=4'], {}, '--seeds'),
    (['--seeds=5-1'], {}, '--seeds'),
    (['--class=3'], {}, '--class'),
    (['--class=10'], dict(network='cond'), '0 to 9'),
    (['--cond=1'], dict(guided=True, disc='disc_cond'), '--cond'),
    (['--cond=0'], dict(guided=True, disc='disc_cond', network='cond'), '--discriminator_ckpt'),
    (['--cond=1'], dict(guided=True, network='cond'), '--discriminator_ckpt'),
    ([], dict(guided=True, network='large'), '--discriminator_ckpt'),
    ([], dict(guided=True, disc='missing'), '--discriminator_ckpt'),
    ([], dict(guided=True, disc='foreign'), '--discriminator_ckpt'),
    ([], dict(guided=True, disc='classifier'), '--discriminator_ckpt'),
    (['--time_min=0.5', '--time_max=0.4'], dict(guided=True), '--time_min'),
    (['--sigma_min=5', '--sigma_max=2'], {}, '--sigma_min'),
    (['--disc=iddpm', '--sigma_min=5', '--sigma_max=5.0001'], {}, '--sigma_min'),
    (['--S_noise=-1'], {}, '--S_noise'),
    (['--S_churn=nan'], {}, '--S_churn'),
    (['--S_churn=1', '--S_min=5', '--S_max=2'], {}, '--S_min'),
    (['--rho=1e-9'], {}, '--rho'),
    (['--steps=10000000'], {}, '--steps'),
    (['--boosting=1', '--solver=euler'], dict(guided=True), '--boosting'),
    (['--dg_weight_2nd_order=1', '--solver=euler'], dict(guided=True), '--dg_weight_2nd_order'),
    (['--device=cuda:99'], {}, '--device'),
    (['--device=warp'], {}, '--device'),
    (['--precision=fp16'], {}, '--precision'),
    (['--outdir={files}/foreign.pt'], {}, 'is a file; name a folder'),
    (['--outdir={files}/foreign.pt/below'], {}, '--outdir'),
])
def test_bad_input_is_one_line(files, tmp_path, args, kwargs, words):
    """Exit code 1 or 2, a last line that names the option, no file."""
    args = [arg.format(files=files) for arg in args]
    code, output = invoke(files, f'--outdir={tmp_path}/out', *([] if '--seeds' in str(args) else ['--seeds=0']),
                          *args, **kwargs)
    assert code in (1, 2), output
    last = output.strip().splitlines()[-1]
    assert last.startswith('Error: ') and words in last, output
    assert not (tmp_path / 'out').exists()


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_unwritable_folder(files, tmp_path):
    tmp_path.chmod(0o500)
    code, output = invoke(files, f'--outdir={tmp_path}/out', '--seeds=0')
    assert code == 1 and '--outdir' in output


def test_nan_is_one_line_and_no_file(files, tmp_path):
    code, output = invoke(files, f'--outdir={tmp_path}/out', '--seeds=4-5', network='nan')
    assert code == 1 and 'seed 4 ' in output.strip().splitlines()[-1]
    assert os.listdir(tmp_path / 'out') == ['options.json']


@pytest.mark.skipif(not demo.DEMO_SCORE.is_file() or not demo.DEMO_DISCRIMINATOR.is_file(), reason='no demo files yet')
def test_the_demo_is_the_default(tmp_path):
    result = script_runs.invoke(generate.main, f'--outdir={tmp_path}/out', '--seeds=0-1', '--steps=2', '--device=cpu',
                                '--precision=fp32')
    assert result.exit_code == 0, result.output
    assert samples(tmp_path / 'out')['samples_00000000.npz']['samples'].shape == (2, 32, 32, 3)


def test_torchrun_gives_the_same_files(files, tmp_path):
    """Two real processes with gloo against one without."""
    options = [f'--network={files / "cond.safetensors"}', '--dg_weight_1st_order=0', '--seeds=0-6', '--batch=2',
               '--steps=2', '--device=cpu', '--precision=fp32', '--S_churn=5']
    two = script_runs.start('generate.py', [*options, f'--outdir={tmp_path}/two'], 2, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)
    try:
        one = script_runs.finish('generate.py', [*options, f'--outdir={tmp_path}/one'])
        output, _ = two.communicate(timeout=120)
    finally:
        script_runs.kill_all(two)
    assert (two.returncode, one[0]) == (0, 0), (output, one[1])
    names = sorted(os.listdir(tmp_path / 'one'))
    assert names == sorted(os.listdir(tmp_path / 'two')) and len(names) == 9
    assert comparable(tmp_path / 'one') == comparable(tmp_path / 'two')


class Doubled(torch.nn.Module):
    img_channels, img_resolution = 3, 8

    def forward(self, x, sigma):
        return 2 * x


def cpu(mode='auto', device='cpu'):
    return machine.Machine(torch.device(device), torch.float32, 'fp32', mode)


@pytest.mark.parametrize('mode', ['auto', 'on'])
def test_a_compiler_that_fails(monkeypatch, capsys, mode):
    """It is called in the first evaluation: 'auto' continues without it, 'on' ends in one line."""
    def broken(*args):
        raise torch._dynamo.exc.TorchDynamoException('Python.h: No such file')

    monkeypatch.setattr(torch.nn.Module, 'compile', lambda net, dynamic: setattr(net, '_compiled_call_impl', broken))
    monkeypatch.setattr(machine, 'select_compile', lambda *args: True)
    net, x = Doubled(), torch.ones([1, 3, 8, 8])
    assert machine.compile_for_sampling(cpu(mode), net, None, 3500)
    if mode == 'on':
        with pytest.raises(CompilerFailed):
            net(x, 1.0)
        with pytest.raises(click.ClickException, match='--compile: .* use --compile=off'):
            with machine.blame_machine('--batch'):
                net(x, 1.0)
    else:
        assert torch.equal(net(x, 1.0), 2 * x) and torch.equal(net(x, 1.0), 2 * x)
        assert capsys.readouterr().out.count('continuing without it') == 1


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_what_is_compiled(monkeypatch, device):
    """The log-ratio only on a GPU."""
    asked = []
    monkeypatch.setattr(torch.nn.Module, 'compile', lambda net, dynamic: asked.append('network'))
    monkeypatch.setattr(networks.LogRatio, 'compile', lambda log_ratio, choose: asked.append('log-ratio'))
    monkeypatch.setattr(machine, 'prepare_compiler', lambda reproducible: asked.append(reproducible))
    assert machine.compile_for_sampling(cpu('on', device), Doubled(), networks.LogRatio(None, None), 35)
    assert asked == ([False, 'network'] if device == 'cpu' else [True, 'network', 'log-ratio'])


def test_any_number_of_ranks_compiles_alike(monkeypatch, files, tmp_path):
    """Otherwise another number could not resume a run: 4 images of 5 evaluations each, for any number of ranks."""
    asked = []
    monkeypatch.setattr(machine, 'select_compile', lambda mode, device, evaluate, calls: asked.append(calls))
    for solver in ([], ['--solver=euler']):
        invoke(files, f'--outdir={tmp_path}/out{solver}', '--seeds=0-3', *solver)
    assert asked == [4 * 5, 4 * 3]


@pytest.mark.parametrize('error', [torch.OutOfMemoryError(), RuntimeError("can't allocate memory"),
                                   RuntimeError('CUDA error: out of memory'),
                                   RuntimeError('CUDNN_STATUS_ALLOC_FAILED')])
def test_too_little_memory_is_no_fault_of_the_compiler(error):
    def full(x):
        raise error

    with pytest.raises(type(error)):
        compiled_or_plain('auto', full, lambda x: x)(0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('g++') is None, reason='needs a C++ compiler')
def test_compiled_runs_give_the_same_files(files, tmp_path):
    """The last batch is short; a second run writes the same bytes, close to those of an uncompiled one."""
    for name, compiled in (('a', 'on'), ('b', 'on'), ('eager', 'off')):
        code, output = invoke(files, f'--outdir={tmp_path}/{name}', '--seeds=0-4', '--batch=2', f'--compile={compiled}')
        assert code == 0, output
    first, again, eager = (samples(tmp_path / name) for name in ('a', 'b', 'eager'))
    for name in first:
        assert np.array_equal(first[name]['samples'], again[name]['samples'])
        assert np.abs(first[name]['samples'].astype(int) - eager[name]['samples']).max() <= 2
