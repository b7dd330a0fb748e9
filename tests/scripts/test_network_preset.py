"""--network_preset of the scripts that take a score network: what it loads, what it records, one-line errors."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from score_sde_goldens import config_path, make_checkpoint
from tiny_networks import write_discriminators

import generate
import generate_diffrs
import generate_dmcmc
import networks
import train
from commands import diffrs
from networks.formats import song_config
from sampling import edm_levels, edm_sampler, sample
from torch_utils.images import to_uint8

NAME = 'score_sde/ve_ncsnpp'


@pytest.fixture(scope='module')
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp('presets') / 'checkpoint_8.pth'
    torch.save(make_checkpoint(NAME), path)
    return path


def call(main, *args):
    result = CliRunner().invoke(main, ['--device=cpu', '--precision=fp32', *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_samples_of_a_published_checkpoint(network, tmp_path):
    """By its YAML, whose contents are recorded; with another one the folder is refused."""
    config = tmp_path / 'config.yaml'
    config.write_text(config_path(NAME).read_text())
    command = [f'--network={network}', f'--network_preset={config}', f'--outdir={tmp_path / "out"}', '--seeds=0-1',
               '--steps=3', '--dg_weight_1st_order=0']
    result = call(generate.main, *command)
    assert result.exit_code == 0, result.output
    net = networks.load_network(network, preset=config)
    expected = sample(edm_sampler, net, range(2), levels=edm_levels(net, 3), progress=False)
    found = np.load(tmp_path / 'out' / 'samples_00000000.npz')['samples']
    assert np.array_equal(found, to_uint8(expected.images))
    options = json.loads((tmp_path / 'out' / 'options.json').read_text())
    assert options['network_preset'] == str(config) and len(options['network_preset_sha256']) == 16
    again = call(generate.main, *command)
    assert again.exit_code == 0 and ' 0 of them new' in again.output
    config.write_text('# changed\n' + config.read_text())
    other = call(generate.main, *command)
    assert other.exit_code == 1 and '--outdir: ' in other.output and 'network_preset_sha256 was' in other.output


@pytest.mark.parametrize('preset', ['ve/tiny', 'tiny', None])
def test_presets_by_name(network, tmp_path, monkeypatch, preset):
    """The whole name, its last part, or that of the checkpoint's folder; a name is recorded as it is given."""
    monkeypatch.setitem(song_config.PRESETS, 've/tiny', song_config.read_yaml(config_path(NAME)))
    path = tmp_path / 've' / ('tiny' if preset is None else 'other') / 'checkpoint_8.pth'
    path.parent.mkdir(parents=True)
    path.symlink_to(network)
    result = call(generate.main, f'--network={path}', f'--outdir={tmp_path / "out"}', '--seeds=0', '--steps=2',
                  '--dg_weight_1st_order=0', *([f'--network_preset={preset}'] if preset else []))
    assert result.exit_code == 0, result.output
    net = networks.load_network(network, preset=config_path(NAME))
    expected = sample(edm_sampler, net, range(1), levels=edm_levels(net, 2), progress=False)
    assert np.array_equal(np.load(tmp_path / 'out' / 'samples_00000000.npz')['samples'], to_uint8(expected.images))
    options = json.loads((tmp_path / 'out' / 'options.json').read_text())
    assert options.get('network_preset') == preset and options.get('network_preset_sha256') is None


@pytest.fixture
def yamls(tmp_path):
    """A YAML, its copy in another place, and one with other contents."""
    paths = [tmp_path / name for name in ('config.yaml', 'moved.yaml', 'other.yaml')]
    for path in paths:
        path.write_text(('# changed\n' if path.stem == 'other' else '') + config_path(NAME).read_text())
    write_discriminators(tmp_path, size=32)
    return paths


def test_a_moved_yaml_keeps_the_warmup(network, yamls, tmp_path, monkeypatch):
    monkeypatch.setattr(generate_diffrs, 'draw', lambda *args, **kwargs: None)
    monkeypatch.setattr(diffrs, 'warmup_seeds', lambda rounds: range(2))
    first, moved, other = (call(
        generate_diffrs.main, f'--network={network}', f'--network_preset={path}', f'--outdir={tmp_path / "out"}',
        '--seeds=0', '--steps=2', f'--pretrained_classifier_ckpt={tmp_path / "classifier.pt"}',
        f'--discriminator_ckpt={tmp_path / "disc_uncond.pt"}') for path in yamls)
    assert first.exit_code == 0 and moved.exit_code == 0, moved.output
    assert other.exit_code == 1 and '--thresholds: the thresholds were made with network_preset_sha256' in other.output


def test_a_moved_yaml_is_the_same_training(network, yamls, tmp_path):
    np.savez(tmp_path / 'images.npz', samples=np.zeros([4, 32, 32, 3], dtype=np.uint8))
    first, moved, other = (call(
        train.main, f'--network={network}', f'--network_preset={path}', f'--savedir={tmp_path / "out"}', '--dry_run',
        f'--gendir={tmp_path / "images.npz"}', f'--datadir={tmp_path / "images.npz"}',
        f'--pretrained_classifier_ckpt={tmp_path / "classifier.pt"}') for path in yamls)
    configs = [json.loads(result.output[result.output.index('{'):]) for result in (first, moved, other)]
    assert configs[0] == configs[1] and len(configs[0]['network_preset_sha256']) == 16
    assert {name for name in configs[0] if configs[0][name] != configs[2][name]} == {'network_preset_sha256'}


@pytest.mark.parametrize('main, args', [
    (generate.main, ['--outdir={out}']), (generate_diffrs.main, ['--outdir={out}']),
    (generate_dmcmc.main, ['--outdir={out}']),
    (train.main, ['--savedir={out}', '--pretrained_classifier_ckpt={files}/classifier.pt', '--img_resolution=16'])])
@pytest.mark.parametrize('preset, message', [
    (None, 'name its configuration by a preset (ve/cifar10_ncsnpp, '),
    ('ve/cifar10_ncsnpp_cont', "'ve/cifar10_ncsnpp_cont' is not a preset; use one of ve/cifar10_ncsnpp, "),
    ('ve/church_ncsnpp_continuous', 'sigma_max is 50 in the file, 380 in the configuration')])
def test_bad_presets(network, files, tmp_path, main, args, preset, message):
    args = [text.format(out=tmp_path / 'out', files=files) for text in args]
    result = call(main, f'--network={network}', *([f'--network_preset={preset}'] if preset else []), *args)
    errors = [line for line in result.output.splitlines() if 'Error' in line]
    assert result.exit_code == 1 and len(errors) == 1 and message in errors[0], result.output
    assert errors[0].startswith('Error: --network, --network_preset: ') and not list(tmp_path.iterdir())


def test_networks_that_describe_themselves_take_none(files, tmp_path):
    result = call(generate.main, f'--network={files}/uncond.safetensors', '--network_preset=vp/cifar10_ddpmpp',
                  f'--outdir={tmp_path}')
    assert result.exit_code == 1 and '--network, --network_preset: ' in result.output
    assert 'describes itself; it takes no preset' in result.output
