"""train_reflected.py as a user calls it, on tiny networks, with published words and options."""

import json

import PIL.Image
import pytest
import torch
from script_runs import invoke

import train
import train_reflected
from commands.reflected_words import PRESETS, training_config
from networks import construct, load_network, save_network
from networks.reflected import load_reflected, score_size
from networks.reflected_runs import network_arguments
from torch_utils.stats import JsonLines

TINY = ['data.image_size=8', 'model.nf=8', 'model.ch_mult=[1,1]', 'model.num_res_blocks=1', 'model.attn_resolutions=[]',
        'training.batch_size=10', 'training.n_iters=4', 'training.log_freq=2', 'training.snapshot_freq=4',
        '--device=cpu', '--precision=fp32']


def call(*args):
    return invoke(train_reflected.main, *args)


def config_of(output):
    return json.loads(output[output.index('{'):output.rindex('}') + 1])


def test_train_and_resume(tmp_path, data):
    arguments = [f'--outdir={tmp_path / "run"}', data, *TINY]
    first = call(*arguments, '--max_minutes=0.00001')
    assert first.exit_code == 0 and 'the same command resumes' in first.output
    second = call(*arguments)
    assert second.exit_code == 0 and 'resuming' in second.output and 'finished' in second.output
    files = sorted(path.name for path in (tmp_path / 'run').iterdir())
    assert files == ['grid-000000.png', 'network-000000.safetensors', 'options.json', 'stats.jsonl',
                     'training-state.pt']
    lines = JsonLines(tmp_path / 'run' / 'stats.jsonl').read()
    assert [line['nimg'] for line in lines] == [20, 40] and lines[1]['lr'] > lines[0]['lr'] > 0
    with PIL.Image.open(tmp_path / 'run' / 'grid-000000.png') as grid:
        assert grid.size == (62, 62)
    net = load_reflected(tmp_path / 'run' / 'network-000000.safetensors')
    assert (net.sigma_min, net.sigma_max, net.metadata['nimg']) == (0.01, 5.0, 40)
    assert net(torch.rand(2, 3, 8, 8), torch.tensor(1.0)).isfinite().all()
    other = call(*arguments, 'optim.lr=1e-4')
    assert other.exit_code == 1 and '--outdir: ' in other.output and 'other options (optim was' in other.output


def test_class_conditional(tmp_path, data):
    words = [word for word in TINY if not word.startswith('model.')]
    arguments = [f'--outdir={tmp_path / "run"}', data, '--preset=imagenet64-cfg', *words, 'model.model_channels=8',
                 'model.num_blocks=1', 'model.channel_mult=[1]', 'data.num_classes=5']
    assert call(*arguments).exit_code == 0
    net = load_reflected(tmp_path / 'run' / 'network-000000.safetensors')
    assert net.label_dim == 5 and type(net.model).__name__ == 'DhariwalUNet'
    few = call(*arguments, '--overwrite', 'data.num_classes=3')
    assert few.exit_code == 1 and '--data: the images have 4 classes, data.num_classes is 3' in few.output


@pytest.mark.parametrize('preset, expected', {
    'cifar10': ('SongUNet', 0.01, 1_300_001 * 128, 2e-4, True),
    'cifar10-likelihood': ('VDM', 1e-4, 10_000_001 * 128, 2e-4, False),
    'imagenet32-likelihood': ('VDM', 1e-4, 2_000_001 * 512, 2e-4, False),
    'imagenet64-cfg': ('DhariwalUNet', 0.01, 400_001 * 2048, 1e-4, False)}.items())
def test_presets_are_the_published_commands(preset, expected):
    config, _ = training_config(preset, [])
    kwargs, training = network_arguments(config), config['training']
    assert (kwargs['model_type'], kwargs['sigma_min'], training['n_iters'] * training['batch_size'],
            config['optim']['lr'], config['data']['random_flip']) == expected
    assert config['optim']['warmup'] * config['optim']['grad_clip'] == 5000


def test_the_demo_is_the_bundled_network_at_its_beginning():
    """(D - x) / sigma is the same for both, in either unit, up to `score_size`; float32 cancels at small noise."""
    config, _ = training_config('cifar10-demo', [])
    net, bundled = train_reflected.initial_network(config, train_reflected.settle_transfer(config)), load_network()
    net.eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sigma in torch.tensor([0.01, 0.1, 1.0], dtype=torch.float64):
        expected = x + score_size(sigma) * ((bundled(2 * x - 1, 2 * sigma).double() + 1) / 2 - x)
        torch.testing.assert_close(net(x, sigma), expected, rtol=0, atol=3e-6)
    assert 2 * sum(p.numel() for p in net.parameters()) < 12e6  # in float16


def test_transfer(tmp_path, data):
    """A class-conditional EDM network, trained with augmentation labels, as the start."""
    torch.manual_seed(0)
    edm = construct('EDMPrecond', dict(img_resolution=8, img_channels=3, label_dim=4, augment_dim=9,
                                       model_type='SongUNet', model_channels=8, channel_mult=[1], num_blocks=1,
                                       attn_resolutions=[]))
    save_network(tmp_path / 'edm.safetensors', edm)
    arguments = [f'--outdir={tmp_path / "run"}', data, 'model=edm', f'model.transfer={tmp_path / "edm.safetensors"}',
                 *[word for word in TINY if not word.startswith('model.')]]
    other = call(*arguments)
    assert other.exit_code == 1 and 'model.transfer: channels, resolution and classes of the network are 3, 8 and 4, ' \
        'those of the images [3, 8, 0]' in other.output
    arguments += ['data=imagenet64c', 'data.num_classes=4', 'optim.warmup=1']
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    net = load_reflected(tmp_path / 'run' / 'network-000000.safetensors')
    assert net.label_dim == 4 and net.sigma_data == 0.5 and 'map_augment' not in str(net.state_dict().keys())
    moved = net.model.state_dict()['map_layer0.weight'] - edm.model.state_dict()['map_layer0.weight']
    assert 0 < moved.abs().max() < 0.01  # four short steps from its start
    (tmp_path / 'edm.safetensors').rename(tmp_path / 'moved.safetensors')
    again = call(*arguments, f'model.transfer={tmp_path / "moved.safetensors"}')
    assert again.exit_code == 0 and 'nothing to do' in again.output, again.output
    save_network(tmp_path / 'edm.safetensors', edm, dict(changed=True))
    other = call(*arguments)
    assert other.exit_code == 1 and '--outdir: ' in other.output and 'transfer_sha256 was' in other.output


def test_transfer_of_other_networks_is_refused(tmp_path, data):
    edm = construct('VPPrecond', dict(img_resolution=8, img_channels=3, model_channels=8, channel_mult=[1],
                                      num_blocks=1, attn_resolutions=[]))
    save_network(tmp_path / 'vp.safetensors', edm)
    result = call(f'--outdir={tmp_path / "run"}', data, 'model=edm', f'model.transfer={tmp_path / "vp.safetensors"}',
                  'data.image_size=8')
    assert result.exit_code == 1 and 'is a VPPrecond; only EDM' in result.output and not (tmp_path / 'run').exists()


def test_published_words(tmp_path, data):
    """The published command as it is, including its number of processes."""
    words = ['data=cifar10', 'model=ddpmpp', 'ngpus=4', 'training.n_iters=7', 'sde.sigma_min=0.0001', 'optim.lr=1e-4',
             'sampling.method=ode', 'data.image_size=8']
    result = call(data, *words, '--dry_run', '--device=cpu')
    assert result.exit_code == 0, result.output
    assert 'torchrun --standalone --nproc_per_node=4 train_reflected.py' in result.output
    assert 'sampling.method: has no effect here' in result.output
    config = config_of(result.output)
    assert config['training']['n_iters'] == 7 and config['sde'] == dict(sigma_min=1e-4, sigma_max=5.0)
    assert config['optim']['lr'] == 1e-4 and config['model']['nf'] == 128


def test_words_of_another_network_replace_the_presets_own():
    config, _ = training_config('cifar10-demo', ['model=vdm', 'model.channels=16'])
    assert config['model']['name'] == 'vdm' and config['model']['channels'] == 16
    assert config['training']['batch_size'] == 64


@pytest.mark.parametrize('word, message', [
    ('optim.lrr=1', 'optim.lrr is not a key; the nearest is optim.lr'),
    ('model.channels=32', 'model.channels is not a key; the nearest is model.'),
    ('zzzzz=1', 'zzzzz is not a key; known are'),
    ('model=unet', 'model=unet is not one of ddpmpp, vdm, adm, edm'),
    ('optim.lr=fast', 'optim.lr=fast should be of the kind of 0.0002'),
    ('training.n_iters=1.5', 'should be of the kind of'),
    ('training.n_iters=0', 'is not at least 1'),
    ('training.drop_label=2.0', 'is not between 0 and 1'),
    ('model.ema_rate=1.0', 'is not between 0 and 1'),
    ('sde.sigma_min=6', 'sigma_min < sigma_max'),
    ('model.fir=True', 'only False is known'),
])
def test_bad_words(tmp_path, data, word, message):
    result = call(f'--outdir={tmp_path / "run"}', data, *TINY, word)
    assert result.exit_code == 1 and 'KEY=VALUE: ' in result.output.splitlines()[-1]
    assert message in result.output and not (tmp_path / 'run').exists()


def test_images_must_fit(tmp_path, data):
    result = call(f'--outdir={tmp_path / "run"}', data, '--device=cpu')
    assert result.exit_code == 1 and 'has images of 8x8 pixels, expected 32x32' in result.output
    assert set(PRESETS) == {'cifar10', 'cifar10-likelihood', 'imagenet32-likelihood', 'imagenet64-cfg', 'cifar10-demo'}


def test_the_published_readme_means_this_script(tmp_path):
    """It says train.py, which trains discriminators here."""
    words = ['ngpus=4', 'data=cifar10', 'model=vdm', 'training.n_iters=10000001', 'sde.sigma_min=0.0001']
    result = invoke(train.main, *words)
    assert result.exit_code == 1 and len(result.output.splitlines()) == 1
    assert f'use python train_reflected.py {" ".join(words)}' in result.output
