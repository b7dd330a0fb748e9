"""calc_metrics.py from the command line: values by direct computation, pairs, resuming, bad input."""

import json
import os
import shutil
from pathlib import Path

import goldens
import measuring
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from script_runs import run_forked, watch_rank0_first

import calc_metrics
import fid_npzs
from commands import measure as commands_measure
from dnnlib import demo
from metrics import evaluate
from metrics.detectors import load_detector
from metrics.frechet import frechet_distance
from metrics.inception_score import inception_score
from metrics.mind import mind
from metrics.neighbours import neighbours
from metrics.reference import Reference, load_reference

ROOT = goldens.GOLDENS.parent.parent


@pytest.fixture
def place(tmp_path, monkeypatch):
    """As for fid_npzs.py, with a second run of the same seeds whose images differ a little."""
    folder = measuring.make_place(tmp_path, monkeypatch)
    shutil.copytree(folder / 'samples/run', folder / 'samples/other')
    for path in (folder / 'samples/other').glob('*.npz'):
        with np.load(path, allow_pickle=False) as file:
            samples = file['samples']
        np.savez(path, samples=samples // 2)
    for name in ('run', 'other'):
        (folder / f'samples/{name}/options.json').write_text(json.dumps(dict(seeds='0-59')))
    return folder


def run(*args):
    return CliRunner().invoke(calc_metrics.main, [str(arg) for arg in args])


def calc(*args):
    result = run('calc', '--images=samples/run', *args)
    assert result.exit_code == 0, result.output
    return result


def features(first, count, name='run'):
    """Features and logits of images first to first + count - 1, all at once."""
    shards = [np.load(f'samples/{name}/samples_{n:08d}.npz', allow_pickle=False)['samples'] for n in (0, 20, 40)]
    detector = load_detector('cifar10')
    f = detector(torch.from_numpy(np.concatenate(shards)[first:first + count]).permute(0, 3, 1, 2))
    return f, detector.classify(f)


def moments(f):
    return f.double().mean(dim=0).numpy(), np.cov(f.double().numpy(), rowvar=False)


def test_every_metric_by_direct_computation(place):
    calc('--num=30', '--blocks=2', '--json=r.json', '--batch=7')
    found, = json.loads(Path('r.json').read_text())['summaries']
    ref = load_reference(demo.DEMO_STATS)
    y = torch.from_numpy(ref.features).float()
    blocks = []
    for first in (0, 30):
        f, logits = features(first, 30)
        blocks.append(dict(
            fd=frechet_distance(*moments(f), ref.mu, ref.sigma),
            mind=mind(f, y).value, **{name: each.value for name, each in neighbours(f, y)._asdict().items()},
            **{'is': inception_score(logits).value}))
    metrics = found['results'][0]['metrics']
    assert set(metrics) == {*blocks[0], 'kid', 'fd_inf'}
    for name in blocks[0]:
        values = [block[name] for block in blocks]
        np.testing.assert_allclose(metrics[name]['values'], values, rtol=1e-4)
        assert metrics[name]['value'] == pytest.approx(np.mean(values), rel=1e-4)
        assert metrics[name]['deviation'] == pytest.approx(np.std(values, ddof=1), rel=1e-2, abs=1e-9)
        assert metrics[name]['error'] > 0 or metrics[name]['value'] in (0, 1)
    assert (found['distance'], found['num_samples'], found['blocks'], found['ref_count']) == ('FD-CIFAR10', 30, 2, 80)
    assert metrics['kid']['label'] == 'KID x 1000 (CIFAR10)' and metrics['fd_inf']['label'] == 'FD-CIFAR10-inf'


def test_same_numbers_as_fid_npzs(place):
    calc('--num=50', '--metrics=fd_cifar10,kid', '--json=r.json')
    CliRunner().invoke(fid_npzs.main, ['--images=samples/run', '--num_samples=50', '--json=f.json'])
    found = json.loads(Path('r.json').read_text())['summaries'][0]['results'][0]['metrics']
    expected = json.loads(Path('f.json').read_text())['results'][0]
    assert list(found) == ['fd', 'kid']
    assert found['fd']['value'] == pytest.approx(expected['distance'], rel=1e-12)
    assert (found['kid']['value'], found['kid']['error']) == (expected['kid'], expected['blocks'][0]['kid_error'])


def test_runs_of_the_same_seeds_are_compared_image_by_image(place):
    result = calc('--images=samples/other', '--num=60', '--metrics=fd,kid,fd_inf', '--json=r.json')
    paired = {each['metric']: each for each in json.loads(Path('r.json').read_text())['summaries'][0]['differences']}
    assert [each['paired'] for each in paired.values()] == [True, True, False]
    for num, seeds, same in (30, '0-29,40-69', True), (31, '0-29,40-69', False), (60, 'none', False):
        (place / 'samples/other/options.json').write_text(json.dumps(dict(seeds=seeds)))
        calc('--images=samples/other', f'--num={num}', '--metrics=fd', '--json=p.json')
        found, = json.loads(Path('p.json').read_text())['summaries'][0]['differences']
        assert found['paired'] == same
    (place / 'samples/other/options.json').write_text(json.dumps(dict(seeds='60-119')))
    calc('--images=samples/other', '--num=60', '--metrics=fd', '--json=s.json')
    plain, = json.loads(Path('s.json').read_text())['summaries'][0]['differences']
    assert not plain['paired'] and plain['difference'] == paired['fd']['difference']
    assert plain['error'] != paired['fd']['error']
    line = next(line for line in result.output.splitlines() if line.startswith('other - run  FD-CIFAR10 '))
    assert '(paired)' in line and line.rsplit(None, 1)[1] == paired['fd']['verdict']


def test_the_same_command_again_measures_only_what_is_missing(place, monkeypatch):
    seen = []
    measure_all = evaluate.measure_all
    monkeypatch.setattr(evaluate, 'measure_all', lambda source, *args, **kwargs: (
        seen.append(source.name), measure_all(source, *args, **kwargs))[1])
    first = calc('--num=30', '--metrics=fd,pr', '--json=r.json')
    again = calc('--num=30', '--metrics=fd,pr', '--json=r.json')
    assert seen == ['run'] and again.output.strip() in first.output
    whole = calc('--num=30', '--metrics=fd,pr', '--images=samples/other', '--json=r.json')
    assert seen == ['run', 'other'] and '(paired)' in whole.output
    calc('--num=30', '--metrics=fd,pr,mind', '--json=r.json')
    assert seen == ['run', 'other', 'run']
    calc('--num=30', '--metrics=pr', '--images=samples/other', '--json=r.json')  # of which one has more
    assert seen == ['run', 'other', 'run']
    os.utime('samples/run', ns=(0, 0))  # like a sample written again
    calc('--num=30', '--metrics=fd', '--json=r.json')
    assert seen == ['run', 'other', 'run', 'run']
    Path('r.json.npz').unlink()
    result = calc('--num=30', '--metrics=fd', '--images=samples/other', '--json=r.json')
    assert len(seen) == 4 and 'paired' not in result.output


def test_a_reference_and_what_made_it(place):
    result = run('ref', '--images=samples/run', '--dest=out/mine.npz', '--features=40')
    assert result.exit_code == 0, result.output
    made = load_reference('out/mine.npz')
    assert (made.detector, made.count, made.source, made.features.shape) == ('cifar10', 60, 'run', (40, 12))
    found = json.loads(made.provenance)
    assert found['count'] == 60 and found['precision'] == 'fp32' and found['torch'] == torch.__version__
    calc('--num=60', '--ref=out/mine.npz', '--metrics=fd,fd_inf', '--json=r.json')
    metrics = json.loads(Path('r.json').read_text())['summaries'][0]['results'][0]['metrics']
    assert abs(metrics['fd']['value']) < 1e-6


def test_two_spaces_in_one_pass(place, monkeypatch):
    """Statistics with and without features: the metrics that each allows, in separate tables."""
    ref = load_reference(demo.DEMO_STATS)
    Reference(ref.mu + 1, ref.sigma, 'cifar10', ref.fingerprint, 99).save('moments.npz')
    passes = []
    measure_all = evaluate.measure_all
    monkeypatch.setattr(evaluate, 'measure_all', lambda *args, **kwargs: (
        passes.append(len(args[1])), measure_all(*args, **kwargs))[1])
    calc(f'--ref={demo.DEMO_STATS}', '--ref=moments.npz', '--num=30', '--json=r.json')
    first, second = json.loads(Path('r.json').read_text())['summaries']
    assert passes == [2] and set(second['results'][0]['metrics']) == {'fd', 'is', 'fd_inf'}
    assert set(first['results'][0]['metrics']) > {'kid', 'recall', 'mind'}
    assert (second['ref_count'], second['ref_features']) == (99, 0)


def test_one_rank_fetches_before_the_others(place, monkeypatch):
    calls = watch_rank0_first(monkeypatch, commands_measure, fetch=commands_measure.fetch,
                              load_detector=commands_measure.load_detector)
    calc('--num=20', '--metrics=fd')
    assert calls == [('fetch', True), ('load_detector', True)]


@pytest.mark.slow
def test_processes_give_the_same_numbers(place):
    """Two ranks share the pass; values and pairs are those of one."""
    (place / 'job.py').write_text(
        'from pathlib import Path\n'
        'from dnnlib import demo\n'
        'demo.DEMO_FEATURES = Path("features.safetensors").resolve()\n'
        'import calc_metrics\n'
        'calc_metrics.main(["calc", "--images=samples/run", "--images=samples/other", "--num=30", "--device=cpu",\n'
        '                   "--ref=stats/demo.npz", "--json=two.json"])\n')
    run_forked('job.py', processes=2, cwd=place).check_returncode()
    calc('--images=samples/other', '--num=30', '--ref=stats/demo.npz', '--device=cpu', '--json=one.json')
    one, two = (json.loads(Path(f'{name}.json').read_text())['summaries'][0] for name in ('one', 'two'))
    for a, b in zip(one['results'], two['results'], strict=True):
        for name in a['metrics']:
            assert a['metrics'][name]['value'] == pytest.approx(b['metrics'][name]['value'], rel=1e-6, abs=1e-9), name
    assert [each['paired'] for each in one['differences']] == [each['paired'] for each in two['differences']]


@pytest.mark.parametrize('args, part', [
    (['calc', '--images=nowhere', '--num=20'], '--images: nowhere does not exist'),
    (['calc', '--images=samples/run'], '--images: samples/run holds 60 images, fewer than the 50000'),
    (['calc', '--images=samples/run', '--num=20', '--metrics=fd,nice'], "--metrics: 'nice' is not a metric; use fd"),
    (['calc', '--images=samples/run', '--num=20', '--metrics=fid'], '--metrics: fid needs statistics of the detector '
     'inception or nvidia'),
    (['calc', '--images=samples/run', '--num=20', '--ref=moments.npz', '--metrics=pr'],
     '--metrics: pr needs a reference that carries features'),
    (['calc', '--images=samples/run', '--num=20', '--ref=nowhere.npz'], '--ref: nowhere.npz does not exist'),
    (['calc', '--images=samples/run', '--num=20', '--detector_ckpt=a.pth'], '--detector_ckpt: a.pth is not NAME=FILE'),
    (['calc', '--images=samples/run', '--num=20', '--json=text.json'], '--json: '),
    (['ref', '--images=samples/run', '--dest=a.npz', '--num=61'], '--images: samples/run holds 60 images'),
    (['ref', '--images=samples/run', '--dest=a.npz', '--detector=nvidia'], '--allow_code'),
])
def test_bad_input(place, args, part):
    ref = load_reference(demo.DEMO_STATS)
    Reference(ref.mu, ref.sigma, 'cifar10', ref.fingerprint, 80).save('moments.npz')
    Path('text.json').write_text('{"results": []}')
    before = sorted(place.rglob('*'))
    result = run(*args)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    assert part in ' '.join(result.output.split()) and 'Traceback' not in result.output
    assert sorted(place.rglob('*')) == before
