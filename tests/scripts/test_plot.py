"""plot.py: pictures hold the samples pixel by pixel; one line for what cannot be drawn."""

import json
from pathlib import Path

import goldens
import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

import plot
from figures import curves
from torch_utils.images import image_grid

FID = goldens.GOLDENS / 'fid'


def run(*args):
    result = CliRunner().invoke(plot.main, [str(arg) for arg in args])
    if result.exit_code:
        assert isinstance(result.exception, SystemExit) and 'Traceback' not in result.output
    return result


def pixels(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert('RGB'))  # [H, W, 3]


def contains(picture, part):
    """Does `part` [h, w, 3] occur in `picture`, each of its pixels one pixel?"""
    h, w, _ = part.shape
    corner = part[:4, :4]
    for top in range(picture.shape[0] - h + 1):
        for left in range(picture.shape[1] - w + 1):
            if (picture[top:top + 4, left:left + 4] == corner).all():
                if (picture[top:top + h, left:left + w] == part).all():
                    return True
    return False


@pytest.mark.parametrize('zoom', [1, 2])
def test_grid_shows_every_pixel(tmp_path, zoom):
    result = run('grid', FID / 'samples_uncond', FID / 'samples_cond', f'--out={tmp_path}/g.png', '--num=6',
                 '--columns=3', f'--zoom={zoom}')
    assert result.exit_code == 0, result.output
    picture = pixels(tmp_path / 'g.png')
    for folder in ('samples_uncond', 'samples_cond'):
        samples = [goldens.load(f'fid/{folder}/samples_{n}.npz')['samples'] for n in (731, 20044)]
        part = image_grid(np.concatenate(samples)[:6], 3)[2:-2, 2:-2]  # without the border, which is all black
        assert contains(picture, part.repeat(zoom, axis=0).repeat(zoom, axis=1))


def report(path, values, metric='FD-CIFAR10', **kwargs):
    results = [dict(name=f'run{value}', num_samples=1000, distance=10 - value, distance_deviation=0.2, kid=None,
                    options=dict(weight_1st=value, guidance=dict(time_max=1.0), steps=steps))
               for value in values for steps in (9, 18)]
    path.write_text(json.dumps(dict(metric=metric, results=results)))
    return path


def test_curve(tmp_path):
    first = report(tmp_path / 'a.json', [0.0, 1.0])
    second = report(tmp_path / 'b.json', [2.0])
    for name in ('c.png', 'c.svg', 'c.pdf'):
        result = run('curve', second, first, '--x=weight_1st', '--by=steps', f'--out={tmp_path}/{name}')
        assert result.exit_code == 0, result.output
        assert (tmp_path / name).stat().st_size > 2000
    assert pixels(tmp_path / 'c.png').shape[1] > 600
    svg = (tmp_path / 'c.svg').read_text()
    assert svg.startswith('<?xml')
    for name, lines in (('d', []), ('e', ['--lines=a,b'])):
        result = run('curve', second, '--values=1,2', '--xlabel=NFE', f'--out={tmp_path}/{name}.png', *lines)
        assert result.exit_code == 0
    assert (tmp_path / 'd.png').read_bytes() != (tmp_path / 'e.png').read_bytes()


def test_curve_joins_points_in_order():
    results = [dict(name=str(x), distance=float(x), distance_deviation=0.1) for x in (3, 1, 2)]
    figure = curves.distance_curve([3.0, 1.0, 2.0], results, ['a'] * 3, 'distance')
    line = figure.axes[0].get_lines()[0]
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(line.get_ydata(), [1, 2, 3])


def test_training(tmp_path):
    run_folder = tmp_path / 'runs/score'
    run_folder.mkdir(parents=True)
    lines = [dict(nimg=1000 * i, loss=1 / (1 + i), accuracy=i / 10, held_out_auc=0.5, note='x') for i in range(5)]
    text = '\n'.join(json.dumps(line) for line in lines)
    (run_folder / 'stats.jsonl').write_text(text + '\n{"nimg": 5')  # cut short by a kill
    result = run('training', run_folder, f'--out={tmp_path}/t.png', '--log')
    assert result.exit_code == 0, result.output
    assert pixels(tmp_path / 't.png').shape[1] > 1000
    figure = curves.training_curves(dict(score=lines), False)
    assert [axis.get_title() for axis in figure.axes] == ['loss', 'accuracy', 'auc']
    np.testing.assert_allclose(figure.axes[0].get_lines()[0].get_xdata(), [0, 1, 2, 3, 4])


def test_runs_of_the_same_name_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    level = dict(level=0, tests=10, acceptance=0.5, rejections=5)
    cost = dict(median=9, q05=9, q95=9)
    for folder in ('a/run', 'b/run', 'other'):
        Path(folder).mkdir(parents=True)
        Path(folder, 'stats.jsonl').write_text('{"nimg": 1000, "loss": 1.0}\n')
        Path(folder, 'options.json').write_text(json.dumps(dict(seeds='0-9', report=dict(
            levels=[level], images=10, nfe=cost, discriminator_calls=cost, timed_images=0, samples_at_cap=0))))
    seen = {}
    for name in ('training_curves', 'profile_curves'):
        draw = getattr(plot, name)
        monkeypatch.setattr(plot, name, lambda runs, *rest, name=name, draw=draw: (
            seen.update({name: list(runs)}), draw(runs, *rest))[1])
    for command in ('training', 'profile'):
        result = run(command, 'a/run', 'b/run', 'other', '--out=a.png')
        assert result.exit_code == 0, result.output
        assert seen[f'{command}_curves'] == ['a/run', 'b/run', 'other']
        result = run(command, 'other', '--out=a.gif')
        assert result.exit_code == 1 and '--out: a.gif' in result.output, result.output


@pytest.mark.parametrize('args, part', [
    (['grid', 'nowhere', '--out=a.png'], 'FOLDERS: nowhere does not exist'),
    (['grid', FID / 'png', '--out=a.png', '--titles=a,b'], '--titles: 2 titles for 1 folders'),
    (['grid', FID / 'png', '--out=a.gif'], '--out: a.gif'),
    (['curve', 'nowhere.json', '--x=a', '--out=a.png'], 'FILES'),
    (['curve', 'text.json', '--x=a', '--out=a.png'], 'FILES: text.json was not written by fid_npzs.py'),
    (['curve', 'good.json', 'other.json', '--x=weight_1st', '--out=a.png'], 'different metrics'),
    (['curve', 'good.json', '--x=nothing', '--out=a.png'], '--x: run1.0 has no option nothing'),
    (['curve', 'good.json', '--x=guidance', '--out=a.png'], '--x: guidance of run1.0 is not a number; it has time_max'),
    (['curve', 'good.json', '--values=1,2,3', '--out=a.png'], '--values: 3 values for 2 results'),
    (['curve', 'good.json', '--out=a.png'], 'either --x or --values'),
    (['curve', 'good.json', '--x=weight_1st', '--lines=a', '--out=a.png'], '--lines: give one name for each of the 2'),
    (['curve', 'good.json', '--x=weight_1st', '--y=kid', '--out=a.png'], '--y: run1.0 was measured without kid'),
    (['training', 'empty', '--out=a.png'], 'RUNS: empty/stats.jsonl has no training statistics'),
])
def test_bad_input(tmp_path, monkeypatch, args, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.json').write_text('no json')
    report(tmp_path / 'good.json', [1.0])
    report(tmp_path / 'other.json', [1.0], metric='FID')
    result = run(*args)
    assert result.exit_code == 1 and part in result.output, result.output
    assert not list(tmp_path.glob('a.*')) and not list(tmp_path.glob('.a.*'))
