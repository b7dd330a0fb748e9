"""LoRA and related options as a user runs them: training, sampling, refusals; the reproduction's own commands."""

import json
import shutil

import numpy as np
import pytest
import script_runs
import torch
from script_runs import ROOT, finish

import generate
import generate_diffrs
import train
from commands import discriminator, loading
from networks import lora
from torch_utils import checkpoint
from torch_utils.checkpoint import read_network


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """An empty file for the picture of a run, which takes a second."""
    monkeypatch.setattr(discriminator, 'draw_training', lambda lines, path: path.touch())


def invoke(main, *args):
    result = script_runs.invoke(main, *args)
    return result.exit_code, result.output


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A folder with real.npz (ours) and fake.npz (as the reproduction saves samples), 30 images of 16x16 each."""
    folder = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    labels = np.eye(10, dtype=np.float32)[np.arange(30) % 10]
    np.savez(folder / 'real.npz', samples=rng.integers(0, 120, [30, 16, 16, 3]).astype(np.uint8), label=labels)
    np.savez(folder / 'fake.npz', images=rng.integers(90, 255, [30, 16, 16, 3]).astype(np.uint8), labels=labels)
    return folder


def training(files, images, outdir, *args):
    return [f'--save_dir={outdir}', f'--sample_dir={images}/fake.npz', f'--datadir={images}/real.npz',
            f'--pretrained_classifier_ckpt={files}/classifier.pt', '--img_resolution=16', '--width=64', '--depth=1',
            '--batch_size=12', '--n_epochs=2', '--device=cpu', '--precision=fp32', *args]


def tensors(path):
    return torch.load(path, weights_only=True)


def assert_equal_states(a, b):
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope='module')
def trained(files, images, tmp_path_factory):
    """The folder of a run with adapters of rank 2."""
    folder = tmp_path_factory.mktemp('lora') / 'run'
    code, output = invoke(train.main, *training(files, images, folder, '--lora_rank=2', '--wd=1e-6'))
    assert code == 0, output
    return folder


def test_adapters_are_trained_with_the_discriminator(trained):
    adapters = lora.read_adapters(trained / 'lora_adm_final.pt', rank=2)
    assert all(value.abs().max() > 0 for value in adapters.state.values())  # lora_B starts at 0
    assert_equal_states(adapters.state, tensors(trained / 'lora_adm_2.pt'))
    assert_equal_states(adapters.state, lora.read_adapters(trained / 'lora_adm_final.safetensors').state)
    assert_equal_states(lora.read_adapters(trained / 'lora_best.safetensors').state, tensors(trained / 'lora_best.pt'))
    file = read_network(trained / 'best.safetensors')
    assert file.metadata['lora_rank'] == 2 and not any('lora' in name for name in file.state)
    assert any((tensors(trained / 'lora_adm_1.pt')[name] != value).any() for name, value in adapters.state.items())
    assert json.loads((trained / 'options.json').read_text())['wd'] == 1e-6


def test_a_stopped_run_resumes_bitwise(files, images, trained, tmp_path):
    command = training(files, images, tmp_path / 'run', '--lora_rank=2', '--wd=1e-6')
    code, output = invoke(train.main, *command, '--max_minutes=0')
    assert code == 0 and 'the same command resumes' in output, output
    assert invoke(train.main, *command)[0] == 0
    for name in ('lora_adm_final.pt', 'discriminator_2.pt', 'lora_best.pt'):
        assert_equal_states(tensors(tmp_path / 'run' / name), tensors(trained / name))
    code, output = invoke(train.main, *training(files, images, tmp_path / 'run', '--lora_rank=4', '--wd=1e-6'))
    assert code == 1 and 'lora_rank was 2' in output, output


def test_adapters_at_reflected_noise_are_safetensors(files, images, tmp_path, monkeypatch):
    """All files are, and each discriminator is written once."""
    written, save = [], checkpoint.save_network
    monkeypatch.setattr(checkpoint, 'save_network', lambda path, *args, **kwargs: (
        written.append(path.name), save(path, *args, **kwargs)))
    code, output = invoke(train.main, *training(files, images, tmp_path / 'run', '--lora_rank=2',
                                                '--process=reflected', '--n_epochs=1'))
    assert code == 0, output
    assert sorted(path.name for path in (tmp_path / 'run').iterdir()) == [
        'best.safetensors', 'discriminator_1.safetensors', 'lora_adm_1.safetensors', 'lora_adm_final.safetensors',
        'lora_best.safetensors', 'options.json', 'stats.jsonl', 'training-state.pt', 'training.png']
    assert sorted(written) == ['best.safetensors', 'discriminator_1.safetensors']


@pytest.mark.slow
def test_two_processes_train_the_same_adapters(files, images, trained, tmp_path):
    code, output = finish(ROOT / 'train.py', training(files, images, tmp_path / 'run', '--lora_rank=2', '--wd=1e-6'), 2)
    assert code == 0, output
    ours, alone = tensors(tmp_path / 'run' / 'lora_adm_final.pt'), tensors(trained / 'lora_adm_final.pt')
    for name, value in alone.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-4)


def sampling(files, *args):
    return [f'--network={files}/uncond.safetensors', f'--pretrained_classifier_ckpt={files}/classifier.pt',
            '--device=cpu', '--precision=fp32', '--steps=3', '--batch=2', '--seeds=0-1', *args]


def drawn(folder):
    return np.load(folder / 'samples_00000000.npz')['samples']


SCRIPTS = dict(generate=(generate.main, []),
               generate_diffrs=(generate_diffrs.main, ['--iter_warmup=1', '--rej_percentile=0.75']))


@pytest.mark.parametrize('script', ['generate', pytest.param('generate_diffrs', marks=pytest.mark.slow)])
def test_samples_with_adapters(files, trained, tmp_path, script):
    main, options = SCRIPTS[script]
    code, output = invoke(main, *sampling(
        files, f'--discriminator_checkpoint={trained}/best.safetensors', *options, f'--outdir={tmp_path}/out',
        f'--lora_checkpoint={trained}/lora_best.pt', '--lora_rank=2'))
    assert code == 0, output
    record = json.loads((tmp_path / 'out' / 'options.json').read_text())
    assert record['lora_checkpoint'] == f'{trained}/lora_best.pt' and len(record['lora_sha256']) >= 16
    if script == 'generate_diffrs':
        assert 'lora_sha256' in (tmp_path / 'out' / 'thresholds.json').read_text()


@pytest.mark.parametrize('script', SCRIPTS)
def test_adapters_that_do_not_belong(files, trained, tmp_path, script):
    main, options = SCRIPTS[script]
    command = sampling(files, f'--discriminator_checkpoint={trained}/best.safetensors', *options)
    code, output = invoke(main, *command, f'--outdir={tmp_path}/none')
    assert code == 1 and 'trained with LoRA adapters of rank 2, and no LoRA adapters are given' in output, output
    code, output = invoke(main, *command, f'--outdir={tmp_path}/none', f'--lora_checkpoint={trained}/lora_best.pt',
                          '--lora_rank=16')
    assert code == 1 and '--lora_checkpoint: ' in output and 'has adapters of rank 2, not 16' in output, output
    code, output = invoke(main, *command, f'--outdir={tmp_path}/none', '--lora_rank=2')
    assert code == 1 and '--lora_rank: goes with --lora_checkpoint' in output, output
    assert not (tmp_path / 'none').exists()


def test_another_rank_gives_other_samples(files, trained, tmp_path):
    """With plain files, which do not record their rank."""
    command = sampling(files, f'--discriminator_ckpt={trained}/discriminator_2.pt', '--dg_weight_1st_order=20')
    state = {name: 20 * value for name, value in tensors(trained / 'lora_adm_2.pt').items()}
    torch.save(state, tmp_path / 'strong.pt')
    for name, options in dict(without=[], named=['--lora_checkpoint=None', '--lora_rank=-1'],
                              adapted=[f'--lora_checkpoint={tmp_path}/strong.pt']).items():
        code, output = invoke(generate.main, *command, f'--outdir={tmp_path}/{name}', *options)
        assert code == 0, output
    assert np.array_equal(drawn(tmp_path / 'without'), drawn(tmp_path / 'named'))
    assert (drawn(tmp_path / 'without') != drawn(tmp_path / 'adapted')).any()


def test_several_discriminators(files, tmp_path):
    """One is recorded as before; two are averaged and counted, and two equal ones draw the same as one."""
    once, twice = ([f'--discriminator_ckpt={files}/disc_uncond.pt'] * times for times in (1, 2))
    for name, given in dict(one=once, two=twice).items():
        code, output = invoke(generate.main, *sampling(files, *given, f'--outdir={tmp_path}/{name}'))
        assert code == 0, output
    one, two = (json.loads((tmp_path / name / 'options.json').read_text()) for name in ('one', 'two'))
    assert one['discriminator_ckpt'] == f'{files}/disc_uncond.pt' and isinstance(one['discriminator_sha256'], str)
    assert two['discriminator_ckpt'] == [one['discriminator_ckpt']] * 2
    assert two['discriminator_sha256'] == [one['discriminator_sha256']] * 2
    calls = [options['report']['discriminator_calls']['mean'] for options in (one, two)]
    assert calls == [2, 4] and one['report']['nfe'] == two['report']['nfe']
    assert np.array_equal(drawn(tmp_path / 'one'), drawn(tmp_path / 'two'))


def test_the_commands_of_the_reproduction(files, images, tmp_path, monkeypatch):
    """As in its README, except for sizes: sampling, training on the samples, sampling with adapters."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'guided_diffusion' / 'model').mkdir(parents=True)
    shutil.copy(files / 'classifier.pt', tmp_path / loading.CLASSIFIER_OF_REPRODUCTION)
    (tmp_path / 'data').mkdir()
    shutil.copy(images / 'real.npz', tmp_path / 'data' / 'true_data_label.npz')
    small = '--steps=3 --device=cpu'.split()
    code, output = invoke(generate.main, *(
        f'--network {files}/uncond.safetensors --num_samples=2 --batch 2 --outdir training_data '
        '--discriminator_checkpoint models/uncond_disc/discrim_uncond_epoch59.pt --conditional 0 --adaptive_weight 0 '
        '--w_dg_1 0.').split(), *small)
    assert code == 0, output
    code, output = invoke(train.main, *(
        f'--sample_dir {images}/fake.npz --save_dir models/ --cond 1 --lora_rank 8 --batch_size 16 --n_epochs 1 '
        '--img_resolution=16 --width=64 --depth=1 --device=cpu').split())
    assert code == 0 and '30 real images from /data/true_data_label.npz' in output, output
    code, output = invoke(generate.main, *(
        f'--network {files}/cond.safetensors --num_samples=3 --batch 2 --outdir drawn --discriminator_checkpoint '
        'models/best.pt --conditional 1 --adaptive_weight 1 --w_dg_1 1. --w_dg_2 0. --time_mid 0.01 --S_churn_manual 2 '
        '--save_format npz --lora_checkpoint models/lora_best.pt --lora_rank 8').split(), *small)
    assert code == 0, output
    record = json.loads((tmp_path / 'drawn' / 'options.json').read_text())
    assert (record['boosting'], record['dg_weight_1st_order'], record['cond']) == (1, 1.0, 1)
    assert record['boosting_schedule'] == dict(weight_period=2, churn_period=2, first=0, S_churn=2.0, S_noise=1.0)
    code, output = invoke(generate.main, *(
        f'--network {files}/uncond.safetensors --num_samples=2 --outdir refused --discriminator_checkpoint '
        'models/best.pt --conditional 1 --adaptive_weight 0 --w_dg_1 1.').split(), *small)
    assert code == 1 and output.splitlines()[-1].startswith('Error: --cond: a conditional discriminator needs a '
                                                            'network with labels'), output


@pytest.mark.parametrize('schedule, recorded', [('dg', None), ('paper', dict(churn_period=2, first=1))])
def test_boosting_schedules(files, tmp_path, schedule, recorded):
    """DG's is recorded as before there were others."""
    code, output = invoke(generate.main, *sampling(files, f'--discriminator_ckpt={files}/disc_uncond.pt',
                                                   '--boosting=1', f'--boosting_schedule={schedule}',
                                                   f'--outdir={tmp_path}/out'))
    assert code == 0, output
    record = json.loads((tmp_path / 'out' / 'options.json').read_text())
    found = record.get('boosting_schedule')
    assert record['boosting'] == 1 and (found is None) == (recorded is None)
    assert recorded is None or {name: found[name] for name in recorded} == recorded


# ---------------------------------------------------------------------------
# Training with the other loss and with regularisers.

def test_score_loss(files, images, tmp_path):
    """Its curves are drawn, and methods that need the value of the log-ratio refuse its networks."""
    command = training(files, images, tmp_path / 'run', '--loss=score', f'--network={files}/uncond.safetensors',
                       '--lora_rank=2', '--lr=1e-3', '--xflip=1')
    code, output = invoke(train.main, *command)
    assert code == 0 and 'correction' in output, output
    lines = [json.loads(line) for line in (tmp_path / 'run' / 'stats.jsonl').read_text().splitlines()]
    assert all(np.isfinite(line[name]) for line in lines for name in ('loss', 'unguided_error', 'held_out_correction'))
    best = min(lines, key=lambda line: line['held_out_correction'])
    metadata = read_network(tmp_path / 'run' / 'best.safetensors').metadata
    assert metadata['loss'] == 'score' and metadata['held_out_correction'] == best['held_out_correction']
    drawing = sampling(files, f'--discriminator_ckpt={tmp_path}/run/best.safetensors', f'--outdir={tmp_path}/out',
                       f'--lora_checkpoint={tmp_path}/run/lora_best.pt')
    assert invoke(generate.main, *drawing)[0] == 0
    for main, options, option in ((generate.main, ['--boosting=1'], '--boosting'),
                                  (generate_diffrs.main, [], '--discriminator_ckpt')):
        code, output = invoke(main, *drawing, *options, '--overwrite')
        assert code == 1 and f'Error: {option}: ' in output and 'gradient' in output, output


def test_bce_is_measured_by_the_correction_if_the_network_is_named(files, images, tmp_path):
    code, output = invoke(train.main, *training(files, images, tmp_path / 'run', '--cond=1', '--dropout=0.1',
                                                f'--network={files}/cond.safetensors', '--augment=0.12'))
    assert code == 0, output
    line = json.loads((tmp_path / 'run' / 'stats.jsonl').read_text().splitlines()[-1])
    assert {'accuracy', 'held_out_loss', 'held_out_correction'} <= line.keys()
    config = json.loads((tmp_path / 'run' / 'options.json').read_text())
    assert (config['dropout'], config['augment']) == (0.1, 0.12) and 'network_sha256' in config


@pytest.mark.parametrize('option, given', [
    ('--loss', ['--loss=score']),
    ('--augment', ['--loss=score', '--network=NET', '--augment=0.1']),
    ('--compile', ['--loss=score', '--network=NET', '--compile=on']),
    ('--network', ['--loss=score', '--network=NET', '--cond=1']),
])
def test_what_does_not_go_together(files, images, tmp_path, option, given):
    given = [argument.replace('NET', f'{files}/uncond.safetensors') for argument in given]
    code, output = invoke(train.main, *training(files, images, tmp_path / 'run', *given))
    assert code == 1 and output.splitlines()[-1].startswith(f'Error: {option}: '), output
    assert not (tmp_path / 'run').exists()
