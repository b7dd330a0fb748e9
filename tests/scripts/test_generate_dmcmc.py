"""generate_dmcmc.py as a user calls it: chains, ranks, kills, continued runs, one-line errors."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from goldens import recipe_
from script_runs import comparable, contents, finish, kill_all, start, wait_until
from tiny_networks import TINY

import generate_dmcmc
import networks
from commands import dmcmc
from dnnlib import demo
from networks.noise_level import NoiseLevelNet, load_noise_level, save_noise_level
from sampling import Autoguidance, ClassifierFree
from sampling.dmcmc import NoiseLevel, Start, dmcmc_sampler
from sampling.integrators import kar1
from sampling.interval import GuidanceInterval
from sampling.samples import sample
from torch_utils.images import to_uint8


@pytest.fixture(scope='module')
def nets(tmp_path_factory):
    """A folder of a tiny 32x32 network, a noise-level model of 20 levels, and things that do not fit."""
    folder = tmp_path_factory.mktemp('dmcmc')
    tiny = dict(label_dim=0, img_resolution=32, sigma_max=50.0, model_channels=8, attn_resolutions=[])
    networks.save_network(folder / 'net.safetensors', recipe_(networks.construct('EDMPrecond', TINY | tiny)))
    networks.save_network(folder / 'small.safetensors', recipe_(networks.construct('EDMPrecond', TINY | dict(
        label_dim=0))))
    networks.save_network(folder / 'cond.safetensors', recipe_(networks.construct('EDMPrecond', TINY | tiny | dict(
        label_dim=3, label_dropout=0.1)), 5))
    for name, kwargs in dict(levels=dict(sigma_max=20.0), high={}, large=dict(img_resolution=256)).items():
        net = recipe_(NoiseLevelNet(**dict(sigma_min=0.1, levels=20) | kwargs))
        save_noise_level(folder / f'{name}.safetensors', net)
    torch.save(dict(epoch=1, opt={}, net=recipe_(NoiseLevelNet()).state_dict()), folder / '200.pt')
    return folder


def arguments(nets, outdir, *args):
    return [f'--network={nets}/net.safetensors', f'--noise_classifier={nets}/levels.safetensors', f'--outdir={outdir}',
            '--device=cpu', '--precision=fp32', '--n_init=1', '--n_burn=1', '--n_skip=1', '--steps=2', *map(str, args)]


SMALL = ('--chains=4', '--batch=2', '--num_samples=10')


def call(*args):
    result = CliRunner().invoke(generate_dmcmc.main, list(map(str, args)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope='module')
def whole(nets, tmp_path_factory):
    """A run in one go: five shards of two samples."""
    folder = tmp_path_factory.mktemp('whole') / 'out'
    result = call(*arguments(nets, folder, *SMALL))
    assert result.exit_code == 0, result.output
    return folder, result.output


def without_report(folder):
    found = comparable(folder)
    found['options.json'].pop('report', None)
    return found


def images_in(folder):
    return np.concatenate([np.load(path)['samples'] for path in sorted(folder.glob('samples_*.npz'))])


def test_samples_are_those_of_the_library(nets, whole):
    folder, output = whole
    net, model = networks.load_network(nets / 'net.safetensors'), load_noise_level(nets / 'levels.safetensors')
    expected = sample(dmcmc_sampler, net, range(10), batch=2, progress=False, chains=4, eta=2.0, n_skip=1,
                      noise_level=NoiseLevel(model, model.sigmas), tweedie=0.1,
                      start=Start(20.0, 0.1, n_init=1, n_burn=1),
                      integrator=lambda *a, **k: kar1(*a, sigma_min=0.1, num_steps=2, **k))
    assert np.abs(images_in(folder).astype(int) - to_uint8(expected.images)).max() <= 1
    report = json.loads((folder / 'options.json').read_text())['report']
    assert report['nfe'] == dict(mean=5, q05=5, median=5, q95=5, max=5)
    assert report['nfe_split'] == dict(langevin=1, integrator=3, tweedie=1, initialisation_per_chain=39)
    assert sum(report['start_sigma']['counts']) == 10 and 'too few outputs' in output
    assert 'of which 1 langevin, 3 integrator, 1 tweedie, 39 initialisation per chain' in output


@pytest.fixture
def demo_files(nets, monkeypatch):
    """The tiny networks in the places of the bundled ones."""
    monkeypatch.setattr(demo, 'DEMO_SCORE', nets / 'net.safetensors')
    monkeypatch.setattr(demo, 'DEMO_NOISE_LEVEL', nets / 'levels.safetensors')


def test_the_demo_needs_no_options(demo_files, tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(generate_dmcmc, 'draw', lambda stream, folder, **kwargs: runs.append(folder))
    assert call(f'--outdir={tmp_path}').exit_code == 0
    folder, = runs
    assert (len(folder.seeds), folder.chains, folder.groups) == (50000, 200, 2)
    assert folder.options['noise_levels'] == [0.1, 20.0, 20]


def test_a_preset_with_a_noise_level_model_of_ones_own(nets, tmp_path, monkeypatch):
    """It describes itself; only of a published one the preset says what it is."""
    own, runs = dmcmc.PRESETS['celebahq-kar2-48'][1], []
    monkeypatch.setitem(dmcmc.PRESETS, 'celebahq-kar2-48', (32, own))
    monkeypatch.setattr(generate_dmcmc, 'draw', lambda stream, folder, **kwargs: runs.append(folder.options))
    command = [f'--network={nets}/net.safetensors', '--preset=celebahq-kar2-48', f'--outdir={tmp_path}', '--device=cpu']
    result = call(*command, f'--noise_classifier={nets}/levels.safetensors')
    assert result.exit_code == 0, result.output
    assert runs[0]['noise_classifier_is'] is None and (runs[0]['integrator'], runs[0]['eta']) == ('kar2', 3.2)
    result = call(*command, f'--noise_classifier={nets}/200.pt')
    assert result.exit_code == 1 and '--noise_classifier: ' in result.output and 'is for 256x256x3' in result.output


def test_the_demo_has_a_noise_level_model_of_its_own(nets, demo_files, whole, tmp_path):
    own = [text for text in arguments(nets, tmp_path, *SMALL) if not text.startswith(('--network', '--noise_class'))]
    result = call(*own)
    assert result.exit_code == 0 and f'{nets}/levels.safetensors' in result.output, result.output
    assert np.array_equal(images_in(tmp_path), images_in(whole[0]))
    other = call(f'--network={nets}/net.safetensors', *own, '--overwrite')
    assert other.exit_code == 1 and ('--noise_classifier: only the demo network has one here; train one for yours: '
                                     'python train_classifier.py') in other.output
    assert other.output.rstrip().endswith('--sigma_min=0.002 --sigma_max=50')


def test_a_chain_follows_from_its_seed(nets, whole, tmp_path):
    """Chains 0 and 1 of 2 are those of 4, up to the rounding of another batch; their outputs have other numbers."""
    assert call(*arguments(nets, tmp_path, '--chains=2', '--batch=1', '--num_samples=4')).exit_code == 0
    found, expected = images_in(tmp_path).astype(int), images_in(whole[0]).astype(int)
    assert np.abs(found - expected[[0, 1, 4, 5]]).max() <= 1


@pytest.mark.parametrize('lost', [['samples_00000004.npz'], ['samples_00000008.npz', 'chains_00000000.npz']])
def test_what_is_missing_is_drawn_again(nets, whole, tmp_path, lost):
    folder = tmp_path / 'out'
    folder.mkdir()
    for name, data in contents(whole[0]).items():
        if name not in lost:
            (folder / name).write_bytes(data)
    result = call(*arguments(nets, folder, *SMALL))
    assert result.exit_code == 0 and '2 of them new' in result.output, result.output
    assert without_report(folder) == without_report(whole[0])


def test_more_samples_continue_the_chains(nets, whole, tmp_path):
    folder = tmp_path / 'out'
    assert call(*arguments(nets, folder, '--chains=4', '--batch=2', '--num_samples=5')).exit_code == 0
    result = call(*arguments(nets, folder, *SMALL))
    assert result.exit_code == 0 and '6 of them new' in result.output  # the shard of one, and the missing ones
    assert without_report(folder) == without_report(whole[0])


@pytest.mark.slow
def test_two_ranks_one_kill_the_same_bytes(nets, whole, tmp_path):
    folder = tmp_path / 'out'
    process = start('generate_dmcmc.py', arguments(nets, folder, *SMALL), processes=2)
    wait_until(lambda: len(list(folder.glob('samples_*.npz'))) > 1 or process.poll() is not None, timeout=120)
    kill_all(process)
    code, output = finish('generate_dmcmc.py', arguments(nets, folder, *SMALL), processes=2)
    assert code == 0, output
    assert without_report(folder) == without_report(whole[0])


def test_png(nets, whole, tmp_path):
    assert call(*arguments(nets, tmp_path, *SMALL, '--save_type=png')).exit_code == 0
    found = [np.asarray(PIL.Image.open(tmp_path / f'{k:06d}.png')) for k in range(10)]
    assert np.array_equal(np.stack(found), images_in(whole[0]))


@pytest.mark.parametrize('args', [['--integrator=rk45', '--tolerance=5'],
                                  ['--integrator=euler_maruyama', '--noise_level=argmax']])
def test_integrators(nets, tmp_path, args):
    given = [text for text in arguments(nets, tmp_path) if 'rk45' not in str(args) or '--steps' not in text]
    result = call(*given, '--chains=2', '--num_samples=8', *args)
    assert result.exit_code == 0, result.output
    assert images_in(tmp_path).std() > 10
    assert json.loads((tmp_path / 'options.json').read_text())['report']['effective_samples']['of'] == 8


def test_other_guidance(nets, tmp_path):
    """A weaker network in an interval, and classifier-free guidance: what they draw is the library's; the counts."""
    interval = GuidanceInterval(0.5, 3.0)
    net, guide = (networks.load_network(nets / f'{name}.safetensors') for name in ('cond', 'net'))
    model = load_noise_level(nets / 'levels.safetensors')
    for name, args, guidance in (
            ('auto', [f'--guiding_network={nets}/net.safetensors', '--guiding_weight=1.5'],
             Autoguidance(guide, 1.5, interval)), ('free', ['--w=0.5'], ClassifierFree(0.5, interval=interval))):
        given = [text for text in arguments(nets, tmp_path / name) if not text.startswith('--network')]
        result = call(*given, f'--network={nets}/cond.safetensors', '--chains=2', '--batch=2', '--num_samples=4',
                      '--guidance_interval=0.5,3', *args)
        assert result.exit_code == 0, result.output
        expected = sample(dmcmc_sampler, net, range(4), batch=2, progress=False, chains=2, eta=2.0, n_skip=1,
                          noise_level=NoiseLevel(model, model.sigmas), tweedie=0.1, guidance=guidance,
                          start=Start(20.0, 0.1, n_init=1, n_burn=1),
                          integrator=lambda *a, **k: kar1(*a, sigma_min=0.1, num_steps=2, **k))
        assert np.abs(images_in(tmp_path / name).astype(int) - to_uint8(expected.images)).max() <= 1
        options = json.loads((tmp_path / name / 'options.json').read_text())
        assert options['guidance_interval'] == '0.5,3'
        split, nfe = options['report']['nfe_split'], options['report']['nfe']['mean']
        assert split['langevin'] + split['integrator'] + split['tweedie'] == nfe
        if name == 'auto':  # some levels of each step lie in the interval, the last one does not
            assert options['report']['guiding_calls']['mean'] >= 1 and split['langevin'] == 1
        else:
            assert options['w'] == 0.5 and split['langevin'] == 2 and split['tweedie'] == 1


@pytest.mark.parametrize('args, message', [
    (['--guidance_interval=[1,2]', '--w=1'], '--guidance_interval: steps are those of a straight path'),
    (['--w=1'], '--w: guidance needs a network with classes'),
    (['--chains=4', '--num_samples=3'], '--chains, --batch, --num_samples: 4 chains give samples from 0 on, and at'),
    (['--chains=4', '--seed=4'], 'give samples from 0 on'),
    (['--chains=5', '--batch=2', '--num_samples=10'], '5 chains cannot be run in groups of 2'),
    (['--preset=celebahq-kar2-48'], '--preset: celebahq-kar2-48 is for 256x256 images, --network for 32x32; leave'),
    (['--noise_classifier={}/large.safetensors'], 'is for 256x256x3 images, --network for 32x32x3'),
    (['--noise_classifier={}/high.safetensors'], 'to 80, those of --network 0 to 50; train one for them'),
    (['--noise_classifier={}/200.pt'], 'says neither its resolution nor its levels'),
    (['--noise_classifier={}/200.pt', '--noise_classifier_is=cifar10-32'], 'to 100, those of --network 0 to 50'),
    (['--noise_classifier={}/net.safetensors'], 'holds a EDMPrecond, not a noise-level model'),
    (['--integrator=rk45'], '--steps: rk45 chooses its steps itself'),
    (['--eta=1e9'], '--eta: step 1 of 1 after output 0 of chains 0 to 3 diverged with eta 1e+09; use a smaller one'),
    (['--dg_weight_1st_order=1', '--boosting=1'], '--boosting: belongs to a batch'),
])
def test_bad_input(nets, tmp_path, args, message):
    args = [text.format(nets) for text in args]
    result = call(*arguments(nets, tmp_path / 'out'), *(['--chains=4', '--num_samples=8'] + args))
    errors = [line for line in result.output.splitlines() if 'Error' in line]
    assert result.exit_code == 1 and len(errors) == 1 and message in errors[0], result.output
    assert not list(tmp_path.glob('out/*.npz'))
