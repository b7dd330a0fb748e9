"""Networks of reflected diffusion: published run folders against the published implementation, and own files."""

import math

import numpy as np
import pytest
import torch
from goldens import load
from published_run import write_run

from diffusion import cube
from networks.io import load_network, save_network
from networks.precond import construct
from networks.reflected import construct_reflected, load_reflected, reflected_from, score_size


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    return {which: write_run(folder / which, which) for which in ('ncsnpp', 'vdm', 'vdm_attn', 'adm')}


def score_of(net, golden, labels=None, rows=None):
    x = torch.from_numpy(golden['x'][:rows]).to(torch.float64)
    std = torch.from_numpy(golden['std'][:rows]).to(torch.float64)
    denoised = net(x, std, labels)
    assert denoised.dtype == torch.float64
    return ((denoised - x) / std.reshape(-1, 1, 1, 1)**2).numpy()


def one_hot(net, golden, rows=None):
    return torch.eye(net.label_dim)[torch.from_numpy(golden['class_labels'][:rows])] if net.label_dim else None


def check(found, expected, rtol=2e-4, atol=1e-4):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol * np.abs(expected).max())


@pytest.mark.parametrize('which', ['ncsnpp', 'vdm', 'vdm_attn', 'adm'])
def test_published_networks(runs, which):
    """Averaged weights are the default, those in training come on request."""
    golden, net = load(f'reflected/{which}.npz'), load_reflected(runs[which])
    name = 'output_ema_weights_fp32' if which == 'adm' else 'output_ema_weights'
    check(score_of(net, golden, one_hot(net, golden)), golden[name])
    assert net.metadata['step'] == 50_000 and net.metadata['source'] == f'{which}/checkpoint_1.pth'
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    if 'output_raw_weights' in golden:
        raw = load_reflected(runs[which], raw=True)
        check(score_of(raw, golden, one_hot(raw, golden, 1), rows=1), golden['output_raw_weights'])


def test_labels(runs):
    """No label is the zero vector, as in training; the published guidance takes class 0 for it."""
    golden, net = load('reflected/adm.npz'), load_reflected(runs['adm'])
    check(score_of(net, golden), golden['output_no_label_fp32'])
    zeros = torch.eye(10)[torch.zeros(4, dtype=torch.int64)]
    check(score_of(net, golden, zeros), golden['class0_fp32'])


def test_the_newest_checkpoint_counts(tmp_path):
    write_run(tmp_path, 'vdm_attn', number=9)
    write_run(tmp_path, 'vdm_attn', number=10)
    assert load_reflected(tmp_path).metadata['source'].endswith('checkpoint_10.pth')


@pytest.mark.parametrize('which', ['ncsnpp', 'vdm_attn', 'adm'])
def test_low_precision_stays_close(runs, which):
    golden, net = load(f'reflected/{which}.npz'), load_reflected(runs[which], dtype=torch.bfloat16)
    expected = golden['output_ema_weights_fp32' if which == 'adm' else 'output_ema_weights']
    found = score_of(net, golden, one_hot(net, golden))
    assert np.sqrt(np.mean((found - expected)**2) / np.mean(expected**2)) < 0.03


def test_own_files(tmp_path, runs):
    net = load_reflected(runs['vdm_attn'])
    path = tmp_path / 'net.safetensors'
    save_network(path, net, dict(preset='none'))
    again, golden = load_reflected(path), load('reflected/vdm_attn.npz')
    assert again.metadata == dict(preset='none') and again.sigma_max == 5
    assert np.array_equal(score_of(again, golden), score_of(net, golden))
    with pytest.raises(ValueError, match='is a ReflectedPrecond, not a score network'):
        load_network(path)


def test_descriptions_of_enormous_networks(tmp_path):
    """They are refused before they take memory: files, run folders, and EDM networks to begin with."""
    tiny = dict(img_resolution=8, img_channels=1, model_type='SongUNet', model_channels=8, channel_mult=[1],
                num_blocks=1, attn_resolutions=[])
    for name, net in dict(own=construct_reflected(tiny), edm=construct('EDMPrecond', tiny)).items():
        net.init_kwargs |= dict(model_channels=10**6)
        save_network(tmp_path / name, net)
    folder = write_run(tmp_path / 'run', 'vdm_attn', channels__16='channels: 1000000')
    for read, path in ((load_reflected, tmp_path / 'own'), (load_reflected, folder),
                       (lambda path: reflected_from(path, 0.01, 5), tmp_path / 'edm')):
        with pytest.raises(ValueError, match='does not fit its own description.*larger than the one it holds'):
            read(path)
    with pytest.raises(ValueError, match=r'^noise levels from 5 to 0.01'):
        reflected_from(tmp_path / 'edm', 5, 0.01)


@torch.no_grad()
def test_a_reflected_network_begins_as_edm_does(tmp_path):
    """Sigma times the score is (D - x) / sigma up to sigma = 1 / pi, and vanishes with the kernel's beyond."""
    edm = construct('EDMPrecond', dict(img_resolution=8, img_channels=1, model_type='SongUNet', model_channels=8,
                                       channel_mult=[1], num_blocks=1, attn_resolutions=[])).eval()
    for name, weight in edm.named_parameters():
        if 'aux_conv' in name:
            torch.nn.init.normal_(weight, std=0.1)  # it begins at nearly 0
    save_network(tmp_path / 'edm.safetensors', edm)
    net = reflected_from(tmp_path / 'edm.safetensors', 0.01, 2).eval()
    x = torch.rand([4, 1, 8, 8], dtype=torch.float64)
    sigma = torch.tensor([0.01, 0.1, 0.3, 1.0], dtype=torch.float64)
    column = sigma.reshape(-1, 1, 1, 1)
    found = (net(x, sigma) - x) / column
    expected = (edm(2 * x - 1, 2 * sigma).double() - (2 * x - 1)) / (2 * column)
    expected[3] *= math.pi * math.exp((1 - math.pi**2) / 2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_score_size():
    """Within a factor of 2 of the kernel's sigma times score, root mean square over x and even clean values."""
    clean = (torch.arange(400, dtype=torch.float64) + 0.5).repeat_interleave(50) / 400
    noise = torch.randn(clean.shape, dtype=torch.float64)
    for level in (0.01, 0.1, 0.2, 0.3, 0.45, 0.7, 1.0, 1.5):
        sigma = torch.tensor(level, dtype=torch.float64)
        score = cube.kernel_score(cube.perturb(clean, sigma, noise), clean, sigma)
        assert 0.5 < (sigma * score).square().mean().sqrt() / score_size(sigma) < 1.02, level


def test_score_without_the_factor():
    """scale_by_sigma False: the network's output is the score itself."""
    kwargs = dict(img_resolution=8, img_channels=1, model_type='VDM', model_channels=8, num_blocks=1)
    torch.manual_seed(1)
    net = construct_reflected(kwargs | dict(scale_by_sigma=False)).eval()
    torch.nn.init.normal_(net.model.out[2].weight)
    x, sigma = torch.rand([2, 1, 8, 8], dtype=torch.float64), torch.tensor([0.5, 0.1], dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close((net(x, sigma) - x) / sigma.reshape(-1, 1, 1, 1)**2, net.raw(x, sigma).double())
    torch.testing.assert_close(net.decode(x), 2 * x - 1)


@pytest.mark.parametrize('change, message', [
    (dict(name__vdm='name: mlp'), "model 'mlp'; known are"),
    (dict(channels__16='channels: 32'), 'does not fit its own description'),
    (dict(num_blocks__1='num_blocks: 2'), 'does not fit its own description'),
    (dict(dropout__='dropped: '), "lacks 'dropout'"),
    (dict(sigma_max__5='sigma_max: 0.001'), 'sigma_min < sigma_max'),
    ({'sde:\n': 'noise:\n'}, 'lacks one of the sections'),
    ({'ngpus: 1': 'ngpus: [1'}, 'is not YAML'),
    ({'ngpus: 1': 'ngpus: !!python/object/apply:os.getcwd []'}, 'is not YAML'),
])
def test_bad_configurations(tmp_path, change, message):
    folder = write_run(tmp_path, 'vdm_attn', **change)
    with pytest.raises(ValueError, match=message) as error:
        load_reflected(folder)
    assert '\n' not in str(error.value)


def test_bad_folders(tmp_path, runs):
    with pytest.raises(ValueError, match='no .hydra/config.yaml'):
        load_reflected(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_reflected(tmp_path / 'nothing')
    folder = write_run(tmp_path, 'vdm_attn')
    path = folder / 'checkpoints' / 'checkpoint_1.pth'
    state = torch.load(path, weights_only=True)
    for broken, message in [(dict(model=state['model'], step=1), "lacks 'ema'"), ([1], 'is not a checkpoint'),
                            (state | dict(ema=dict(shadow_params=state['ema']['shadow_params'][:-1])), 'do not fit')]:
        torch.save(broken, path)
        with pytest.raises(ValueError, match=message):
            load_reflected(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match='no checkpoint_<n>.pth'):
        load_reflected(folder)


def test_a_checkpoint_with_more_or_fewer_modules(tmp_path):
    folder = write_run(tmp_path, 'ncsnpp')
    path = folder / 'checkpoints' / 'checkpoint_1.pth'
    state = torch.load(path, weights_only=True)
    names = list(state['model'])
    state['model']['all_modules.20.weight'] = torch.zeros(3)
    torch.save(state, path)
    with pytest.raises(ValueError, match='all_modules.20 is .*the configuration has nothing there'):
        load_reflected(folder, raw=True)
    del state['model']['all_modules.20.weight'], state['model']['all_modules.8.NIN_1.W'], state['model'][names[-1]]
    torch.save(state, path)
    with pytest.raises(ValueError, match='all_modules.8 is nothing .*the configuration has attention there'):
        load_reflected(folder, raw=True)
