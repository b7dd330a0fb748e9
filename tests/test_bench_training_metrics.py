"""The benchmarks of training and measuring run and print what they say; sizes are tiny, figures mean nothing."""

import re

import pytest
import torch
from click.testing import CliRunner

from benchmarks import bench_metrics, bench_training


def call(command, *args):
    result = CliRunner().invoke(command, [*args, '--rounds=1', '--device=cpu'])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize('what', ['discriminator', 'score'])
def test_training_steps(what):
    result = call(bench_training.main, f'--what={what}', '--batch=2', '--precision=fp32')
    assert result.exit_code == 0, result.output
    rate, milliseconds = re.search(r'\| fp32 \| ([\d.]+) \| ([\d.]+) \|', result.output).groups()
    assert float(rate) * float(milliseconds) == pytest.approx(1000, rel=0.01)


def test_a_trained_step_changes_the_weights(tmp_path):
    """What is timed is a step of training."""
    files = bench_training.network_files('demo', tmp_path)
    trainer = bench_training.make_trainer('discriminator', files, 2, 'fp32', False, torch.device('cpu'))
    before = [p.clone() for p in trainer.parameters]
    trainer.train_step()
    assert any((p != old).any() for p, old in zip(trainer.parameters, before))


def test_metrics():
    result = call(bench_metrics.main, '--dim=16', '--batch=1', '--images=100')
    assert result.exit_code == 0, result.output
    differences = re.findall(r'difference ([\d.e+-]+) of', result.output)
    assert len(differences) == 2 and all(float(value) < 1e-4 for value in differences)
    assert '| torchvision, fp32 |' in result.output and 'all: 100 images' in result.output


def test_no_checkout():
    result = call(bench_training.main, '--reference=nowhere')
    assert result.exit_code == 1 and result.output.count('\n') == 1 and '--reference: no ' in result.output
