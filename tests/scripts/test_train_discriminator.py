"""The discriminator's training: DG's golden step, held-out scores, learning, resuming, files and bad input."""

import json
from types import SimpleNamespace

import goldens
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import train as script
from commands import discriminator as discriminator_command
from diffusion.vpsde import VPSDE
from guided_diffusion import create_classifier
from torch_utils.checkpoint import read_network, save_network
from torch_utils.images import from_uint8
from torch_utils.rng import step_generator
from training import discriminator as lib
from training import held_out as scoring
from training.data import BatchLoader
from training.loop import train
from training.run import TrainRun


class Images:
    """The part of ImageData that split_pairs needs."""

    def __init__(self, images, labels=None):
        self.images, self.labels = images, labels


def test_area_under_curve_is_the_share_of_ordered_pairs():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 12, 200).astype(float)  # many ties
    positive = rng.random(200) < 0.3
    ahead = (scores[positive][:, None] > scores[~positive]).mean()
    level = (scores[positive][:, None] == scores[~positive]).mean()
    assert scoring.area_under_curve(scores, positive) == pytest.approx(ahead + level / 2, abs=1e-12)
    assert np.isnan(scoring.area_under_curve(scores, np.ones(200, dtype=bool)))


def test_calibration_error_of_known_cases():
    positive = np.array([1.0, 0.0, 1.0, 0.0])
    assert scoring.calibration_error(np.full(4, 0.5), positive) == 0
    assert scoring.calibration_error(np.full(4, 0.9), positive) == pytest.approx(0.4)
    assert scoring.calibration_error(np.array([1.0, 0.0, 1.0, 0.0]), positive) == 0


def test_split_holds_out_a_share_of_each_side_and_nothing_twice():
    number = torch.arange(50, dtype=torch.uint8)[:, None, None, None].expand(50, 3, 4, 4)
    real, generated = Images(number[:30], torch.arange(30) % 3), Images(number[30:], torch.arange(20) % 3)
    train, held_out = lib.split_pairs(real, generated, 0.1, seed=5)
    assert len(held_out) == 5 and held_out.is_real.sum() == 3
    seen = torch.cat([train.images[:, 0, 0, 0], held_out.images[:, 0, 0, 0]])
    assert torch.equal(seen.sort().values, number[:, 0, 0, 0])
    for part in (train, held_out):
        first = part.images[:, 0, 0, 0].long()
        assert torch.equal(part.is_real, (first < 30).long())
        assert torch.equal(part.labels, torch.where(first < 30, first, first - 30) % 3)
    assert torch.equal(lib.split_pairs(real, generated, 0.1, seed=5)[1].images, held_out.images)
    assert len(lib.split_pairs(real, generated, 0, seed=5)[1]) == 0
    with pytest.raises(ValueError, match='labels'):
        lib.split_pairs(real, Images(generated.images), 0.1, seed=5)
    with pytest.raises(ValueError, match=r'\[3, 4, 4\]'):
        lib.split_pairs(real, Images(generated.images[:, :1], generated.labels), 0.1, seed=5)


def test_held_out_scores_per_noise_level():
    rng = np.random.default_rng(1)
    target = (rng.random(4000) < 0.5).astype(float)
    sigma = np.exp(rng.uniform(np.log(0.001), np.log(152), 4000))
    logits = np.where(sigma < 1, 6 * target - 3, 0) + 0.01 * rng.standard_normal(4000)
    scores = scoring.held_out_scores(logits, target, sigma)
    assert sum(level['count'] for level in scores['levels']) == 4000
    assert all(level['auc'] == 1 for level in scores['levels'] if level['sigma_to'] <= 1)
    assert all(abs(level['auc'] - 0.5) < 0.1 for level in scores['levels'] if level['sigma_from'] >= 1)
    probability = 1 / (1 + np.exp(-logits))
    expected = -np.mean(target * np.log(probability) + (1 - target) * np.log(1 - probability))
    assert scores['loss'] == pytest.approx(expected, rel=1e-9)
    assert '0.5 are expected' in scoring.scores_table(scores)


def test_one_step_is_dgs():
    """DG's own training step: perturbed images, probabilities, loss and gradients."""
    golden = goldens.load('dg/train_step.npz')
    golden = {name: torch.from_numpy(value) for name, value in golden.items()}
    classifier = goldens.recipe_(create_classifier(32, 64, 1), seed=0, half=True).requires_grad_(False)
    net = goldens.recipe_(create_classifier(8, 64, 2, out_channels=1, in_channels=256), seed=17, half=True)
    with torch.no_grad():
        net.out[2].c_proj.weight.copy_(golden['head_weight'])
        net.out[2].c_proj.bias.copy_(golden['head_bias'])
    loss = lib.DiscriminatorLoss(net, lambda x, t: classifier(x, t, feature=True), VPSDE())
    images = from_uint8(golden['images_uint8'].permute(0, 3, 1, 2))
    torch.testing.assert_close(loss.times(golden['u']), golden['t'], rtol=0, atol=1e-3)
    perturbed = VPSDE().perturb(images, golden['t'], golden['noise'])
    torch.testing.assert_close(perturbed, golden['perturbed'], rtol=1e-3, atol=1e-5)

    loss.times = lambda u: golden['t']  # DG's smallest times are off by up to 7 %, so they are passed in
    draws = SimpleNamespace(rand=lambda size: golden['u'], randn_like=lambda x: golden['noise'])
    value, stats = loss(images, golden['is_real'].long()[:, None], draws)
    value.mean().backward()
    probability = loss.logits(images, None, golden['t'], golden['noise']).sigmoid()
    torch.testing.assert_close(probability, golden['probability'], rtol=1e-3, atol=0)
    torch.testing.assert_close(value.mean(), golden['bce'], rtol=1e-3, atol=0)
    right = (golden['probability'] > 0.5) == (golden['is_real'] > 0.5)
    assert torch.equal(stats['accuracy'], right.float())
    gradients = {name: p.grad for name, p in net.named_parameters()}
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    torch.testing.assert_close(norm, golden['grad_norm'], rtol=1e-3, atol=0)
    for name in ('time_embed.0.bias', 'out.0.weight', 'out.2.c_proj.weight'):
        expected = golden[f'grad/{name}']
        torch.testing.assert_close(gradients[name], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert all(p.grad is None for p in classifier.parameters())


class ToyDiscriminator(torch.nn.Module):
    """Sees the mean brightness and the time."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.SiLU(), torch.nn.Linear(32, 1))

    def forward(self, x, t, condition=None):
        return self.layers(torch.stack([2 * x.mean(dim=[1, 2, 3]), t], dim=1))


def test_discriminator_learns_where_the_noise_lets_it(tmp_path):
    """Bright against dark images: told apart at small noise, a coin toss at large noise, calibrated at all levels."""
    def source(brightness):
        level = torch.randn(1000, 1, 1, 1) * 10 + brightness
        return Images((level + torch.randn(1000, 1, 4, 4)).clip(0, 255).to(torch.uint8))

    pairs, held_out = lib.split_pairs(source(150), source(120), 0.4, seed=0)
    net = ToyDiscriminator()
    loss = lib.DiscriminatorLoss(net, lambda x, t: x, VPSDE())
    train(TrainRun(outdir=tmp_path, config={}, module=net, step_loss=loss, batch_size=200, total_nimg=30_000,
                   batches=BatchLoader(pairs.images, pairs.targets, 200, 0, 'cpu'), lr=lambda nimg: 1e-2))
    arrays = scoring.held_out_logits(loss, held_out, 128, 0, 'cpu')
    again = scoring.held_out_logits(loss, held_out, 128, 0, 'cpu')
    assert all(np.array_equal(a, b) for a, b in zip(arrays, again, strict=True))
    seen = []
    loss.features = lambda x, t: seen.append(len(x)) or x
    parts = scoring.held_out_logits(loss, held_out, 128, 0, 'cpu', batch_gpu=50)  # the same noise, in smaller parts
    assert seen[:4] == [50, 50, 28, 50] and np.allclose(parts[0], arrays[0], rtol=0, atol=1e-6)
    scores = scoring.held_out_scores(*arrays)
    levels = {level['sigma_from']: level for level in scores['levels']}
    assert len(levels) == 10 and sum(level['count'] for level in levels.values()) == 800
    assert levels[0.01]['auc'] > 0.95 and levels[0.01]['accuracy'] > 0.9
    assert 0.35 < levels[30.0]['auc'] < 0.65
    assert scores['loss'] < 0.5 and scores['ece'] < 0.08


# ---------------------------------------------------------------------------
# The script.

def texture(count, striped, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(60, 200, [count, 1, 1, 3]) + np.zeros([count, 16, 16, 3])
    if striped:
        images += 30 * (np.arange(16) % 2)[None, :, None, None]
    return images.astype(np.uint8)


@pytest.fixture(scope='module')
def room(tmp_path_factory):
    """A folder with real images, generated shards and a small classifier."""
    path = tmp_path_factory.mktemp('discriminator')
    labels = np.arange(48) % 3
    np.savez(path / 'real.npz', arr_0=texture(48, False, 0))
    np.savez(path / 'real_label.npz', samples=texture(48, False, 0), label=labels)
    (path / 'gen').mkdir()
    for shard in range(2):
        np.savez(path / 'gen' / f'samples_{shard * 24:08d}.npz', samples=texture(24, True, 1 + shard),
                 label=np.eye(3, dtype=np.float32)[labels[:24]])
    classifier = goldens.recipe_(create_classifier(16, 64, 1, '', out_channels=10))
    torch.save(classifier.state_dict(), path / 'classifier.pt')
    return path


@pytest.fixture
def pictures():
    """For tests that look at the picture of a run. It takes a second; the others get an empty file."""


@pytest.fixture(autouse=True)
def _no_pictures(request, monkeypatch):
    if 'pictures' not in request.fixturenames:
        monkeypatch.setattr(discriminator_command, 'draw_training', lambda lines, path: path.touch())


def run(room, savedir, *options, gendir='gen', datadir='real.npz', ckpt='classifier.pt'):
    arguments = [f'--savedir={room / savedir}', f'--gendir={room / gendir}', f'--datadir={room / datadir}',
                 f'--pretrained_classifier_ckpt={room / ckpt}', '--img_resolution=16', '--width=64', '--depth=1',
                 '--batch_size=16', '--epoch=2', '--device=cpu', '--precision=fp32', *options]
    return CliRunner().invoke(script.main, arguments)


def states_equal(a, b):
    a, b = (torch.load(path, weights_only=True) for path in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_script_writes_what_dg_reads_and_resumes_bitwise(room, pictures, monkeypatch):
    result = run(room, 'whole', '--cond=1', '--val_fraction=0.25', datadir='real_label.npz')
    assert result.exit_code == 0, result.output
    assert '0.5 are expected' in result.output
    names = {path.name for path in (room / 'whole').iterdir()}
    assert {'discriminator_1.pt', 'discriminator_2.pt', 'best.pt', 'best.safetensors', 'stats.jsonl',
            'training.png', 'options.json'} <= names

    state = torch.load(room / 'whole' / 'discriminator_2.pt', weights_only=True)
    net = create_classifier(8, 64, 1, out_channels=1, in_channels=128, num_classes=1000)  # DG has 1000 label rows
    net.load_state_dict(state, strict=True)
    file = read_network(room / 'whole' / 'best.safetensors')
    create_classifier(**file.kwargs).load_state_dict(file.state, strict=True)
    assert {k: file.metadata[k] for k in ('width', 'depth', 'channels', 'resolution', 'classes', 'time')} == dict(
        width=64, depth=1, channels=128, resolution=16, classes=3, time='linear')
    lines = [json.loads(line) for line in (room / 'whole' / 'stats.jsonl').read_text().splitlines()]
    assert [line['epoch'] for line in lines] == [1, 2]
    best = min(lines, key=lambda line: line['held_out_loss'])['epoch']
    assert states_equal(room / 'whole' / 'best.pt', room / 'whole' / f'discriminator_{best}.pt')

    monkeypatch.setattr(discriminator_command, 'draw_training', lambda lines, path: path.touch())
    result = run(room, 'parts', '--cond=1', '--val_fraction=0.25', '--max_minutes=0', datadir='real_label.npz')
    assert result.exit_code == 0 and 'the same command resumes' in result.output, result.output  # after one step
    assert not (room / 'parts' / 'discriminator_1.pt').exists()
    result = run(room, 'parts', '--cond=1', '--val_fraction=0.25', datadir='real_label.npz')
    assert result.exit_code == 0, result.output
    for name in ('discriminator_1.pt', 'discriminator_2.pt', 'best.pt'):
        assert states_equal(room / 'whole' / name, room / 'parts' / name)
    resumed = [json.loads(line) for line in (room / 'parts' / 'stats.jsonl').read_text().splitlines()]
    for a, b in zip(lines, resumed, strict=True):
        assert {k: a[k] for k in a if 'sec' not in k and k != 'timestamp'} == \
            {k: b[k] for k in b if 'sec' not in k and k != 'timestamp'}

    result = run(room, 'parts', '--cond=1', '--val_fraction=0.25', '--lr=1e-2', datadir='real_label.npz')
    assert result.exit_code == 1 and 'lr' in result.output and '--overwrite' in result.output
    result = run(room, 'parts', '--cond=1', '--val_fraction=0.25', datadir='real_label.npz')  # complete
    assert result.exit_code == 0 and f'best.safetensors is epoch {best}' in result.output


def test_few_images(room, pictures):
    """Two are held out, so no noise level has both sides and there is nothing to draw, which does not end the run."""
    result = run(room, 'few', '--num_data=8', '--val_fraction=0.12', '--batch_size=7', '--epoch=1')
    assert result.exit_code == 0, result.output
    assert 'Warning' not in result.output and (room / 'few/training.png').is_file()
    level = json.loads((room / 'few/stats.jsonl').read_text())['held_out_levels'][0]
    assert np.isnan(level['auc'])


@pytest.mark.parametrize('batch', ['--batch=24', '--batch_size=24'])
def test_dry_run_writes_nothing(room, batch):
    result = run(room, 'dry', batch, '--cond=1', '-n', datadir='real_label.npz')
    assert result.exit_code == 0, result.output
    config = json.loads(result.output[result.output.index('{'):])
    assert (config['batch_size'], config['cond'], config['num_real'], config['num_generated']) == (24, 1, 48, 48)
    assert not (room / 'dry').exists()


def test_other_files_are_another_run(room, tmp_path):
    """Files that have moved are the same run; other images or another classifier under the old names are not."""
    def copied(name, **arrays):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
        return path

    real = texture(48, False, 0)
    for shard in range(2):
        copied(f'gen/samples_{shard * 24:08d}.npz', samples=texture(24, True, 1 + shard))
        copied(f'other/samples_{shard * 24:08d}.npz', samples=texture(24, True, 7 + shard))
    other = goldens.recipe_(create_classifier(16, 64, 1, '', out_channels=10), seed=3)
    torch.save(other.state_dict(), tmp_path / 'classifier.pt')
    (tmp_path / 'moved.pt').write_bytes((room / 'classifier.pt').read_bytes())
    assert run(room, tmp_path / 'run', '--epoch=1').exit_code == 0
    result = run(room, tmp_path / 'run', '--epoch=1', gendir=tmp_path / 'gen', ckpt=tmp_path / 'moved.pt',
                 datadir=copied('true.npz', arr_0=real))
    assert result.exit_code == 0 and 'nothing to do' in result.output, result.output
    for name, kwargs in dict(generated_sha256=dict(gendir=tmp_path / 'other'),
                             real_sha256=dict(datadir=copied('changed/real.npz', arr_0=real ^ 1)),
                             classifier_sha256=dict(ckpt=tmp_path / 'classifier.pt')).items():
        result = run(room, tmp_path / 'run', '--epoch=1', **kwargs)
        assert result.exit_code == 1 and f'--savedir: {tmp_path}/run holds a run with other options ({name} ' in \
            result.output, result.output


def test_a_class_that_is_held_out_is_counted(room, tmp_path):
    """The last class has a single image: the file says how many classes --datadir has, not the part trained on."""
    labels = np.arange(48) % 2
    np.savez(tmp_path / 'gen.npz', samples=texture(48, True, 1), label=labels)
    labels[torch.randperm(48, generator=step_generator(0, 1, 7))[0]] = 2  # the first that `split_pairs` holds out
    np.savez(tmp_path / 'rare.npz', samples=texture(48, False, 0), label=labels)
    result = run(room, tmp_path / 'run', '--cond=1', '--epoch=1', gendir=tmp_path / 'gen.npz',
                 datadir=tmp_path / 'rare.npz')
    assert result.exit_code == 0, result.output
    assert read_network(tmp_path / 'run' / 'best.safetensors').metadata['classes'] == 3


def test_a_rate_too_large_is_one_line(room):
    result = run(room, 'huge', '--lr=1e30', '--val_fraction=0')
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    assert 'Error: --lr: the loss is not a finite number' in result.output


def test_a_batch_that_three_processes_cannot_share(room, monkeypatch):
    monkeypatch.setattr(script.dist, 'get_world_size', lambda: 3)
    result = run(room, 'never')
    assert result.exit_code == 1 and 'Error: --batch: 16 images cannot be divided among 3' in result.output


def test_script_without_held_out_images_and_with_dgs_cache(room):
    cache = room / 'dg_gen'
    cache.mkdir()
    np.savez(cache / 'gen_data_for_discriminator_training.npz', samples=texture(20, True, 9))
    result = run(room, 'plain', '--val_fraction=0', '--num_data=16', '--epoch=1', gendir='dg_gen')
    assert result.exit_code == 0, result.output
    assert '16 real images' in result.output and f'16 generated ones from {cache}/gen_data_for' in result.output
    assert not (room / 'plain' / 'best.pt').exists()
    net = create_classifier(8, 64, 1, out_channels=1, in_channels=128)
    net.load_state_dict(torch.load(room / 'plain' / 'discriminator_1.pt', weights_only=True), strict=True)


def test_samples_go_before_dgs_cache_of_them(room):
    """The cache may hold samples that no longer exist."""
    folder = room / 'anew'
    folder.mkdir()
    np.savez(folder / 'gen_data_for_discriminator_training.npz', samples=texture(20, True, 9))
    np.savez(folder / 'samples_00000000.npz', samples=texture(18, True, 9))
    result = run(room, 'shards', '--val_fraction=0', '--epoch=1', gendir='anew')
    assert result.exit_code == 0 and f'18 generated ones from {folder}\n' in result.output, result.output


def test_published_discriminators_stay(room):
    """A run may lie beside one of a later epoch; it replaces one only with --overwrite."""
    (room / 'shared').mkdir()
    for epoch in (1, 60):
        (room / f'shared/discriminator_{epoch}.pt').write_bytes(b'downloaded')
    result = run(room, 'shared', '--num_data=16', '--epoch=1')
    assert result.exit_code == 1 and 'holds discriminator_1.pt but no options.json' in result.output, result.output
    assert run(room, 'shared', '--num_data=16', '--epoch=1', '--overwrite').exit_code == 0
    assert run(room, 'shared', '--num_data=16', '--epoch=2', '--overwrite').exit_code == 0
    assert run(room, 'shared', '--num_data=16', '--epoch=1', '--overwrite').exit_code == 0  # epoch 2 is removed
    assert sorted(path.name for path in room.glob('shared/discriminator_*')) == ['discriminator_1.pt',
                                                                                'discriminator_60.pt']
    assert (room / 'shared/discriminator_60.pt').read_bytes() == b'downloaded'


def test_patience_needs_held_out_images(room):
    result = run(room, 'blind', '--val_fraction=0', '--patience=1', '--epoch=1')
    assert result.exit_code == 1 and '--patience: needs held-out images' in result.output.splitlines()[-1]
    assert not (room / 'blind').exists()


def test_the_time_is_the_classifiers(room):
    """If its file records one; otherwise --time decides."""
    state = torch.load(room / 'classifier.pt', weights_only=True)
    kwargs = dict(image_size=16, classifier_width=64, classifier_depth=1, classifier_attention_resolutions='',
                  out_channels=10)
    save_network(room / 'cosine.safetensors', state, 'create_classifier', kwargs, dict(time='cosine'))
    for time, options in dict(cosine=[], linear=['--time=linear']).items():
        result = run(room, f'time-{time}', '--num_data=16', '--epoch=1', *options, ckpt='cosine.safetensors')
        assert result.exit_code == 0, result.output
        assert read_network(room / f'time-{time}' / 'best.safetensors').metadata['time'] == time


def test_script_stops_early_and_keeps_the_best(room):
    result = run(room, 'early', '--num_data=24', '--epoch=30', '--patience=1', '--lr=0', '--val_fraction=0.25')
    assert result.exit_code == 0 and 'stopping' in result.output, result.output
    assert (room / 'early' / 'discriminator_2.pt').exists() and not (room / 'early' / 'discriminator_3.pt').exists()
    assert 'best.safetensors is epoch 1' in result.output


def test_published_defaults():
    defaults = {p.name: p.default for p in script.main.params}
    assert {k: defaults[k] for k in ('img_resolution', 'cond', 'num_data', 'batch', 'epoch', 'lr')} == dict(
        img_resolution=32, cond=0, num_data=50000, batch=128, epoch=50, lr=3e-4)
    assert defaults['savedir'] == '/checkpoints/discriminator/cifar_uncond'
    assert defaults['gendir'] == '/samples/cifar_uncond_vanilla' and defaults['datadir'] == '/data/true_data.npz'
    assert defaults['pretrained_classifier_ckpt'] == '/checkpoints/ADM_classifier/32x32_classifier.pt'
    assert defaults['width'] == 128 and defaults['depth'] == 2


@pytest.mark.parametrize(('option', 'kwargs', 'options'), [
    ('--gendir', dict(gendir='nowhere'), []),
    ('--datadir', dict(datadir='nowhere.npz'), []),
    ('--datadir', dict(datadir='foreign.npz'), []),
    ('--datadir', dict(datadir='real.npz'), ['--cond=1']),
    ('--datadir', dict(datadir='small.npz'), []),
    ('--datadir', dict(datadir='grey.npz'), []),
    ('--pretrained_classifier_ckpt', dict(ckpt='nowhere.pt'), []),
    ('--pretrained_classifier_ckpt', dict(ckpt='real.npz'), []),
    ('--pretrained_classifier_ckpt', dict(), ['--img_resolution=32']),
    ('--batch', dict(), ['--batch_size=5000']),
    ('--width', dict(), ['--width=65']),
    ('--network_preset', dict(), ['--network_preset=ve/cifar10_ncsnpp']),
    ('--device', dict(), ['--device=cuda:7']),
    ('--device', dict(), ['--device=abacus']),
])
def test_bad_input_is_one_line_that_names_the_option(room, option, kwargs, options):
    np.savez(room / 'foreign.npz', unexpected=np.zeros(3))
    np.savez(room / 'small.npz', arr_0=np.zeros([8, 8, 8, 3], dtype=np.uint8))
    np.savez(room / 'grey.npz', arr_0=np.zeros([48, 16, 16, 1], dtype=np.uint8))
    result = run(room, 'never', *options, **kwargs)
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit), result.exception
    last = result.output.strip().splitlines()[-1]
    assert last.startswith('Error') and option in last, result.output
    assert not (room / 'never').exists()
