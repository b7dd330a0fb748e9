"""generate.py with Restart, particles, other solvers, guides and listed levels: real files, one-line errors."""

import json
import os

import numpy as np
import pytest
import script_runs
import torch

import generate
import networks
from sampling import Autoguidance, multistep_sampler, particle_sampler, restart_sampler, sample
from sampling.interval import GuidanceInterval
from sampling.levels import Churn, edm_levels, listed_levels
from sampling.restart import parse_restarts
from torch_utils.images import to_uint8

RESTART = ['--sampler=restart', '--restart=4; [2,2,0.5,2]']


def invoke(files, *args, network='uncond', guided=False):
    """generate.main in-process, fp32 on the CPU, with a discriminator but no guidance; (exit code, output)."""
    command = ['--device=cpu', '--precision=fp32', f'--network={files / network}.safetensors', '--compile=off',
               f'--pretrained_classifier_ckpt={files / "classifier.pt"}',
               f'--discriminator_ckpt={files / "disc_uncond.pt"}', *([] if guided else ['--dg_weight_1st_order=0'])]
    result = script_runs.invoke(generate.main, *command, *args)
    return result.exit_code, result.output


def read(folder):
    """(all samples, options.json, arrays of the first file)."""
    shards = [dict(np.load(path, allow_pickle=False)) for path in sorted(folder.glob('samples_*.npz'))]
    options = json.loads((folder / 'options.json').read_text())
    return np.concatenate([shard['samples'] for shard in shards]), options, shards[0]


def uncond(files):
    return networks.load_network(files / 'uncond.safetensors')


def test_restart(files, tmp_path):
    code, output = invoke(files, f'--outdir={tmp_path}', '--seeds=0-1', *RESTART, '--steps=64')
    assert code == 0 and 'per image: 11 evaluations of the score network' in output, output
    images, options, _ = read(tmp_path)
    assert options['num_steps'] == 4 and options['restart'] == [[2, 2, 0.5, 2.0]] and options['restart_gamma'] == 0.05
    net = uncond(files)
    expected = sample(restart_sampler, net, range(2), restarts=parse_restarts('4; [2,2,0.5,2]'), progress=False,
                      levels=edm_levels(net, 4))
    assert np.array_equal(images, to_uint8(expected.images))


def test_a_preset_brings_the_churn_of_its_authors(files, tmp_path, monkeypatch):
    monkeypatch.setitem(generate.samplers.PRESETS, 'imagenet64-7', generate.samplers.PRESETS['imagenet64-39']._replace(
        text='3; [2,1,0.5,2]'))
    code, output = invoke(files, f'--outdir={tmp_path}', '--seeds=0', '--sampler=restart', '--restart=imagenet64-7',
                          '--S_max=2')
    assert code == 0, output
    _, options, _ = read(tmp_path)
    assert [options[name] for name in ('num_steps', 'S_min', 'S_max', 'S_noise')] == [3, 0.01, 2, 1.003]


def test_particles_as_published(files, tmp_path):
    """The options of the published command for Restart, with smaller numbers; the same command resumes."""
    command = [f'--outdir={tmp_path}', '--sampler', 'restart', '--method', 'pf', '--cond', '0', '--restart_info',
               '4; {"0": [2, 1, 0.5, 2.0]}', '--S_churn', '0.0', '--S_min', '0.01', '--S_max', '1.0', '--S_noise',
               '1.003', '--num_particles', '2', '--seeds', '0-7', '--batch', '4', '--steps', '64', '--resample_inds',
               '-1', '--resampling', 'multinomial']
    code, output = invoke(files, *command)
    assert code == 0, output
    assert 'per image: 9 evaluations of the score network, 2 evaluations of the discriminator' in output
    images, options, shard = read(tmp_path)
    assert options['method'] == 'pf' and len(images) == 8
    assert shard['log_ratio'].dtype == shard['log_weight'].dtype == np.float64 and len(shard['ancestor']) == 4
    os.unlink(tmp_path / 'samples_00000004.npz')
    assert '4 of them new' in invoke(files, *command)[1]
    assert np.array_equal(read(tmp_path)[0], images)


def test_particles_on_steps_and_selection(files, tmp_path):
    common = ['--steps=4', '--num_particles=2', '--resample_inds=1,2', '--ess=0.9']
    assert invoke(files, f'--outdir={tmp_path}/all', '--seeds=0-7', '--batch=4', *common)[0] == 0
    code, output = invoke(files, f'--outdir={tmp_path}/best', '--seeds=0-3', '--batch=3', '--select', *common)
    assert code == 0 and 'per image: 14 evaluations of the score network, 6' in output, output
    kept, chosen = read(tmp_path / 'all'), read(tmp_path / 'best')
    net = uncond(files)
    log_ratio = networks.load_log_ratio(net, files / 'classifier.pt', files / 'disc_uncond.pt')
    expected = sample(particle_sampler, net, range(8), log_ratio=log_ratio, num_particles=2, resample_at=[1, 2],
                      levels=edm_levels(net, 4), threshold=0.9, progress=False)
    assert np.abs(kept[0].astype(int) - to_uint8(expected.images)).max() <= 1  # fp32 sums in another order
    rows = 2 * np.arange(4) + expected.costs['log_ratio'].reshape(4, 2).argmax(1)
    assert np.abs(chosen[0].astype(int) - kept[0][rows]).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize('own', [[*RESTART], ['--steps=4', '--resample_inds=1,2', '--ess=0.9', '--select']])
def test_particles_are_dealt_to_ranks_in_whole_groups(files, tmp_path, own):
    """The same bytes from one process and from two; a shard that is lost comes again."""
    command = [f'--network={files}/uncond.safetensors', f'--pretrained_classifier_ckpt={files}/classifier.pt',
               f'--discriminator_ckpt={files}/disc_uncond.pt', '--num_particles=2', '--seeds=0-9', '--batch=4',
               '--device=cpu', '--precision=fp32', *own]
    for folder, processes in (('one', 1), ('two', 2)):
        code, output = script_runs.finish('generate.py', [*command, f'--outdir={tmp_path / folder}'], processes)
        assert code == 0, output
    whole = script_runs.comparable(tmp_path / 'one')
    assert whole == script_runs.comparable(tmp_path / 'two')
    (tmp_path / 'two' / 'samples_00000004.npz').unlink()
    code, output = script_runs.finish('generate.py', [*command, f'--outdir={tmp_path / "two"}'])
    assert code == 0 and '4 of them new' in output and script_runs.comparable(tmp_path / 'two') == whole, output


def test_solver_of_one_evaluation_on_levels_from_a_file(files, tmp_path):
    (tmp_path / 'levels.txt').write_text('[40, 10.0, 3\n0.8, 0.1, 0]\n')
    code, output = invoke(files, f'--outdir={tmp_path}/out', '--seeds=0-1', '--solver=unipc',
                          f'--sigmas={tmp_path}/levels.txt')
    assert code == 0 and 'per image: 5 evaluations of the score network' in output, output
    net = uncond(files)
    images, options, _ = read(tmp_path / 'out')
    assert options['sigmas'] == [40, 10, 3, 0.8, 0.1, 0] and options['num_steps'] == 5
    expected = sample(multistep_sampler, net, range(2), solver='unipc', progress=False,
                      levels=listed_levels(net, [40, 10, 3, 0.8, 0.1], Churn()))
    assert np.array_equal(images, to_uint8(expected.images))


def test_autoguidance_in_an_interval(files, tmp_path):
    code, output = invoke(files, f'--outdir={tmp_path}', '--seeds=0-1', '--steps=4', '--guiding_weight=1.5',
                          f'--guiding_network={files / "uncond.safetensors"}', '--guidance_interval=[1, 2]')
    assert code == 0, output
    _, options, _ = read(tmp_path)
    assert options['report']['guiding_calls']['mean'] == 4 and options['guidance_interval'] == '[1, 2]'
    assert options['guiding_weight'] == 1.5 and options['guiding_network_sha256'] == options['network_sha256']


def test_guides_are_those_of_the_library(files, tmp_path):
    """With another network than the guided one, so that guidance has an effect."""
    net, guide = uncond(files), networks.load_network(files / 'uncond.safetensors')
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.mul_(0.9)
    networks.save_network(tmp_path / 'guide.safetensors', guide)
    assert invoke(files, f'--outdir={tmp_path}/out', '--seeds=0-1', '--steps=3', '--guidance_interval=0.5,100',
                  f'--guiding_network={tmp_path / "guide.safetensors"}')[0] == 0
    expected = sample(generate.samplers.SAMPLERS['edm'], net, range(2), levels=edm_levels(net, 3), progress=False,
                      guidance=Autoguidance(guide, 2, GuidanceInterval(0.5, 100)))
    plain = sample(generate.samplers.SAMPLERS['edm'], net, range(2), levels=edm_levels(net, 3), progress=False)
    assert np.array_equal(read(tmp_path / 'out')[0], to_uint8(expected.images))
    assert (to_uint8(expected.images) != to_uint8(plain.images)).any()


@pytest.mark.parametrize('args, words', [
    ([*RESTART, '--S_noise=0'], '--restart: S_noise is 0'),
    (['--sampler=restart', '--restart=18; [3,2,0.06]'], '--restart:'),
    (['--sampler=restart', '--restart=nothing'], 'cifar10-43'),
    (['--restart=cifar10-43'], '--sampler=restart'),
    ([*RESTART, '--solver=unipc'], '--sampler'),
    (['--solver=unipc', '--S_churn=10'], '--S_churn'),
    (['--solver=ipndm', '--schedule=vp'], '--schedule'),
    (['--solver=deis', '--dg_weight_2nd_order=1'], '--dg_weight_2nd_order'),
    (['--sampler=predictor_corrector', '--dg_weight_2nd_order=1'], '--dg_weight_2nd_order: a step of'),
    (['--num_particles=2'], '--resample_inds'),
    (['--num_particles=2', '--resample_inds=19'], '--resample_inds'),
    (['--num_particles=2', '--resample_inds=3', '--S_max=0.1'], '--resample_inds: step 3'),
    (['--num_particles=2', '--resample_inds=3', '--batch=3'], '--batch'),
    (['--num_particles=3', '--resample_inds=3', '--batch=3'], '--seeds'),
    (['--num_particles=2', '--resample_inds=3', '--dg_weight_1st_order=1'], 'count it twice'),
    (['--num_particles=2', '--method=none', '--dg_weight_1st_order=1'], '--method'),
    (['--num_particles=2', '--resample_inds=3', '--solver=unipc'], '--num_particles'),
    ([*RESTART, '--num_particles=2', '--resample_inds=3'], '--resample_inds'),
    (['--select'], '--num_particles'), (['--resample_inds=3'], '--num_particles'),
    (['--guidance_interval=1,2'], '--guidance_interval'),
    (['--w=1'], '--w'), (['--guiding_network={files}/large.safetensors'], '--guiding_network'),
    (['--guiding_network={files}/cond.safetensors'], '--guiding_network'),
    (['--guiding_classifier={files}/classifier.pt'], '--guiding_classifier'),
    ([*RESTART, '--guiding_network={files}/uncond.safetensors', '--guidance_interval=[1,2]'], 'LOW,HIGH'),
    (['--guiding_network={files}/uncond.safetensors', '--guidance_interval=2,1'], '--guidance_interval'),
    (['--sigmas=nowhere.txt'], '--sigmas'), (['--sigmas={files}/up.txt'], '--sigmas')])
def test_mistakes_end_in_one_line(files, tmp_path, args, words):
    (files / 'up.txt').write_text('1 2 3')
    code, output = invoke(files, f'--outdir={tmp_path}/out', '--seeds=0-3',
                          *[arg.format(files=files) for arg in args if isinstance(arg, str)])
    error = output.strip().splitlines()[-1]
    assert code == 1 and error.startswith('Error: --') and words in error, output
    assert not (tmp_path / 'out').exists() or not list((tmp_path / 'out').glob('samples*'))


def test_labels_are_needed_to_do_without_them(files, tmp_path):
    """The tiny conditional network was made without label dropout."""
    code, output = invoke(files, f'--outdir={tmp_path}/out', '--seeds=0', '--w=1', network='cond')
    assert code == 1 and 'without dropping labels' in output
