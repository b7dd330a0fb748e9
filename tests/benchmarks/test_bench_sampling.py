"""The benchmark of sampling: its tables add up, and the published code, if there is any, does the same work."""

import functools
import os
import re

import click
import pytest
import torch
from click.testing import CliRunner
from sampler_runs import run_edm
from script_runs import ForkedWorker

import networks
from benchmarks import bench_sampling as bench
from benchmarks import modes as bench_modes
from benchmarks import reference_client
from benchmarks.common import matrix_peak
from benchmarks.reference_client import NEEDED, Reference, find_checkouts
from sampling.guidance import DiscriminatorGuidance

CPU = torch.device('cpu')
TINY = ['--batch=1', '--steps=3', '--images=1', '--rounds=1', '--precision=fp32', '--device=cpu']
DEMO = bench_modes.network_files('demo', None)
REFERENCE = os.environ.get('REFERENCE_DIR')
needs_reference = pytest.mark.skipif(not REFERENCE, reason='REFERENCE_DIR names no folder of published checkouts')

# Replaces EDM's module: returns its input, and fails at batches of 3.
FAKE_EDM = '''
import torch

class EDMPrecond(torch.nn.Module):
    def __init__(self, img_channels, img_resolution, **kwargs):
        super().__init__()
        self.img_channels, self.img_resolution = img_channels, img_resolution

    def load_state_dict(self, state):
        assert all(torch.is_tensor(value) for value in state.values())

    def forward(self, x, sigma):
        if len(x) == 3:
            raise RuntimeError('three is too many')
        print('the published code prints')
        return x
'''


@pytest.fixture
def quick(monkeypatch):
    """Short timings."""
    monkeypatch.setattr(bench, 'CALLED_IMAGES', 2)
    monkeypatch.setattr(bench, 'GROWTH_STEPS', (2, 3))
    monkeypatch.setattr(bench, 'matrix_peak', functools.partial(matrix_peak, size=64))


@pytest.fixture
def tiny(monkeypatch, files):
    """Networks of 16x16 images instead of the demo's."""
    monkeypatch.setattr(bench, 'network_files', lambda kind, folder: dict(
        score=files / 'uncond.safetensors', classifier=files / 'classifier.pt', discriminator=files / 'disc_uncond.pt'))


def tables(*arguments):
    """title -> rows (name -> cells by column) of the tables that a run prints."""
    result = CliRunner().invoke(bench.main, [*TINY, *arguments])
    assert result.exit_code == 0, result.output
    found = {}
    for text in re.split(r'\n\n(?=[^|])', result.output)[1:]:
        lines = text.strip().splitlines()
        rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if line.startswith('|')]
        if rows:
            found[lines[0]] = {row[0]: dict(zip(rows[0], row)) for row in rows[2:]}
    return found


def check_row(row):
    """All figures follow from the time."""
    assert float(row['img/s']) * float(row['ms/img']) == pytest.approx(1000, rel=0.01)
    assert float(row['TFLOP/s']) > 0 and int(row['share of peak'].rstrip('%')) >= 0


def shares(row):
    return {name: float(share) for name, share in re.findall(r'([a-z ]+) ([\d.]+)%', row['parts'])}


@pytest.mark.parametrize('what, titles', [('score', 1), ('discriminator', 2), ('growth', 3)])
def test_tables_of_networks(quick, tiny, what, titles):
    found = tables(f'--what={what}')
    assert len(found) == titles
    for rows in found.values():
        assert rows
        for row in rows.values():
            check_row(row)


def test_tables_of_samplers_take_the_time_apart(quick, tiny):
    found = tables('--what=dg,diffrs')
    assert [title.split(',')[0] for title in found] == ['DG', 'DiffRS', 'DiffRS']
    for rows in found.values():
        for row in rows.values():
            check_row(row)
            parts = shares(row)
            assert list(map(str.strip, parts)) == ['score network', 'discriminator', 'host']
            assert sum(parts.values()) == pytest.approx(100, abs=0.2) and min(parts.values()) >= 0


def test_ratios_refer_to_the_published_code(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(reference_client, 'start_worker', ForkedWorker)
    (tmp_path / 'edm' / 'training').mkdir(parents=True)
    (tmp_path / 'edm' / 'training' / '__init__.py').touch()  # else this project's package of that name comes first
    (tmp_path / 'edm' / 'training' / 'networks.py').write_text(FAKE_EDM)
    (rows,) = tables('--what=score', f'--reference={tmp_path}').values()
    assert list(rows) == ['fp32', bench.PUBLISHED]
    expected = float(rows[bench.PUBLISHED]['ms/img']) / float(rows['fp32']['ms/img'])
    assert float(rows['fp32']['ratio']) == pytest.approx(expected, abs=0.006)
    assert rows[bench.PUBLISHED]['ratio'] == '1.00'


def test_the_worker_answers_and_its_failures_are_shown(tmp_path):
    (tmp_path / 'NVlabs+edm' / 'training').mkdir(parents=True)
    (tmp_path / 'NVlabs+edm' / 'training' / 'networks.py').write_text(FAKE_EDM)
    paths = find_checkouts(str(tmp_path), ['edm'])
    net = bench_modes.load_modes(DEMO, ['fp32'], False, CPU)['fp32'].net
    with Reference(paths, DEMO, CPU) as reference:
        answer = reference.run('score', batch=2, calls=3)
        assert answer == dict(images=6, mean=pytest.approx(bench_modes.noise(net, 2, CPU).abs().mean().item()))
        with pytest.raises(click.ClickException, match='failed at score: RuntimeError: three is too many'):
            reference.run('score', batch=3, calls=1)


def test_mistakes_end_in_one_line(tmp_path):
    for argument, message in ((f'--reference={tmp_path}', 'git clone https://github.com/NVlabs/edm'),
                              ('--what=speed', "'speed' is not one of"), ('--batch=0', 'at least 1 image'),
                              ('--precision=fp16', 'fp16 needs a GPU')):
        result = CliRunner().invoke(bench.main, [*TINY, argument])
        assert result.exit_code and message in result.output and argument.split('=')[0] in result.output


def test_full_size_is_the_published_size():
    with torch.device('meta'):
        net = networks.construct('EDMPrecond', bench_modes.FULL_SIZE['score'])
    assert sum(p.numel() for p in net.parameters()) == 55_733_891


@needs_reference
def test_published_code_does_the_same_work():
    mode = bench_modes.load_modes(DEMO, ['fp32'], False, CPU)['fp32']
    x, sigma = bench_modes.noise(mode.net, 2, CPU), torch.ones(2)
    expected = dict(score=mode.net(x, sigma), log_ratio=mode.log_ratio.value(x, sigma),
                    gradient=mode.log_ratio.value_and_grad(x, sigma)[1])
    for what, works in dict(score=['score'], discriminator=['log_ratio', 'gradient']).items():
        with Reference(find_checkouts(REFERENCE, NEEDED[what]), DEMO, CPU) as reference:
            for work in works:
                answer = reference.run(work, batch=2, calls=1)
                assert answer['mean'] == pytest.approx(expected[work].abs().mean().item(), rel=1e-4), work
    images = run_edm(mode.net, x, num_steps=3, guidance=DiscriminatorGuidance(mode.log_ratio))
    with Reference(find_checkouts(REFERENCE, NEEDED['dg']), DEMO, CPU) as reference:
        answer = reference.run('dg', batch=2, steps=3)
    assert answer['mean'] == pytest.approx(images.abs().mean().item(), rel=1e-3)


@needs_reference
def test_all_tables_with_the_published_code(quick):
    found = tables(f'--reference={REFERENCE}')
    assert len(found) == 6
    for rows in found.values():
        assert list(rows) == ['fp32', bench.PUBLISHED]
        expected = float(rows[bench.PUBLISHED]['ms/img']) / float(rows['fp32']['ms/img'])
        assert float(rows['fp32']['ratio']) == pytest.approx(expected, abs=0.01)
