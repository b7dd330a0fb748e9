"""The benchmarks of training and measuring: tables add up, and the published code, if there is any, is timed."""

import functools
import os
import re

import pytest
import torch
from click.testing import CliRunner
from script_runs import ForkedWorker

from benchmarks import bench_metrics, bench_training, reference_client
from benchmarks.common import matrix_peak
from benchmarks.modes import network_files
from metrics.detectors import Detector

CPU = torch.device('cpu')
REFERENCE = os.environ.get('REFERENCE_DIR')
needs_reference = pytest.mark.skipif(not REFERENCE, reason='REFERENCE_DIR names no folder of published checkouts')

# Replaces DG's script: the formula for diagonal covariances, off by 2e-3.
FAKE_FID = '''
import numpy as np

def calculate_fid_from_inception_stats(mu, sigma, mu_ref, sigma_ref):
    import scipy.linalg
    root = scipy.linalg.sqrtm(sigma @ sigma_ref).real
    return float(np.square(mu - mu_ref).sum() + np.trace(sigma + sigma_ref - 2 * root)) + 2e-3
'''


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A small matrix product; its rate is not used."""
    for module in (bench_metrics, bench_training):
        monkeypatch.setattr(module, 'matrix_peak', functools.partial(matrix_peak, size=64))


def call(command, *arguments):
    return CliRunner().invoke(command, [*arguments, '--rounds=1', '--device=cpu'])


def tables(command, *arguments):
    """(title -> rows (name -> cells by column) of the tables that a run prints, all that it prints)."""
    result = call(command, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    found = {}
    for text in re.split(r'\n\n(?=[^|\n]+\n\n\|)', result.output)[1:]:
        lines = text.strip().splitlines()
        rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if line.startswith('|')]
        found[lines[0]] = {row[0]: dict(zip(rows[0], row)) for row in rows[2:]}
    for rows in found.values():
        for row in rows.values():
            assert float(row['img/s']) * float(row['ms/img']) == pytest.approx(1000, rel=0.01)
    return found, result.output


@pytest.mark.parametrize('what', ['discriminator', 'score'])
def test_training_tables(what, monkeypatch, files):
    demo = network_files('demo', None)
    monkeypatch.setattr(bench_training, 'network_files', lambda *_: demo | dict(score=files / 'uncond.safetensors'))
    found, _ = tables(bench_training.main, f'--what={what}', '--network=demo', '--batch=2', '--precision=fp32',
                      '--growth=1,2')
    steps, growth = found.values()
    assert list(steps) == ['fp32'] and list(growth) == ['batch 1', 'batch 2']
    rates = [float(row['TFLOP/s']) * float(row['ms/img']) for row in (steps['fp32'], *growth.values())]
    assert rates == pytest.approx([rates[0]] * 3, rel=0.02)  # operations per image do not depend on the batch


@pytest.mark.parametrize('what', ['discriminator', 'score'])
def test_what_is_timed_is_a_training_step(what):
    trainer = bench_training.make_trainer(what, network_files('demo', None), 2, 'fp32', False, CPU)
    before = [p.clone() for p in trainer.parameters]
    step = bench_training.make_step(what, trainer, 'fp32', 2, CPU)
    assert step() == 2 and trainer.nimg == 2
    assert any((p != old).any() for p, old in zip(trainer.parameters, before))
    if what == 'discriminator':  # as train.py: bf16 is the classifier's; the discriminator computes in float32
        trainer = bench_training.make_trainer(what, network_files('demo', None), 2, 'bf16', False, CPU)
        assert trainer.module.body_dtype == torch.float32


def test_traces_agree_with_scipy_and_with_the_exact_one():
    found, output = tables(bench_metrics.main, '--what=trace', '--dim=64')
    assert all(list(rows) == ['ours', 'scipy.linalg.sqrtm'] for rows in found.values()) and len(found) == 2
    assert float(re.search(r'from scipy.linalg.sqrtm: ours ([\d.e+-]+)', output)[1]) < 1e-9
    # eigenvalues at the rounding of the largest, 1e-17 of it, have roots of 3e-9
    assert float(re.search(r'from the exact one: ours ([\d.e+-]+)', output)[1]) < 1e-8


def test_trace_by_published_code(tmp_path, monkeypatch):
    """A wrong answer shows as a difference, so the checkout's answer is the one compared."""
    monkeypatch.setattr(reference_client, 'start_worker', ForkedWorker)
    (tmp_path / 'DG' / 'guided_diffusion').mkdir(parents=True)
    (tmp_path / 'DG' / 'guided_diffusion' / 'unet.py').touch()
    (tmp_path / 'DG' / 'fid_npzs.py').write_text(FAKE_FID)
    found, output = tables(bench_metrics.main, '--what=trace', '--dim=16', f'--reference={tmp_path}')
    assert all(list(rows) == ['ours', 'published'] for rows in found.values())
    assert float(re.search(r'from published: ours ([\d.e+-]+)', output)[1]) == pytest.approx(1e-3, rel=1e-6)


def test_features_and_one_pass(monkeypatch):
    """Means of the channels replace the features of the shipped detector."""
    monkeypatch.setattr(bench_metrics, 'load_detector', lambda *_: Detector(
        'cifar10', 'FD-CIFAR10', 3, CPU, lambda images: images.float().mean([2, 3])))
    found, output = tables(bench_metrics.main, '--what=features,fid', '--batch=1', '--images=20', '--precision=fp32')
    classes, inception, features = found.values()
    for rows in (classes, inception):
        parts = ('reading alone', 'features alone', 'moments alone')
        assert list(rows) == ['one pass', *parts, 'the parts in turn']
        total = sum(float(rows[name]['ms/img']) for name in parts)
        assert float(rows['the parts in turn']['ms/img']) == pytest.approx(total, rel=0.01)
    assert list(features) == ['fp32', 'fp32, as published']
    assert float(re.search(r'from float32: fp32 ([\d.e+-]+)', output)[1]) < 1e-5
    assert output.count('largest memory: ') == 2


def test_neighbours_and_two_detectors(monkeypatch):
    """Pixels replace Inception's features."""
    monkeypatch.setattr(bench_metrics, 'InceptionV3', torch.nn.Identity)
    monkeypatch.setattr(bench_metrics, 'inception', lambda *args: lambda images: images.flatten(1)[:, :2048].float())
    found, output = tables(bench_metrics.main, '--what=neighbours,detectors', '--batch=10', '--images=20', '--dim=8',
                           '--rounds=1')
    rows, = found.values()
    assert list(rows) == ['both in one pass', 'cifar10', 'inception', 'the two in turn']
    total = sum(float(rows[name]['ms/img']) for name in ('cifar10', 'inception'))
    assert float(rows['the two in turn']['ms/img']) == pytest.approx(total, rel=0.01)
    assert re.search(r'20 x 20 features of 8 dimensions: [\d.]+ s, [\d.]+ s of cores; largest memory \d+ MiB', output)


@pytest.mark.parametrize('command, argument, message', [
    (bench_training.main, '--reference=nowhere', 'git clone'), (bench_metrics.main, '--reference=nowhere', 'git clone'),
    (bench_training.main, '--batch=0', 'at least 1 image'), (bench_training.main, '--growth=0', 'at least 1 image'),
    (bench_metrics.main, '--precision=fp16', 'fp16 needs a GPU')])
def test_mistakes_end_in_one_line(command, argument, message):
    result = call(command, argument)
    assert result.exit_code == 1 and result.output.count('\n') == 1
    assert message in result.output and argument.split('=')[0] in result.output


@needs_reference
def test_published_steps_and_distance():
    found, _ = tables(bench_training.main, '--network=demo', '--batch=2', '--precision=fp32',
                      f'--reference={REFERENCE}')
    for rows in found.values():
        assert list(rows) == ['fp32', bench_training.PUBLISHED]
        expected = float(rows[bench_training.PUBLISHED]['ms/img']) / float(rows['fp32']['ms/img'])
        assert float(rows['fp32']['ratio']) == pytest.approx(expected, abs=0.01)
    _, output = tables(bench_metrics.main, '--what=trace', '--dim=64', f'--reference={REFERENCE}')
    assert float(re.search(r'from published: ours ([\d.e+-]+)', output)[1]) < 1e-9
