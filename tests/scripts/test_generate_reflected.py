"""generate_reflected.py as a user calls it: published words, run folders, samplers, likelihood, one-line errors."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from cube_densities import CosineNet
from published_run import write_run

import generate
import generate_reflected
import train
from commands.likelihood import likelihood
from commands.reflected_words import sampling_arguments
from networks import load_log_ratio
from networks.reflected import load_reflected
from sampling.classifier_free import ClassifierFree
from sampling.guidance import DiscriminatorGuidance
from sampling.reflected import reflected_heun, reflected_levels, reflected_ode, reflected_pc
from sampling.samples import sample
from torch_utils.images import to_uint8
from torch_utils.rng import StackedRandomGenerator


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    return {which: write_run(folder / which, which) for which in ('vdm_attn', 'adm')}


def call(*args):
    result = CliRunner().invoke(generate_reflected.main, ['--device=cpu', '--precision=fp32', *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def images_in(folder):
    return np.concatenate([np.load(path)['samples'] for path in sorted(folder.glob('samples_*.npz'))])


def test_a_published_command(runs, tmp_path, monkeypatch):
    """Its images are the sampler's; their folder and number are as published."""
    monkeypatch.chdir(tmp_path)
    result = call(f'load_dir={runs["adm"]}', 'label=3', 'w=2.5', 'sampling.method=pc', 'eval.batch_size=2',
                  'eval.rounds=2', '--steps=3')
    assert result.exit_code == 0, result.output
    folder, net = tmp_path / 'samples' / 'adm', load_reflected(runs['adm'])
    expected = sample(reflected_pc, net, range(4), class_idx=3, guidance=ClassifierFree(2.5), batch=2,
                      progress=False, num_steps=3)
    assert np.abs(images_in(folder).astype(int) - to_uint8(net.decode(expected.images))).max() <= 1
    options = json.loads((folder / 'options.json').read_text())
    assert options['w'] == 2.5 and options['denoiser'] == 'none' and options['report']['nfe']['mean'] == 6
    assert (np.load(folder / 'samples_00000000.npz')['label'].argmax(1) == 3).all()
    again = call(f'load_dir={runs["adm"]}', 'label=3', 'w=2.5', 'eval.batch_size=2', 'eval.rounds=2', '--steps=3')
    assert again.exit_code == 0 and '0 of them new' in again.output
    other = call(f'load_dir={runs["adm"]}', 'label=3', 'w=2', 'eval.batch_size=2', 'eval.rounds=2', '--steps=3')
    assert other.exit_code == 1 and '--outdir: ' in other.output and 'w was 2.5, now 2.0' in other.output


def test_words_as_options():
    given = sampling_arguments(['load_dir=weights/cifar10', 'sampling.corrector=langevin', 'sampling.n_steps_each=2',
                                'sampling.denoiser=network', 'denoiser_path=weights/denoiser', 'eval.ckpt=26'], [])
    assert set(given) == {'--sampler=pc', '--corrector_steps=2', '--denoiser=weights/denoiser', '--batch=100',
                          '--num_samples=100', '--network=weights/cifar10', '--checkpoint=26',
                          '--outdir=samples/cifar10'}
    assert sampling_arguments(['w=1'], ['--outdir=x']) == ['--w=1']
    assert '--num_samples=100' not in sampling_arguments(['load_dir=x'], ['--seeds=0-3'])


@pytest.mark.parametrize('args, sampler, own, nfe', [
    (['--sampler=heun', '--steps=2'], reflected_heun, dict(num_steps=2), 3),
    (['--sampler=ode', '--tolerance=20'], reflected_ode, dict(rtol=20, atol=20), None),
    (['--sampler=pc', '--steps=2', '--corrector_steps=1'], reflected_pc,
     dict(num_steps=2, corrector_steps=1, denoiser='mean'), 5),
    (['--sampler=pc', '--steps=4', '--published_sampler'], reflected_pc, dict(num_steps=4, published=True), 3)])
def test_samplers(runs, tmp_path, args, sampler, own, nfe):
    """Images and counts are the library's; those of ode differ between samples."""
    result = call(f'--network={runs["vdm_attn"]}', f'--outdir={tmp_path}', '--seeds=0-2', '--batch=2', *args)
    assert result.exit_code == 0, result.output
    images, report = images_in(tmp_path), json.loads((tmp_path / 'options.json').read_text())['report']
    assert images.shape == (3, 16, 16, 3) and images.std() > 10
    net = load_reflected(runs['vdm_attn'])
    own = dict(levels=reflected_levels(net, **own)) if sampler is reflected_heun else own
    expected = sample(sampler, net, range(3), batch=2, progress=False, **own)
    assert np.abs(images.astype(int) - to_uint8(net.decode(expected.images))).max() <= 1
    assert report['nfe']['mean'] == expected.costs['nfe'].mean() and (expected.costs['nfe'] > 2).all()
    assert nfe is None or (expected.costs['nfe'] == nfe).all()


def test_a_trained_denoiser_is_applied(runs, tmp_path):
    common = [f'--network={runs["vdm_attn"]}', '--seeds=0-1', '--sampler=pc', '--steps=2']
    assert call(*common, f'--outdir={tmp_path / "plain"}', '--denoiser=none').exit_code == 0
    result = call(*common, f'--outdir={tmp_path / "denoised"}', f'--denoiser={runs["vdm_attn"]}')
    assert result.exit_code == 0, result.output
    assert (images_in(tmp_path / 'plain') != images_in(tmp_path / 'denoised')).mean() > 0.5
    moved = write_run(tmp_path / 'moved', 'vdm_attn')
    again = call(*common, f'--outdir={tmp_path / "denoised"}', f'--denoiser={moved}')
    assert again.exit_code == 0 and ' 0 of them new' in again.output, again.output
    path = moved / 'checkpoints' / 'checkpoint_1.pth'
    torch.save(torch.load(path, weights_only=True) | dict(step=60_000), path)
    other = call(*common, f'--outdir={tmp_path / "denoised"}', f'--denoiser={moved}')
    assert other.exit_code == 1 and '--outdir: ' in other.output and 'denoiser_sha256 was' in other.output
    wrong = write_run(tmp_path / 'wrong', 'ncsnpp')
    result = call(*common, f'--outdir={tmp_path / "no"}', f'--denoiser={wrong}')
    assert result.exit_code == 1 and '--denoiser: ' in result.output and 'another size' in result.output


@pytest.mark.parametrize('args, message', [
    (['--class=10'], "--class: 10 is beyond the network's labels; use 0 to 9"),
    (['--label=12'], "--class: 12 is beyond the network's labels"),
    (['--w=-1'], '--w'),
    (['w=-1'], '--w'),
    (['sampling.methd=ode'], 'KEY=VALUE: sampling.methd is not a key; the nearest is sampling.method'),
    (['sampling.predictor=ancestral'], 'is not euler_maruyama, the only one'),
    (['--published_sampler'], '--published_sampler: is a predictor-corrector; use --sampler=pc'),
    (['--sampler=pc', '--dg_weight_2nd_order=1'], '--dg_weight_2nd_order: the steps of this --sampler have no second'),
    (['--sampler=ode', '--dg_weight_2nd_order=1'], '--dg_weight_2nd_order: the steps of this --sampler have no second'),
    (['--checkpoint=7'], 'holds no checkpoint_7.pth'),
    (['--sampler=ode', '--tolerance=1e-300'], '--tolerance'),
])
def test_bad_input(runs, tmp_path, args, message):
    result = call(f'--network={runs["adm"]}', f'--outdir={tmp_path / "out"}', '--seeds=0-1', *args)
    assert result.exit_code in (1, 2) and message in result.output
    assert not list(tmp_path.glob('out/samples*'))


def test_guidance_needs_classes(runs, tmp_path):
    result = call(f'--network={runs["vdm_attn"]}', f'--outdir={tmp_path}', '--seeds=0', '--w=1')
    assert result.exit_code == 1 and '--w: guidance needs a network with classes' in result.output
    result = call(f'--network={tmp_path}', f'--outdir={tmp_path}', '--seeds=0')
    assert result.exit_code == 1 and 'no .hydra/config.yaml' in result.output


@pytest.fixture(scope='module')
def trained(runs, files, tmp_path_factory):
    """The folder of a discriminator of a reflected network's samples; train.py finds their noise by itself."""
    folder = tmp_path_factory.mktemp('trained')
    result = call(f'--network={runs["vdm_attn"]}', f'--outdir={folder / "gen"}', '--seeds=0-11', '--steps=2')
    assert result.exit_code == 0, result.output
    np.savez(folder / 'real.npz', samples=np.random.RandomState(0).randint(256, size=[12, 16, 16, 3], dtype=np.uint8))
    result = CliRunner().invoke(train.main, [
        f'--savedir={folder / "run"}', f'--gendir={folder / "gen"}', f'--datadir={folder / "real.npz"}', '--epoch=1',
        '--batch=8', '--width=64', '--depth=1', '--img_resolution=16', '--device=cpu', '--precision=fp32',
        f'--pretrained_classifier_ckpt={files / "classifier.pt"}'])
    assert result.exit_code == 0, result.output
    return folder / 'run'


def test_guidance_by_a_discriminator_of_reflected_noise(runs, files, trained, tmp_path):
    """Trained by train.py, which writes what its noise is; guided images are the library's."""
    assert sorted(path.name for path in trained.glob('*.safetensors')) == ['best.safetensors',
                                                                          'discriminator_1.safetensors']
    assert not (trained / 'best.pt').exists() and not (trained / 'discriminator_1.pt').exists()
    assert json.loads((trained / 'options.json').read_text())['process'] == 'reflected'
    disc = trained / 'best.safetensors'
    result = call(f'--network={runs["vdm_attn"]}', f'--outdir={tmp_path}', '--seeds=0-2', '--steps=3',
                  f'--pretrained_classifier_ckpt={files / "classifier.pt"}', f'--discriminator_ckpt={disc}',
                  '--dg_weight_1st_order=3', '--dg_weight_2nd_order=1')
    assert result.exit_code == 0, result.output
    net = load_reflected(runs['vdm_attn'])
    log_ratio = load_log_ratio(net, files / 'classifier.pt', disc)
    guidance = DiscriminatorGuidance(log_ratio, 3, 1)
    assert guidance.sigma_low == pytest.approx(DiscriminatorGuidance(exact_zero, 3, 1).sigma_low / 2)
    expected = sample(reflected_heun, net, range(3), guidance=guidance, levels=reflected_levels(net, 3), progress=False)
    assert np.abs(images_in(tmp_path).astype(int) - to_uint8(net.decode(expected.images))).max() <= 1
    options = json.loads((tmp_path / 'options.json').read_text())
    assert options['dg_weight_1st_order'] == 3 and len(options['discriminator_sha256']) == 16
    assert options['report']['discriminator_calls']['mean'] == expected.costs['discriminator_calls'].mean() > 0


def exact_zero(x, sigma, class_labels=None):
    return x.flatten(1).sum(1) * 0


def test_discriminators_of_other_noise_are_refused(runs, files, trained, tmp_path):
    guided = ['--dg_weight_1st_order=1', f'--pretrained_classifier_ckpt={files / "classifier.pt"}',
              f'--outdir={tmp_path / "out"}', '--seeds=0', '--device=cpu']
    result = call(f'--network={runs["vdm_attn"]}', f'--discriminator_ckpt={files / "disc_uncond.pt"}', *guided)
    assert result.exit_code == 1 and 'was trained at gaussian noise, the network has reflected noise' in result.output
    result = CliRunner().invoke(generate.main, [
        f'--network={files / "uncond.safetensors"}', f'--discriminator_ckpt={trained / "best.safetensors"}', *guided])
    assert result.exit_code == 1 and 'was trained at reflected noise, the network has gaussian noise' in result.output
    result = CliRunner().invoke(train.main, [
        f'--savedir={tmp_path / "out"}', '--process=reflected', f'--network={files / "uncond.safetensors"}',
        f'--pretrained_classifier_ckpt={files / "classifier.pt"}', '--img_resolution=16'])
    assert result.exit_code == 1 and '--network: measures a correction of Gaussian noise' in result.output
    assert not (tmp_path / 'out').exists()


class Images:
    """A data set of single pixels."""

    def __init__(self, count):
        self.images, self.labels = torch.arange(count).reshape(-1, 1, 1, 1).to(torch.uint8), None

    def __len__(self):
        return len(self.images)


def test_likelihood_of_single_pixels():
    """One dimension: the divergence needs no probes, and the density is known."""
    data, net = Images(256), CosineNet()
    found = likelihood(net, data, probes=2, batch=100, device='cpu')
    u = StackedRandomGenerator('cpu', range(256)).rand([256, 1, 1, 1], dtype=torch.float64)
    bits = 8 - net.log_density((data.images + u) / 256, net.sigma_min) / math.log(2)
    assert found['bits_per_dim'] == pytest.approx(bits.mean().item(), abs=1e-4)
    assert found['standard_error'] == pytest.approx(bits.std().item() / 16, abs=1e-4)
    assert found['probe_spread'] < 1e-9 and found['images'] == 256
    assert likelihood(net, data, probes=2, batch=256, device='cpu') == pytest.approx(found, abs=1e-9)


def test_likelihood_from_the_command_line(runs, tmp_path):
    images = np.random.RandomState(0).randint(256, size=[3, 16, 16, 3], dtype=np.uint8)
    np.savez(tmp_path / 'data.npz', samples=images)
    common = [f'--network={runs["vdm_attn"]}', f'--outdir={tmp_path / "out"}', '--tolerance=1000']
    result = call(*common, f'--likelihood={tmp_path / "data.npz"}', '--probes=2', '--max_images=2')
    assert result.exit_code == 0 and 'bits per dimension of 2 images' in result.output
    found = json.loads((tmp_path / 'out' / 'likelihood.json').read_text())
    assert found['images'] == 2 and found['probe_spread'] > 0 and found['moll'] == 200
    np.savez(tmp_path / 'small.npz', samples=images[:, :8, :8])
    result = call(*common, f'--likelihood={tmp_path / "data.npz"}', '--dg_weight_1st_order=1')
    assert result.exit_code == 1 and 'guided samples have no known density' in result.output
    result = call(*common, f'--likelihood={tmp_path / "small.npz"}')
    assert result.exit_code == 1 and '--likelihood: ' in result.output and '8x8' in result.output
