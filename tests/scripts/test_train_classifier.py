"""Training of classifiers: augmentation, losses, learning, resuming, files and bad input."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F

import train_classifier as script
from diffusion.vpsde import VPSDE
from guided_diffusion import create_classifier
from metrics.feature_net import load_feature_net
from networks.classifiers import load_classifier
from torch_utils.checkpoint import read_network
from training import classifier as lib
from training.augment import mirror_and_shift
from training.data import BatchLoader
from training.loop import train
from training.randomness import BatchRandom
from training.run import TrainRun


def random_for(count, step=0):
    return BatchRandom(0, step, count, torch.device('cpu'))


def test_mirror_and_shift_move_and_mirrors_each_image_by_itself():
    images = torch.rand(64, 3, 8, 8)
    moved = mirror_and_shift(images, random_for(64), xflip=True, shift=2)
    assert moved.shape == images.shape
    padded = F.pad(images, [2] * 4, mode='reflect')
    found = set()
    for index in range(64):
        candidates = {(dy, dx, flip): (part.flip(2) if flip else part) for dy in range(5) for dx in range(5)
                      for flip in (0, 1) for part in [padded[index, :, dy:dy + 8, dx:dx + 8]]}
        # A mirrored image moved left is the mirror of one moved right: look for any of the fifty.
        match = [key for key, part in candidates.items() if torch.equal(part, moved[index])]
        assert len(match) == 1
        found.update(match)
    assert len(found) > 25
    assert torch.equal(mirror_and_shift(images, random_for(64), xflip=False, shift=0), images)
    whole, half = random_for(64), random_for(64).rows(slice(32, 64))
    assert torch.equal(mirror_and_shift(images, whole, True, 2)[32:], mirror_and_shift(images[32:], half, True, 2))


@pytest.mark.parametrize('time_map', [None, VPSDE().t_cos])
def test_noisy_loss_is_cross_entropy_of_the_vp_state(time_map):
    seen = {}

    def net(x, t):
        seen.update(x=x, t=t)
        return x.mean(dim=[2, 3])

    images, labels = torch.rand(16, 3, 8, 8) * 2 - 1, torch.arange(16) % 3
    loss, stats = lib.NoisyClassifierLoss(net, VPSDE(), time_map, xflip=False)(images, labels, random_for(16))
    rng = random_for(16)
    t = 1e-5 + (1 - 1e-5) * rng.rand([16])
    mean, std = VPSDE().marginal(t)
    x = mean[:, None, None, None] * images + std[:, None, None, None] * rng.randn([16, 3, 8, 8])
    torch.testing.assert_close(seen['x'], x)
    torch.testing.assert_close(seen['t'], t if time_map is None else time_map(t))
    torch.testing.assert_close(loss, F.cross_entropy(x.mean(dim=[2, 3]), labels, reduction='none'))
    assert torch.equal(stats['accuracy'], (x.mean(dim=[2, 3]).argmax(1) == labels).float())


def test_accuracy_falls_with_noise(tmp_path):
    """Red, green and blue images: recognised at small noise, guessed at large noise."""
    labels = torch.arange(600) % 3
    images = torch.full([600, 3, 4, 4], 90, dtype=torch.uint8)
    images[torch.arange(600), labels] = 160

    class Toy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 3)

        def forward(self, x, t):
            return self.linear(torch.cat([x.mean(dim=[2, 3]), t[:, None]], dim=1))

    net = Toy()
    train(TrainRun(outdir=tmp_path, config={}, module=net, step_loss=lib.NoisyClassifierLoss(net, VPSDE()),
                   batches=BatchLoader(images, labels, 100, 0, 'cpu'), batch_size=100, total_nimg=10_000,
                   lr=lambda nimg: 0.03))
    accuracies = lib.accuracy_by_noise(net, images, labels, VPSDE(), 'cpu')
    assert accuracies == lib.accuracy_by_noise(net, images, labels, VPSDE(), 'cpu')
    assert list(accuracies) == list(lib.SIGMA_LEVELS)
    assert accuracies[0.0] == 1 and accuracies[0.3] > 0.95 and accuracies[10.0] < 0.5
    assert lib.accuracy(lambda x: x.mean(dim=[2, 3]), images, labels, 'cpu') == 1


def test_held_out_images_go_through_the_network_a_few_at_a_time():
    """With the same noise: --batch_gpu changes only how many at a time."""
    images, labels = torch.randint(0, 256, [620, 3, 4, 4], dtype=torch.uint8), torch.arange(620) % 3
    seen = {}

    def net(x, t):
        seen.setdefault(size, []).append(x)
        return x.mean(dim=[2, 3])

    accuracies = {}
    for size in (None, 130, 10_000):
        accuracies[size] = lib.accuracy_by_noise(net, images, labels, VPSDE(), 'cpu', batch_gpu=size)
        assert lib.accuracy(lambda x: net(x, None), images, labels, 'cpu', batch_gpu=size) < 1
    assert [len(x) for x in seen[None][:2]] == [500, 120]
    assert [len(x) for x in seen[130][:5]] == [130, 130, 130, 110, 120]
    for size in (130, 10_000):
        assert accuracies[size] == accuracies[None]
        assert torch.equal(torch.cat(seen[size]), torch.cat(seen[None]))


# ---------------------------------------------------------------------------
# The script.

@pytest.fixture(scope='module')
def room(tmp_path_factory):
    """A folder with labelled images: class k has k + 1 bright stripes."""
    path = tmp_path_factory.mktemp('classifier')
    rng = np.random.default_rng(0)
    for name, count, channels in (('rgb', 40, 3), ('grey', 40, 1)):
        labels = np.arange(count) % 3
        images = rng.integers(0, 60, [count, 8, 8, channels])
        for index, label in enumerate(labels):
            images[index, :2 * (label + 1)] += 150
        np.savez(path / f'{name}.npz', samples=images.astype(np.uint8), label=labels)
    np.savez(path / 'unlabelled.npz', arr_0=images.astype(np.uint8))
    return path


def run(room, outdir, *options, data='rgb.npz'):
    arguments = [f'--outdir={room / outdir}', f'--data={room / data}', '--batch_size=8', '--kimg=0.04',
                 '--device=cpu', '--precision=fp32', '--val_fraction=0.2', *options]
    return CliRunner().invoke(script.main, arguments)


def test_noisy_classifier_files_and_bitwise_resume(room):
    options = ['--depth=1', '--ema_kimg=0.01']
    result = run(room, 'whole', *options)
    assert result.exit_code == 0, result.output
    assert 'held-out accuracy' in result.output and 'at sigma 10' in result.output
    state = torch.load(room / 'whole' / 'classifier.pt', weights_only=True)
    create_classifier(8, 64, 1, '8', out_channels=3).load_state_dict(state, strict=True)
    file = read_network(room / 'whole' / 'classifier.safetensors')
    create_classifier(**file.kwargs).load_state_dict(file.state, strict=True)
    names = ('kind', 'width', 'depth', 'channels', 'resolution', 'classes', 'time')
    assert {k: file.metadata[k] for k in names} == dict(
        kind='classifier', width=64, depth=1, channels=3, resolution=8, classes=3, time='linear')
    for name in ('classifier.pt', 'classifier.safetensors'):
        net = load_classifier(str(room / 'whole' / name), 8, 'cpu')
        assert all(torch.equal(net.state_dict()[k], state[k]) for k in state)

    result = run(room, 'parts', *options, '--max_minutes=0')
    assert result.exit_code == 0 and 'the same command resumes' in result.output, result.output
    result = run(room, 'parts', *options)
    assert result.exit_code == 0, result.output
    again = torch.load(room / 'parts' / 'classifier.pt', weights_only=True)
    assert all(torch.equal(again[k], state[k]) for k in state)
    lines = [[json.loads(line)['loss'] for line in (room / folder / 'stats.jsonl').read_text().splitlines()]
             for folder in ('whole', 'parts')]
    assert lines[0] == lines[1]
    result = run(room, 'parts', *options, '--seed=1')
    assert result.exit_code == 1 and 'seed' in result.output and '--overwrite' in result.output


def test_one_channel_more_classes_and_test_data(room):
    result = run(room, 'grey', '--classes=1000', '--depth=1', f'--test_data={room / "grey.npz"}', '--time=cosine',
                 data='grey.npz')
    assert result.exit_code == 0, result.output
    file = read_network(room / 'grey' / 'classifier.safetensors')
    assert file.state['input_blocks.0.0.weight'].shape[1] == 1
    assert file.state['out.2.c_proj.weight'].shape[0] == 1000
    assert file.metadata['time'] == 'cosine'


def test_feature_network_learns_and_loads(room):
    result = run(room, 'features', '--preset=cifar10-features', '--kimg=0.24', '--shift=0', '--lr=0.05',
                 f'--test_data={room / "rgb.npz"}')
    assert result.exit_code == 0, result.output
    last = json.loads((room / 'features' / 'stats.jsonl').read_text().splitlines()[-1])
    assert last['held_out_accuracy'] > 0.8
    net = load_feature_net(room / 'features' / 'features.safetensors')
    assert net.num_classes == 3 and net.img_resolution == 8
    assert net(torch.zeros(2, 3, 8, 8), features=True).shape == (2, net.feature_dim)


def test_overwriting_removes_the_networks_of_another_kind(room):
    assert run(room, 'kinds', '--depth=1', '--kimg=0.008').exit_code == 0
    assert (room / 'kinds/classifier.pt').exists()
    result = run(room, 'kinds', '--preset=cifar10-features', '--kimg=0.008', '--overwrite')
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in room.glob('kinds/*')) == ['features.safetensors', 'options.json', 'stats.jsonl',
                                                                'training-state.pt']


def test_part_of_the_test_data_has_all_classes(room, monkeypatch):
    """If images are sorted by class, the first ones are of one class."""
    np.savez(room / 'sorted.npz', samples=np.zeros([90, 8, 8, 3], np.uint8), label=np.arange(90) // 30)
    seen = []
    monkeypatch.setattr(script, 'measure_hook', lambda loss, held_out: seen.append(held_out[1]))
    result = run(room, 'part', '--depth=1', f'--test_data={room / "sorted.npz"}', '--val_images=12', '--kimg=0.008')
    assert result.exit_code == 0, result.output
    assert len(seen[0]) == 12 and set(seen[0].tolist()) == {0, 1, 2}


def test_other_images_are_another_run(room, tmp_path):
    """A file that has moved is the same run; other pixels or labels are not."""
    for folder in ('moved', 'changed', 'relabelled'):
        (tmp_path / folder).mkdir()
    with np.load(room / 'rgb.npz', allow_pickle=False) as file:
        images, labels = file['samples'], file['label']
    np.savez(tmp_path / 'moved' / 'rgb.npz', samples=images, label=labels)
    np.savez(tmp_path / 'changed' / 'rgb.npz', samples=images ^ 1, label=labels)
    np.savez(tmp_path / 'relabelled' / 'rgb.npz', samples=images, label=2 - labels)
    options = ['--depth=1', '--kimg=0.008']
    assert run(room, tmp_path / 'run', *options).exit_code == 0
    result = run(room, tmp_path / 'run', *options, data=tmp_path / 'moved' / 'rgb.npz')
    assert result.exit_code == 0 and 'nothing to do' in result.output, result.output
    for folder in ('changed', 'relabelled'):
        result = run(room, tmp_path / 'run', *options, data=tmp_path / folder / 'rgb.npz')
        assert result.exit_code == 1 and 'other options (data_sha256' in result.output, result.output
    result = run(room, tmp_path / 'run', *options, f'--test_data={room / "rgb.npz"}', '--val_fraction=0.2')
    assert result.exit_code == 1 and 'test_sha256' in result.output, result.output


def test_a_rate_too_large_is_one_line(room):
    result = run(room, 'huge', '--preset=cifar10-features', '--lr=1e30', '--shift=0')
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    assert 'Error: --lr: the loss is not a finite number' in result.output


def test_a_batch_that_three_processes_cannot_share(room, monkeypatch):
    monkeypatch.setattr(script.dist, 'get_world_size', lambda: 3)
    result = run(room, 'never')
    assert result.exit_code == 1 and 'Error: --batch: 8 images cannot be divided among 3' in result.output
    assert not (room / 'never').exists()


def test_presets_and_dry_run(room):
    output = run(room, 'dry', '--preset=adm-32', '--dry_run').output
    config = json.loads(output[output.index('{'):])
    assert (config['width'], config['depth'], config['classes'], config['lr'], config['weight_decay']) == (
        128, 4, 1000, 3e-4, 0.05)
    assert config['batch_size'] == 8  # an option overrides the preset
    assert (config['images'], config['test_sha256']) == (32, None)
    output = run(room, 'dry', '--batch=4', '--dry_run').output
    assert json.loads(output[output.index('{'):])['batch_size'] == 4
    assert not (room / 'dry').exists()
    cosine = lib.learning_rate('cosine', 1.0, 10, 100_000)
    assert cosine(0) == pytest.approx(1 / 200) and cosine(50_000) == pytest.approx(0.5)
    cycle = lib.learning_rate('one-cycle', 1.0, 10, 1000)
    assert cycle(200) == pytest.approx(1.0) and cycle(999) == pytest.approx(0.001 / 0.8)


@pytest.mark.parametrize('given', ['--width=256', '--depth=7', '--attention=99', '--time=cosine'])
def test_options_of_the_other_network_are_refused(room, given):
    result = run(room, 'never', '--preset=cifar10-features', given)
    option = given.partition('=')[0]
    assert result.exit_code == 1
    assert result.output == f'Error: {option}: belongs to the adm presets; leave it out\n'
    assert not (room / 'never').exists()


@pytest.mark.parametrize(('option', 'options', 'data'), [
    ('--data', [], 'nowhere.zip'),
    ('--data', [], 'unlabelled.npz'),
    ('--data', ['--img_resolution=32'], 'rgb.npz'),
    ('--test_data', ['--test_data=nowhere.npz'], 'rgb.npz'),
    ('--classes', ['--classes=2'], 'rgb.npz'),
    ('--width', ['--width=100'], 'rgb.npz'),
    ('--preset', ['--preset=cifar11'], 'rgb.npz'),
    ('--device', ['--device=cuda:7'], 'rgb.npz'),
])
def test_bad_input_is_one_line_that_names_the_option(room, option, options, data):
    result = run(room, 'never', *options, data=data)
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit), result.exception
    last = result.output.strip().splitlines()[-1]
    assert last.startswith('Error') and option in last, result.output
    assert not (room / 'never').exists()
