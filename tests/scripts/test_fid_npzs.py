"""fid_npzs.py from the command line: published output, agreement with a direct computation, bad input."""

import errno
import json
import re
from pathlib import Path

import goldens
import measuring
import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from script_runs import run_forked, watch_rank0_first

import fid_npzs
from dnnlib import demo
from metrics.detectors import load_detector
from metrics.frechet import frechet_distance
from metrics.kid import kernel_distance
from metrics.measure import measure, sample_positions
from metrics.reference import Reference, load_reference
from metrics.sources import open_source

ROOT = goldens.GOLDENS.parent.parent


@pytest.fixture
def place(tmp_path, monkeypatch):
    return measuring.make_place(tmp_path, monkeypatch)


def run(*args):
    return CliRunner().invoke(fid_npzs.main, [str(arg) for arg in args])


def printed(result):
    """The distance of the published line '<folder>, <distance>'."""
    return float(re.search(r'\brun, (\S+)\n', result.output)[1])


def expected(first, count):
    """(Frechet distance, KID) of images first to first + count - 1, all at once."""
    shards = [samples_of(f'samples/run/samples_{n:08d}.npz') for n in (0, 20, 40)]
    x = torch.from_numpy(np.concatenate(shards)[first:first + count]).permute(0, 3, 1, 2)
    f = load_detector('cifar10')(x)
    ref = load_reference(demo.DEMO_STATS)
    sigma = np.cov(f.double().numpy(), rowvar=False)
    distance = frechet_distance(f.double().mean(0).numpy(), sigma, ref.mu, ref.sigma)
    return distance, kernel_distance(f, torch.from_numpy(ref.features)).value


def samples_of(path):
    with np.load(path, allow_pickle=False) as file:
        return file['samples']


def test_published_command_and_output(place):
    result = run('--ref=/stats/demo.npz', '--num_samples=50', '--images=/samples/run/')
    assert result.exit_code == 0, result.output
    distance, kid = expected(0, 50)
    assert printed(result) == pytest.approx(distance, rel=1e-4)
    assert re.search(r'samples/run: 60 images, 50 used', result.output)
    row = next(line for line in result.output.splitlines() if line.startswith('run  '))
    assert 'FD-CIFAR10' in result.output and 'FID' not in result.output
    assert float(re.search(r'(\S+) \+- \S+$', row)[1]) == pytest.approx(1000 * kid, rel=1e-2)


@pytest.mark.parametrize('batch', [7, 64])
def test_blocks_in_the_order_of_seeds(place, batch):
    (place / 'samples/run/options.json').write_text(json.dumps(dict(weight_1st=2.0)))
    result = run('--images=samples/run', '--num_samples=20', '--blocks=3', f'--batch={batch}', '--json=out/r.json')
    assert result.exit_code == 0, result.output
    report = json.loads((place / 'out/r.json').read_text())
    assert (report['metric'], report['num_samples'], report['ref_count']) == ('FD-CIFAR10', 20, 80)
    found = report['results'][0]
    truth = np.array([expected(first, 20) for first in (0, 20, 40)])
    np.testing.assert_allclose([block['distance'] for block in found['blocks']], truth[:, 0], rtol=1e-5)
    np.testing.assert_allclose([block['kid'] for block in found['blocks']], truth[:, 1], rtol=1e-3)
    np.testing.assert_allclose(found['distance'], truth[:, 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(found['distance_deviation'], truth[:, 0].std(ddof=1), rtol=1e-3)
    assert found['options'] == dict(weight_1st=2.0)


def test_statistics_of_the_images(place):
    result = run('--images=samples/run', '--num_samples=60', '--save_stats=mine.npz')
    assert result.exit_code == 0, result.output
    saved = load_reference('mine.npz')
    assert (saved.detector, saved.count, saved.source, saved.features.shape) == ('cifar10', 60, 'run', (60, 12))
    again = run('--images=samples/run', '--num_samples=60', '--ref=mine.npz')
    assert abs(printed(again)) < 1e-6


def test_a_full_disk_leaves_the_distance(place, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(Reference, 'save', full)
    result = run('--images=samples/run', '--num_samples=60', '--save_stats=mine.npz')
    assert result.exit_code == 1 and 'Error: --save_stats: ' in result.output and printed(result) > 0


def test_image_files_in_order_of_class_are_not_taken_in_order(place):
    """Half of a folder of two classes, the first dark, is half of each."""
    for index in range(60):
        Path('files').mkdir(exist_ok=True)
        PIL.Image.new('RGB', (32, 32), (200 * (index // 30),) * 3).save(f'files/{"ab"[index // 30]}{index:02d}.png')
    result = run('--images=files', '--num_samples=30', '--save_stats=part.npz')
    assert result.exit_code == 0, result.output
    detector = load_detector('cifar10')
    dark, bright = (detector(torch.full([1, 3, 32, 32], value, dtype=torch.uint8))[0] for value in (0, 200))
    mean, way = torch.from_numpy(load_reference('part.npz').mu).float(), bright - dark
    share = (mean - dark) @ way / way.square().sum()
    assert 0.25 < share < 0.75


def test_one_rank_fetches_before_the_others(place, monkeypatch):
    """Statistics and weights: all ranks would write into the same cache."""
    calls = watch_rank0_first(monkeypatch, fid_npzs, fetch=fid_npzs.fetch, load_detector=fid_npzs.load_detector)
    result = run('--images=samples/run', '--num_samples=20')
    assert result.exit_code == 0, result.output
    assert calls == [('fetch', True), ('load_detector', True)]


def test_several_folders(place):
    np.savez(place / 'other.npz', samples=np.zeros([60, 32, 32, 3], np.uint8))
    result = run('--images=samples/run', '--images=other.npz', '--num_samples=60')
    assert result.exit_code == 0, result.output
    assert 'run, ' in result.output and 'other.npz, ' in result.output


def test_sample_of_features():
    """One from each stretch, and not all from one class if classes repeat."""
    found = sample_positions(50_000, 5000)
    assert (found // 10).tolist() == list(range(5000)) and (found % 10).bincount(minlength=10).min() > 400
    assert (sample_positions(10, 3) // torch.tensor([3, 3, 4])).tolist() == [0, 1, 1]
    assert sample_positions(3, 10).tolist() == [0, 1, 2]
    assert sample_positions(5, 0).tolist() == []


@pytest.mark.parametrize('processes', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_give_the_same_numbers(place, processes):
    """Each rank measures its own part of the images, even a part of a shard; distances agree to 1e-9."""
    (place / 'job.py').write_text(
        'import sys\n'
        'from torch_utils import distributed as dist\n'
        'from metrics.detectors import load_detector\n'
        'from metrics.measure import measure\n'
        'from metrics.sources import open_source\n'
        'import torch\n'
        'dist.init()\n'
        'torch.set_num_threads(1)\n'
        'detector = load_detector("cifar10", path="features.safetensors")\n'
        'found = measure(open_source("samples/run"), detector, 3, 58, batch=8, max_features=20)\n'
        'if dist.get_rank() == 1:\n'
        '    mu, sigma = map(torch.from_numpy, found.moments.finish())\n'
        '    torch.save(dict(features=found.features, mu=mu, sigma=sigma), "rank1.pt")\n'
        'dist.shutdown()\n')
    run_forked('job.py', processes=processes, cwd=place).check_returncode()
    alone = measure(open_source('samples/run'), load_detector('cifar10'), 3, 58, batch=8, max_features=20)
    found = torch.load('rank1.pt', weights_only=True)
    assert torch.equal(found['features'], alone.features)
    dim = len(found['mu'])
    distances = [frechet_distance(*moments, np.zeros(dim), np.eye(dim))
                 for moments in ((found['mu'].numpy(), found['sigma'].numpy()), alone.moments.finish())]
    assert distances[0] == pytest.approx(distances[1], rel=1e-9)


def assert_one_line(result, *parts, code=1):
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    error = [line for line in result.output.splitlines() if line.startswith('Error')]
    assert len(error) == 1 and 'Traceback' not in result.output
    for part in parts:
        assert part in error[0], error[0]


@pytest.mark.parametrize('args, parts', [
    (['--num_samples=61'], ['--images', '60 images, fewer than the 61']),
    (['--num_samples=30', '--blocks=3'], ['--images', 'fewer than the 90']),
    (['--images=nowhere'], ['--images', 'nowhere does not exist']),
    (['--ref=nowhere.npz'], ['--ref', 'nowhere.npz does not exist']),
    (['--ref=samples/run/samples_00000000.npz'], ['--ref', 'no mu and no sigma', 'holds samples']),
    (['--ref=features.safetensors'], ['--ref', 'not a complete npz']),
    (['--ref=objects.npz'], ['--ref', '`mu` holds objects']),
    (['--ref=square.npz'], ['--ref', 'not [D] and [D, D]']),
    (['--ref=published.npz'], ['--detector', 'say which made them']),
    (['--ref=published.npz', '--detector=cifar10'], ['--detector', '64 features', 'cifar10 12']),
    (['--ref=inception.npz', '--detector=cifar10'], ['--detector', 'inception, not cifar10']),
    (['--ref=old.npz'], ['--detector', 'cifar10 00000000', 'again']),
    (['--detector=nvidia'], ['--detector', '--allow_code']),
    (['--detector_ckpt=nowhere.pth'], ['--detector', 'nowhere.pth does not exist']),
    (['--device=cuda:77'], ['--device']),
    (['--precision=fp16', '--device=cpu'], ['--precision', 'fp16']),
    (['--save_stats=a.npz', '--blocks=2', '--num_samples=20'], ['--save_stats']),
    (['--images=big.npz', '--num_samples=4'], ['--images', '[N, 3, 32, 32]']),
])
def test_bad_input(place, args, parts):
    np.savez('objects.npz', mu=np.array([None]), sigma=np.zeros([1, 1]))
    np.savez('square.npz', mu=np.zeros(3), sigma=np.zeros(3))
    np.savez('published.npz', mu=np.zeros(64), sigma=np.eye(64))
    np.savez('inception.npz', mu=np.zeros(2048), sigma=np.zeros([2048, 2048]), detector='inception')
    np.savez('old.npz', mu=np.zeros(12), sigma=np.eye(12), detector='cifar10', fingerprint='00000000')
    np.savez('big.npz', samples=np.zeros([4, 64, 64, 3], np.uint8))
    defaults = [arg for arg in ('--images=samples/run', '--num_samples=50')
                if not any(other.startswith(arg.split('=')[0] + '=') for other in args)]
    before = sorted(place.rglob('*'))
    assert_one_line(run(*defaults, *args), *parts)
    assert sorted(place.rglob('*')) == before


def test_options_of_the_wrong_kind(place):
    assert_one_line(run('--num_samples=50'), '--images', code=2)
    assert_one_line(run('--images=samples/run', '--num_samples=1'), '--num_samples', code=2)
    assert_one_line(run('--images=samples/run', '--detector=vgg'), '--detector', code=2)


def test_damaged_shard_leaves_no_report(place):
    path = place / 'samples/run/samples_00000020.npz'
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 255
    path.write_bytes(blob)
    assert_one_line(run('--images=samples/run', '--num_samples=60', '--json=r.json'), '--images', 'damaged')
    assert not (place / 'r.json').exists()
