"""plot.py: pictures hold the samples pixel by pixel; what cannot be drawn ends in one line."""

import base64
import html.parser
import io
import json
from pathlib import Path

import goldens
import measuring
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
    """Whether `part` [h, w, 3] occurs in `picture`, pixel by pixel."""
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
    results = [dict(name=f'run{value}', num_samples=1000, distance=10 - value, distance_deviation=0.2, blocks=[1, 2],
                    options=dict(weight_1st=value, guidance=dict(time_max=1.0), steps=steps))
               for value in values for steps in (9, 18)]
    path.write_text(json.dumps(dict(metric=metric, num_samples=1000, results=results)))
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
    results = [dict(name=str(x), value=float(x), error=0.1) for x in (3, 1, 2)]
    figure = curves.distance_curve([3.0, 1.0, 2.0], results, ['a'] * 3)
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


class Page(html.parser.HTMLParser):
    """Checks that tags close in order; collects texts, and the addresses that a browser would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.loads = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ('src', 'href')]
        if tag not in ('meta', 'img', 'link', 'br'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(' '.join(data.split()))


def measured(name, value):
    metrics = dict(fd=dict(label='FD-CIFAR10', scale=1, value=value, error=0.05, deviation=None, values=[value]),
                   kid=dict(label='KID x 1000 (CIFAR10)', scale=1000, value=0.004, error=None, deviation=None))
    return dict(name=name, metrics=metrics, options=dict(weight=value))


def test_report_page(tmp_path, monkeypatch):
    """All that it can hold, from files as the scripts write them."""
    monkeypatch.chdir(tmp_path)
    difference = dict(name='b', against='a', metric='fd', label='FD-CIFAR10', scale=1, difference=-0.5, error=0.02,
                      relative=-0.25, paired=True, verdict='lower')
    summary = dict(detector='cifar10', fingerprint='abcd', distance='FD-CIFAR10', ref='demo.npz', ref_count=50000,
                   num_samples=1000, blocks=1, results=[measured('run0', 2.0), measured('run1', 1.5)],
                   differences=[difference], deviations=2, share=0.013)
    Path('calc.json').write_text(json.dumps(dict(writer='calc_metrics.py', summaries=[summary], blocks={})))
    results = [dict(name='<old>', num_samples=10, distance=9.5, distance_deviation=0.25, kid=0.01, kid_deviation=0.002,
                    blocks=[dict(kid_error=0.1)] * 2)]
    Path('fid.json').write_text(json.dumps(dict(metric='FID', detector='inception', fingerprint='', ref='r.npz',
                                                ref_count=0, num_samples=10, results=results)))
    Path('train').mkdir()
    Path('train/stats.jsonl').write_text('{"nimg": 1000, "loss": 1.0}\n{"nimg": 2000, "loss": 0.5}\n')
    cost = dict(median=35, q05=9, q95=40.5)
    level = dict(level=0, tests=10, acceptance=0.5, rejections=5)
    for index, weight in enumerate((0.0, 2.0)):
        Path(f'run{index}').mkdir()
        np.savez(f'run{index}/samples_0.npz', samples=np.full([4, 8, 8, 3], 60 * index, np.uint8))
        Path(f'run{index}/options.json').write_text(json.dumps(dict(
            seeds='0-3', weight=weight, rho=7.0, report=dict(images=4, nfe=cost, discriminator_calls=cost,
                                                             timed_images=4, wall_sec=10.0, levels=[level],
                                                             samples_at_cap=0))))
    result = run('curve', 'calc.json', '--x=weight', '--y=kid', '--out=kid.svg')
    assert result.exit_code == 0, result.output
    result = run('report', 'calc.json', 'fid.json', 'train', 'run0', 'run1', '--out=out/page.html', '--title=A & B')
    assert result.exit_code == 0, result.output
    page = Page(Path('out/page.html').read_text())
    assert all(address.startswith('data:image/') for address in page.loads) and len(page.loads) == 6
    for text in ('A & B', 'FD-CIFAR10', '2 \xb1 0.05', '-0.5 \xb1 0.02', 'paired', 'lower', '-25', '4', '<old>',
                 '9.5 \xb1 0.25', '10 \xb1 2', 'run0', '35 (9 to 40.5)', '2.5', 'weight', 'Training', 'Rejections',
                 'Below 2 standard errors, or below 1.3 %, a difference is inconclusive.'):
        assert text in page.texts, text
    assert 'rho' not in page.texts[:page.texts.index('All options of run0')]  # the same in both runs
    picture = base64.b64decode(next(address for address in page.loads if 'png' in address).split(',')[1])
    np.testing.assert_array_equal(pixels(io.BytesIO(picture)), image_grid(np.zeros([4, 8, 8, 3], np.uint8), 4))


def decoded(page):
    """The PNG pictures of a page."""
    return [pixels(io.BytesIO(base64.b64decode(address.split(',')[1]))) for address in page.loads if 'png' in address]


def test_report_of_classes_commands_and_neighbours(tmp_path, monkeypatch):
    """Class rows in order, each sample beside the images that were copied from it, and results without a folder."""
    folder = measuring.make_place(tmp_path, monkeypatch)
    with np.load('samples/run/samples_00000000.npz', allow_pickle=False) as file:
        samples = file['samples']
    np.savez('samples/run/samples_00000000.npz', samples=samples, label=np.eye(4)[np.arange(20) % 2 + 1])
    for first in (20, 40):
        (folder / f'samples/run/samples_{first:08d}.npz').unlink()
    (folder / 'samples/run/options.json').write_text(json.dumps(dict(seeds='0-19', command='python generate.py --x=1')))
    summary = dict(detector='cifar10', fingerprint='abcd', distance='FD-CIFAR10', ref='demo.npz', ref_count=50000,
                   num_samples=20, blocks=1, results=[measured('drawn', 2.0)], differences=[])
    Path('gen.json').write_text(json.dumps(dict(writer='calc_metrics.py', summaries=[summary], blocks={})))
    np.savez('train.npz', images=np.concatenate([samples[::-1], 255 - samples]))
    result = run('report', 'samples/run', 'gen.json', '--neighbours=train.npz', '--out=page.html', '--num=5')
    assert result.exit_code == 0, result.output
    page = Page(Path('page.html').read_text())
    grid, by_class, neighbours = decoded(page)
    np.testing.assert_array_equal(grid, image_grid(samples[:5], 5))
    np.testing.assert_array_equal(by_class, image_grid(np.concatenate([samples[:20:2], samples[1:20:2]]), 10))
    shown = image_grid(np.concatenate([np.stack([image, 0 * image, image]) for image in samples[:8]]), 3)
    assert neighbours.shape[1] == 8 * 34 + 2
    np.testing.assert_array_equal(neighbours[:, :3 * 34], shown[:, :3 * 34])
    for text in ('python generate.py \\\n    --x=1', 'All options of drawn', 'All options of run'):
        assert text in Path('page.html').read_text(), text
    result = run('report', 'samples/run', '--neighbours=nowhere', '--out=other.html')
    assert result.exit_code == 1 and '--neighbours: nowhere does not exist' in result.output
    np.savez('small.npz', samples=samples[:, :8, :8])
    result = run('report', 'samples/run', 'small.npz', '--neighbours=train.npz', '--out=other.html')
    assert result.exit_code == 1 and ('Error: --neighbours: run has images of shape [3, 32, 32], small.npz of '
                                      '[3, 8, 8]') in result.output, result.output
    np.savez('train.npz', images=samples[:3])
    result = run('report', 'samples/run', '--neighbours=train.npz', '--out=other.html')
    assert result.exit_code == 1 and '--neighbours: train.npz holds 3 images, fewer than 6' in result.output


@pytest.mark.parametrize('args, part', [
    (['grid', 'nowhere', '--out=a.png'], 'FOLDERS: nowhere does not exist'),
    (['grid', FID / 'png', '--out=a.png', '--titles=a,b'], '--titles: 2 titles for 1 folders'),
    (['grid', FID / 'png', '--out=a.gif'], '--out: a.gif'),
    (['curve', 'nowhere.json', '--x=a', '--out=a.png'], 'FILES'),
    (['curve', 'text.json', '--x=a', '--out=a.png'], 'FILES: text.json was not written by calc_metrics.py or fid_npzs'),
    (['curve', 'good.json', 'other.json', '--x=weight_1st', '--out=a.png'], 'different metrics'),
    (['curve', 'good.json', '--x=nothing', '--out=a.png'], '--x: run1.0 has no option nothing'),
    (['curve', 'good.json', '--x=guidance', '--out=a.png'], '--x: guidance of run1.0 is not a number; it has time_max'),
    (['curve', 'good.json', '--values=1,2,3', '--out=a.png'], '--values: 3 values for 2 results'),
    (['curve', 'good.json', '--out=a.png'], 'either --x or --values'),
    (['curve', 'good.json', '--x=weight_1st', '--lines=a', '--out=a.png'], '--lines: give one name for each of the 2'),
    (['curve', 'good.json', '--x=weight_1st', '--y=kid', '--out=a.png'], 'FILES: run1.0 was measured without kid'),
    (['report', 'text.json', '--out=a.html'], 'INPUTS: text.json was not written by'),
    (['report', 'empty', '--out=a.html'], 'INPUTS: empty holds no images'),
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
