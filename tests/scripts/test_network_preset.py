"""--network_preset of the scripts that take a score network: what it loads, what it records, one-line errors."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from score_sde_goldens import config_path, make_checkpoint

import generate
import generate_diffrs
import generate_dmcmc
import networks
import train
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
