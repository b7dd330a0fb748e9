"""Checkpoints of score_sde and Soft-Truncation: their scores, configurations, and files that do not fit.

Goldens of random small networks, by the reference implementations: rtol 1e-4, atol 1e-4 of the largest entry.
"""

import copy
import re

import numpy as np
import pytest
import torch
import yaml
from converting import convert
from goldens import load, recipe_
from score_sde_goldens import NAMES, config_path, golden, make_checkpoint

import networks
from networks import layers
from networks.ddpm_unet import DDPMUNet
from networks.formats.song_config import NCSNPP, PRESETS, describe, read_yaml
from networks.precond import construct


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('score_sde')


def close(actual, expected):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def rows(values):
    return values.double()[:, None, None, None]


def mean_of(net, t):
    """Mean factor of the VP and sub-VP processes at time t, float64."""
    return torch.exp(-0.25 * 19.9 * t.double()**2 - 0.05 * t.double())


@torch.no_grad()
@pytest.mark.parametrize('name', [name for name in NAMES if name not in (
    'score_sde/vp_cifar10_ddpmpp', 'score_sde/vp_ddpm_cifar10')])
def test_golden_scores(folder, name):
    """The score in the reference's own space from D(x; sigma).

    VE data lie in [0, 1] there, so lengths double. Near t = 0 the reference's float32 standard deviation is 0.6 % off,
    and it divides the network's output by that; so the output is compared.
    """
    net, d = golden(name, folder)
    x, std = d['x'].double(), rows(d['std'])
    if isinstance(net, (networks.VEPrecond, networks.VEDiscretePrecond)):
        x, sigma = 2 * x - 1, 2 * d['std'].double()
        if isinstance(net, networks.VEDiscretePrecond):
            assert torch.equal(1000 - 1 - torch.arange(1000).flip(0)[net._index(sigma)], d['labels'])
            sigma, std = net.round_sigma(sigma), rows(net.round_sigma(sigma)) / 2
        score = 2 * (net(x, sigma) - x) / rows(sigma)**2
    else:
        mean = mean_of(net, d['t'])
        sigma = 1 / mean - mean if isinstance(net, networks.SubVPPrecond) else (mean**-2 - 1).sqrt()
        x = x / rows(mean)
        score = (net(x, sigma) - x) / rows(sigma) / std
    close(score, d['score_ema_weights'])


@torch.no_grad()
@pytest.mark.parametrize('name', ['score_sde/vp_cifar10_ddpmpp', 'score_sde/vp_ddpm_cifar10'])
def test_golden_scores_of_discrete_vp(folder, name):
    """The reference passes t * 999 unrounded and takes the entry of the table below; ours has only its levels."""
    net, d = golden(name, folder)
    index = d['labels'].long()
    close(-net.model(d['x'], d['labels'], None) / d['sqrt_1m_alphas_cumprod'][index][:, None, None, None],
          d['score_ema_weights'])
    levels = d['sqrt_1m_alphas_cumprod'] / d['sqrt_alphas_cumprod']
    torch.testing.assert_close(net.u.flip(0).float(), levels, rtol=2e-4, atol=0)  # its table is float32
    sigma = net.round_sigma(levels[index].double() * 1.00001)
    D = net(d['x'], sigma)
    expected = d['x'] - rows(sigma) * net.model(d['x'] / (1 + rows(sigma)**2).sqrt().float(), index.float(), None)
    close(D, expected)


@torch.no_grad()
def test_reciprocal_time_input(folder):
    """The paper's time input below sigma 0.01 ([0, 1] units) and the released code's, which is log sigma everywhere."""
    net, d = golden('soft_truncation/celeba_rve', folder)
    paper = copy.copy(net)
    paper.time_input = 'reciprocal'
    torch.testing.assert_close(paper.coefficients(2 * d['transform_sigma'])[3], d['transform'], rtol=1e-5, atol=0)
    x, sigma = 2 * d['x'].double() - 1, 2 * d['std'].double()
    score = 2 * (paper(x, sigma) - x) / rows(sigma)**2
    close(score[:1], d['score_with_transform'])
    assert (score[:1] - d['score_ema_weights'][:1]).abs().max() > 0.01 * score[:1].abs().max()
    close(score[1:], d['score_ema_weights'][1:])


def test_unbounded_time_input(folder):
    net, d = golden('soft_truncation/celeba_vp_unbounded', folder)
    sigma = (mean_of(net, d['t'])**-2 - 1).sqrt()
    torch.testing.assert_close(net.coefficients(sigma)[3], d['labels'], rtol=1e-5, atol=1e-3)


def test_noise_levels_of_sub_vp(folder):
    net, d = golden('score_sde/subvp_cifar10_ddpmpp_continuous', folder)
    sde = {key: torch.as_tensor(value) for key, value in load('score_sde/sde.npz').items()}
    t = sde['t'].double()[1:]
    mean = mean_of(net, t)
    torch.testing.assert_close(mean.float(), sde['subvp_mean'][1:], rtol=1e-5, atol=0)
    _, _, c_in, time = net.coefficients(1 / mean - mean)
    torch.testing.assert_close(c_in.double(), mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(time.double(), 999 * t, rtol=1e-6, atol=0)
    assert net.sigma_max == pytest.approx(152.1637, abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize('name', NAMES)
def test_the_interface_is_that_of_all_networks(folder, name):
    """Independent rows, one level for all, bfloat16, and the float64 states of samplers."""
    net, d = golden(name, folder)
    x = d['x'].double() * 2
    sigma = net.round_sigma(torch.tensor([0.05, 0.5, 5.0, 50.0], dtype=torch.float64))
    D = net(x, sigma)
    assert D.dtype == torch.float32 and 0 < net.sigma_min < 0.05 and net.sigma_max > 50
    torch.testing.assert_close(net(x[2:3], sigma[2]), D[2:3], rtol=1e-4, atol=1e-4 * float(sigma[2]))
    half = networks.set_precision(copy.deepcopy(net), torch.bfloat16)(x, sigma)
    assert ((half - D).flatten(1).norm(dim=1) < 0.03 * (D - x).flatten(1).norm(dim=1)).all()


@pytest.mark.parametrize('name', ['score_sde/subvp_cifar10_ddpmpp_continuous', 'score_sde/ve_cifar10_ncsnpp',
                                  'score_sde/vp_ddpm_cifar10', 'soft_truncation/celeba_vp_unbounded'])
def test_one_graph(folder, name):
    """torch.compile sees the preconditioning without a break, and a small DDPM U-Net."""
    net, _ = golden(name, folder)
    sigma = torch.tensor([0.1, 3.0]).reshape(2, 1, 1, 1)
    compiled = torch.compile(net.coefficients, backend='eager', fullgraph=True)
    for ours, plain in zip(compiled(sigma), net.coefficients(sigma)):
        torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(plain))
    if 'ddpm_' in name:
        unet = DDPMUNet(16, 3, 3, model_channels=16, channel_mult=[1, 1], num_blocks=0, attn_resolutions=[]).eval()
        del unet.dec['8x8_in1']  # as the blocks behind it; the one before it has attention
        recipe_(unet).requires_grad_(False)
        arguments = torch.randn(1, 3, 16, 16), torch.tensor([5.0])
        torch.testing.assert_close(torch.compile(unet, backend='eager', fullgraph=True)(*arguments), unet(*arguments))


def test_averages_not_raw_weights(folder):
    net, _ = golden('score_sde/ve_skip', folder)
    data = make_checkpoint('score_sde/ve_skip')
    assert torch.equal(net.model.map_layer0.weight, data['ema']['shadow_params'][0])
    assert not torch.equal(net.model.map_layer0.weight, data['model']['module.all_modules.1.weight'])
    assert torch.equal(net.model.map_noise.freqs, data['model']['module.all_modules.0.W'])
    assert net.metadata == dict(source='score_sde-ve_skip.pth', step=1234, weights='ema')


@pytest.mark.parametrize('name', ['score_sde/ve_cifar10_ncsnpp', 'score_sde/vp_ddpm_cifar10',
                                  'soft_truncation/celeba_rve'])
def test_convert(folder, tmp_path, name):
    net, d = golden(name, folder)
    source, dest = folder / f'{name.replace("/", "-")}.pth', tmp_path / 'net.safetensors'
    code, output = convert(source, dest, f'--preset={config_path(name)}')
    assert code == 0 and type(net.model).__name__ in output, output
    again = networks.load_network(dest)
    assert type(again) is type(net) and again.init_kwargs == net.init_kwargs and again.metadata == net.metadata
    sigma = net.round_sigma(torch.tensor([0.1, 0.5, 1.0, 4.0]))
    assert torch.equal(again(d['x'], sigma), net(d['x'], sigma))
    assert dest.stat().st_size < 0.6 * source.stat().st_size  # neither raw weights nor optimizer


# Configurations.

def test_presets_are_published_sizes(monkeypatch):
    """Parameters of the published networks, in millions (EDM, table 7, and Song et al. 2021)."""
    monkeypatch.setattr(layers, 'init_tensor', lambda shape, *args, **kwargs: torch.empty(shape, device='meta'))
    millions = {'vp/cifar10_ddpmpp_continuous': 61.8,
                've/cifar10_ncsnpp_continuous': 62.8, 've/cifar10_ncsnpp_deep_continuous': 107.6}
    for name in PRESETS:
        constructor, kwargs = describe(PRESETS[name])
        assert constructor in networks.precond.PRECONDITIONERS
        if name in millions:
            net = construct(constructor, kwargs)
            assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions[name], abs=0.06)


def test_a_preset_is_its_folder_s_name(tmp_path):
    path = tmp_path / 'vp' / 'cifar10_ddpmpp_continuous' / 'checkpoint_8.pth'
    path.parent.mkdir(parents=True)
    torch.save(make_checkpoint('score_sde/vp_ddpmpp'), path)
    with pytest.raises(ValueError, match='all_modules.4 .*see its num_res_blocks'):  # found, but the golden is smaller
        networks.read_network_file(path)


def refused(path, message, preset=None):
    with pytest.raises((ValueError, OSError), match=message) as caught:
        networks.load_network(path, preset=preset)
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 1600


@pytest.mark.parametrize('preset, message', [
    (None, 'does not say which SDE it is for; name its configuration by a preset .ve/cifar10_ncsnpp, '),
    ('cifar10_ncsnpp_cont', "'cifar10_ncsnpp_cont' is not a preset; use one of ve/cifar10_ncsnpp, "),
    ('cifar10_ddpm_continuous', 'use one of vp/cifar10_ddpm_continuous, subvp/cifar10_ddpm_continuous, or'),
    ('vp/cifar10_ddpm', 'all_modules'), ('subvp/cifar10_ddpmpp_continuous', 'all_modules'),
    ('ve/church_ncsnpp_continuous', 'sigma_max is 50 in the file, 380 in the configuration'),
    ('absent.yaml', 'absent.yaml')])
def test_presets_that_do_not_fit(folder, preset, message):
    golden('score_sde/ve_ncsnpp', folder)
    refused(folder / 'score_sde-ve_ncsnpp.pth', message, preset)


@pytest.mark.parametrize('key, value, message', [
    ('nf', None, 'the configuration lacks nf'), ('nf', 'many', "nf is 'many'; expected a value such as 128"),
    ('nf', 32, 'shape .* see its nf'), ('ch_mult', [1, 1], 'see its .*ch_mult'),
    ('num_res_blocks', 2, r'all_modules.\d+ is .*see its .*num_res_blocks'),
    ('attn_resolutions', [32], r'all_modules.\d+ is .*see its attn_resolutions'),
    ('embedding_type', 'positional', "embedding_type is 'positional'.*only 'fourier'"),
    ('progressive_input', 'input_skip', 'all_modules.6 is strided convolution .*has resampling convolution there; see '
                                        'its progressive_input'),
    ('progressive', 'output_skip', 'see its .*progressive'), ('progressive', 'pyramid', "progressive is 'pyramid'"),
    ('sde', 'rve-sde', "sde is 'rve-sde'; known are vesde"), ('sigma_max', 90, 'sigma_max is 50 in the file, 90 in'),
    ('resblock_type', 'ddpm', "resblock_type is 'ddpm'; only 'biggan' is supported"),
    ('centered', True, 'centered is True; with sde vesde'), ('continuous', False, "embedding_type is 'fourier'"),
    ('image_size', 64, 'see its attn_resolutions'), ('name', 'unet', "name is 'unet'")])
def test_a_mismatch_names_the_key(folder, tmp_path, key, value, message):
    golden('score_sde/ve_ncsnpp', folder)
    sections = yaml.safe_load(config_path('score_sde/ve_ncsnpp').read_text())
    section = next(part for part in ('model', 'data', 'training') if key in sections[part])
    sections[section][key] = value
    if value is None:
        del sections[section][key]
    (tmp_path / 'c.yaml').write_text(yaml.safe_dump(sections))
    refused(folder / 'score_sde-ve_ncsnpp.pth', message, tmp_path / 'c.yaml')


def test_files_that_do_not_fit(tmp_path):
    preset, path = config_path('score_sde/ve_skip'), tmp_path / 'x.pth'

    def write(change):
        data = make_checkpoint('score_sde/ve_skip')
        change(data)
        torch.save(data, path)

    for change, message in [
            (lambda d: d.pop('ema'), 'not a checkpoint of score_sde'),
            (lambda d: d.update(ema=[1]), 'not a checkpoint of score_sde'),
            (lambda d: d['model'].update(a=1), 'not a checkpoint of score_sde'),
            (lambda d: d['ema']['shadow_params'].pop(), 'ema has 159 tensors for the 160 parameters'),
            (lambda d: d['ema']['shadow_params'].reverse(), 'ema holds'),
            (lambda d: d['model'].pop('module.sigmas'), 'no table of noise levels'),
            (lambda d: (d['model'].update({'module.all_modules.22.weight': torch.zeros(1)}),
                        d['ema']['shadow_params'].append(torch.zeros(1))), 'all_modules.22 is nothing .weight., the '
             'configuration has nothing there')]:
        write(change)
        refused(path, message, preset)
    path.write_bytes(path.read_bytes()[:5000])
    refused(path, 'zip archive|is not a PyTorch file', preset)
    (tmp_path / 'list.yaml').write_text('[1, 2]')
    write(lambda d: None)
    refused(path, 'list.yaml is not a configuration with the sections', tmp_path / 'list.yaml')
    torch.save(make_checkpoint('score_sde/ve_skip'), path, _use_new_zipfile_serialization=False)  # torch before 1.6
    assert networks.load_network(path, preset=preset).sigma_max == 100


def test_files_that_describe_themselves_take_no_preset(folder, tmp_path):
    networks.save_network(tmp_path / 'n.safetensors', golden('score_sde/ve_skip', folder)[0])
    refused(tmp_path / 'n.safetensors', 'describes itself; it takes no preset', 've/cifar10_ncsnpp')


def test_yaml_and_preset_are_the_same_configuration():
    ours = read_yaml(config_path('score_sde/ve_ncsnpp'))
    differ = {key for key in NCSNPP if list(np.atleast_1d(ours[key])) != list(np.atleast_1d(NCSNPP[key]))}
    assert differ == {'nf', 'ch_mult', 'num_res_blocks'}  # the golden is smaller
    assert re.fullmatch(r'[\w/]+', ''.join(PRESETS))
