"""study.py from the command line: rows, numbers as calc_metrics.py's, what resumes, groups of trainings, bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_detector
from click.testing import CliRunner
from goldens import recipe_
from script_runs import ROOT, another_run, finish
from tiny_networks import TINY

import calc_metrics
import generate
import study
from commands import in_memory, prepare, study_rows
from guided_diffusion import create_classifier
from metrics.detectors import DETECTORS
from metrics.estimate import verdict
from networks import construct, lora, save_network

FILES = {'options.json', 'study.json', 'study.json.npz', 'study.png'}


@pytest.fixture(scope='module')
def networks(tmp_path_factory):
    """8x8 networks: a classifier, two runs of two epochs that differ in the seed, another's settings, two of LoRA."""
    folder = tmp_path_factory.mktemp('study')
    save_network(folder / 'score.safetensors', recipe_(construct(
        'EDMPrecond', TINY | dict(img_resolution=8, attn_resolutions=[], label_dim=0))))
    classifier = recipe_(create_classifier(image_size=8, classifier_width=64, classifier_depth=1))
    torch.save(classifier.state_dict(), folder / 'classifier.pt')
    for run, seed, config in (('a', 17, {}), ('b', 27, {}), ('c', 37, dict(lr=1)), ('r2', 47, dict(lora_rank=2)),
                              ('r2b', 57, dict(lora_rank=2)), ('unguided', 67, {})):
        (folder / run).mkdir()
        (folder / run / 'options.json').write_text(json.dumps(
            dict(lr=3, seed=seed, command=f'python train.py --savedir={run}') | config))
        for i, name in enumerate(('discriminator_1.pt', 'discriminator_2.pt', 'best.pt')):
            net = create_classifier(image_size=8, in_channels=64, out_channels=1, classifier_width=64,
                                    classifier_depth=1)
            torch.save(recipe_(net, seed + i).state_dict(), folder / run / name)
        if config.get('lora_rank'):
            adapted = recipe_(lora.add_adapters(classifier, 2), seed)
            torch.save({name: value.data for name, value in lora.adapters_of(adapted).items()},
                       folder / run / 'lora_best.pt')
    return folder


@pytest.fixture
def pictures():
    """For tests that look at the picture of a study. It takes a second; the others get an empty file."""


@pytest.fixture
def place(request, tmp_path, monkeypatch):
    """A working folder with statistics of a detector that costs nothing."""
    if 'pictures' not in request.fixturenames:
        monkeypatch.setattr('figures.canvas.save', lambda figure, path: Path(path).touch())
    monkeypatch.setitem(DETECTORS, 'colours', toy_detector.KIND)
    monkeypatch.chdir(tmp_path)
    toy_detector.write_statistics(tmp_path / 'stats.npz')
    return tmp_path


def arguments(networks, *args):
    return [f'--network={networks}/score.safetensors', f'--pretrained_classifier_ckpt={networks}/classifier.pt',
            '--steps=2', '--device=cpu', '--precision=fp32', '--compile=off', *args]


REF = '--ref=stats.npz'


def invoke(main, *args):
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run(networks, kind, *args, outdir='out', num=20):
    result = invoke(study.main, kind, *arguments(networks, f'--outdir={outdir}', f'--num_samples={num}', '--batch=10',
                                                 REF, *args))
    assert result.exit_code == 0, result.output
    summary, = json.loads(Path(outdir, 'study.json').read_text())['summaries']
    return summary, result.output


def values(summary, metric='fd'):
    return {result['name']: result['metrics'][metric]['value'] for result in summary['results']}


WEIGHTS = ('weights', '--dg_weight_1st_order=0,1,40')
DISC = '--discriminator_ckpt={}/a/best.pt'


def test_numbers_are_those_of_calc_metrics_on_the_same_images(networks, place, pictures):
    summary, output = run(networks, *WEIGHTS, DISC.format(networks), '--metrics=fd,kid', '--blocks=2', '--seed=7')
    assert {path.name for path in Path('out').iterdir()} == FILES
    assert Path('out/study.png').read_bytes().startswith(b'\x89PNG')
    for weight in (0, 1, 40):
        assert invoke(generate.main, *arguments(
            networks, f'--outdir={weight}', '--seeds=7-46', '--batch=10', f'--dg_weight_1st_order={weight}',
            DISC.format(networks))).exit_code == 0
    folders = [f'--images={weight}' for weight in (0, 1, 40)]
    result = invoke(calc_metrics.main, 'calc', *folders, '--num_samples=20', '--blocks=2', '--metrics=fd,kid',
                    '--batch=10', '--json=r.json', '--device=cpu', REF)
    assert result.exit_code == 0, result.output
    expected, = json.loads(Path('r.json').read_text())['summaries']
    assert list(values(summary)) == ['0', '1', '40']
    for metric in ('fd', 'kid'):
        assert values(summary, metric) == pytest.approx(values(expected, metric), rel=1e-6)
    for ours, theirs in zip(summary['differences'], expected['differences'], strict=True):
        assert ours['paired'] and ours['difference'] == pytest.approx(theirs['difference'], rel=1e-5)
        assert ours['error'] == pytest.approx(theirs['error'], rel=1e-5) and ours['verdict'] == theirs['verdict']
        assert ours['verdict'] == verdict(ours['difference'], ours['error'], ours['relative'])
    costs = {result['name']: result['costs'] for result in summary['results']}
    assert costs == {'0': dict(nfe=3, discriminator_calls=0), '1': dict(nfe=3, discriminator_calls=1),
                     '40': dict(nfe=3, discriminator_calls=1)}
    lines = [line.split() for line in output.splitlines()]
    assert ['40', '-', '0', 'FD-colours'] in [line[:4] for line in lines]


def test_kept_images_are_those_of_generate(networks, place):
    kept, _ = run(networks, *WEIGHTS, DISC.format(networks), '--keep')
    measured, _ = run(networks, *WEIGHTS, DISC.format(networks), outdir='other')
    assert values(kept) == pytest.approx(values(measured), rel=1e-6)
    assert [result['costs'] for result in kept['results']] == [result['costs'] for result in measured['results']]
    invoke(generate.main, *arguments(networks, '--outdir=w1', '--seeds=100000-100019', '--batch=10',
                                     '--dg_weight_1st_order=1', DISC.format(networks)))
    with np.load('w1/samples_00100010.npz') as ours, np.load('out/samples/1/samples_00100010.npz') as theirs:
        assert np.array_equal(ours['samples'], theirs['samples'])


def test_a_killed_study_resumes(networks, place, monkeypatch):
    """Blocks that were measured are not drawn again, and the results are those of one call; more can be added."""
    drawn, limit = [], 3
    draw = in_memory.Drawn._draw

    def watched(self, start, stop):
        if len(drawn) == limit:
            raise KeyboardInterrupt
        drawn.append(self.seeds[start])
        yield from draw(self, start, stop)

    args = [*WEIGHTS, DISC.format(networks), '--blocks=2', '--seed=0']
    whole, _ = run(networks, *args, outdir='whole')
    monkeypatch.setattr(in_memory.Drawn, '_draw', watched)
    with pytest.raises(AssertionError):
        run(networks, *args)
    assert drawn == [0, 20, 0] and not Path('out/study.png').exists()
    limit = 99
    resumed, _ = run(networks, *args)
    assert drawn == [0, 20, 0, 20, 0, 20] and resumed == whole
    again, _ = run(networks, *args)
    assert len(drawn) == 6 and again == whole
    more, _ = run(networks, 'weights', '--dg_weight_1st_order=0,1,40,80', *args[2:-2], '--blocks=3', '--seed=0')
    assert drawn[6:] == [40, 40, 40, 0, 20, 40] and len(more['results']) == 4
    before = Path('out/study.json').read_bytes()
    command = arguments(networks, DISC.format(networks), '--outdir=out', '--num_samples=20', '--batch=10', '--seed=0',
                        REF)
    result = invoke(study.main, *WEIGHTS, *command, '--S_noise=2')
    assert result.exit_code == 1 and 'Error: --outdir: ' in result.output and 'S_noise was 1' in result.output
    assert Path('out/study.json').read_bytes() == before
    with another_run('out'):
        result = invoke(study.main, *WEIGHTS, *command)
    assert result.exit_code == 1 and 'Error: --outdir: another run is writing to out' in result.output


def test_epochs_of_a_run(networks, place):
    summary, output = run(networks, 'epochs', f'--training={networks}/a', '--unguided', '--dg_weight_1st_order=30')
    assert list(values(summary)) == ['unguided', '1', '2']
    assert [row['x'] for row in summary['study']['rows']] == [None, 1, 2]
    record = summary['results'][2]['options']
    assert record['discriminator_ckpt'] == f'{networks}/a/discriminator_2.pt' and record['seeds'] == '100000-100019'
    one, _ = run(networks, 'weights', '--dg_weight_1st_order=0,30',
                 f'--discriminator_ckpt={networks}/a/discriminator_2.pt', outdir='one')
    assert values(one)['30'] == values(summary)['2'] and values(one)['0'] == values(summary)['unguided']
    chosen, _ = run(networks, 'epochs', f'--training={networks}/a', '--epochs=2', '--dg_weight_1st_order=30',
                    outdir='two')
    assert values(chosen) == {'2': values(summary)['2']}


def test_churn(networks, place):
    summary, _ = run(networks, 'churn', '--S_churn=0,2', '--dg_weight_1st_order=0')
    assert [result['options']['S_churn'] for result in summary['results']] == [0, 2]
    summary, _ = run(networks, 'churn', '--S_churn_manual=0,4', '--boosting=1', DISC.format(networks), outdir='boosted',
                     num=20)
    assert [result['options'].get('boosting_schedule', {}).get('S_churn') for result in summary['results']] == [0, None]
    assert summary['study']['label'] == 'churn of boosted samples'


def test_repeated_trainings(networks, place):
    summary, output = run(networks, 'repeats', f'--training={networks}/a', f'--training={networks}/b', '--unguided',
                          '--dg_weight_1st_order=30')
    found = values(summary)
    unguided, group = summary['study']['groups']
    assert (unguided['trainings'], group['trainings'], group['values']) == (1, 2, [found['a'], found['b']])
    assert group['value'] == pytest.approx(np.mean([found['a'], found['b']]))
    assert group['deviation'] == pytest.approx(np.std([found['a'], found['b']], ddof=1))
    t = (group['value'] - found['unguided']) / (group['deviation'] / 2 ** 0.5)
    assert group['t'] == pytest.approx(t) and f't = {t:.2f} of 2 trainings' in output
    assert group['error'] > group['deviation'] / 2 ** 0.5


def test_ranks(networks, place):
    """The rank comes from the adapters; trainings of one rank are a group, compared with the smallest."""
    summary, _ = run(networks, 'ranks', *(f'--training={networks}/{name}' for name in ('r2', 'a', 'r2b')))
    assert [(row['name'], row['x'], row['group']) for row in summary['study']['rows']] == [
        ('a', 0, 'rank 0'), ('r2', 2, 'rank 2'), ('r2b', 2, 'rank 2')]
    assert [each['trainings'] for each in summary['study']['groups']] == [1, 2]
    assert summary['study']['groups'][1]['against'] == 'rank 0'
    assert summary['results'][1]['options']['lora_checkpoint'] == f'{networks}/r2/lora_best.pt'
    assert len(set(values(summary).values())) == 3


def test_files_of_the_reproduction(networks, tmp_path):
    """A discriminator beside its adapters, and one by its epoch; of two final ones in a folder neither is taken."""
    shutil.copy(networks / 'r2/lora_best.pt', tmp_path / 'lora_adm_final16.pt')
    for name in ('discrim_uncond_final16.pt', 'discrim_uncond_epoch59.pt'):
        (tmp_path / name).touch()
    row, = study_rows.of_trainings([str(tmp_path)], 'best', by_rank=True)
    assert row.options['discriminator_ckpt'] == (f'{tmp_path}/discrim_uncond_final16.pt',)
    assert row.options['lora_checkpoint'] == f'{tmp_path}/lora_adm_final16.pt' and row.x == 2
    row, = study_rows.of_epochs(str(tmp_path), None)
    assert row.x == 59 and row.options['lora_checkpoint'] is None
    (tmp_path / 'discrim_cond_final128.pt').touch()
    with pytest.raises(ValueError, match='discrim_cond_final128.pt, discrim_uncond_final16.pt; give each'):
        study_rows.of_trainings([str(tmp_path)], 'best', by_rank=True)


def test_a_picture_that_fails_does_not_end_a_study(networks, place, monkeypatch):
    """As with a broken matplotlib; the picture of earlier numbers goes."""
    command = *WEIGHTS, DISC.format(networks), '--num_samples=20'
    run(networks, *command)
    monkeypatch.setattr('figures.canvas.save', None)
    summary, output = run(networks, *command, '--blocks=2')
    assert 'Warning: the picture in ' in output and len(values(summary)) == 3
    assert not Path('out/study.png').exists() and 'study.json\n' in output


def test_runs_of_unlike_length_have_epochs_in_common(tmp_path):
    for run, length in (('short', 2), ('long', 5)):
        (tmp_path / run).mkdir()
        (tmp_path / run / 'options.json').write_text(json.dumps(dict(lr=3, epoch=length)))
        for epoch in range(1, length + 1):
            (tmp_path / run / f'discriminator_{epoch}.pt').touch()
    runs = [f'{tmp_path}/short', f'{tmp_path}/long']
    rows = study_rows.of_trainings(runs, '2', by_rank=False)
    assert [row.options['discriminator_ckpt'] for row in rows] == [(f'{run}/discriminator_2.pt',) for run in runs]
    with pytest.raises(ValueError, match='epoch is 5, not 2'):
        study_rows.of_trainings(runs, 'last', by_rank=False)


def test_sets_of_images(networks, place):
    """The counterpart of the reproduction's fid.py --plot: epoch<k>.npz in a folder."""
    Path('sets').mkdir()
    for epoch in (0, 2, 10):
        images = np.random.default_rng(epoch).integers(0, 256, [20, 8, 8, 3], dtype=np.uint8)
        np.savez(f'sets/epoch{epoch}.npz', images=images)
    args = ['images', '--images=sets', REF, '--num_samples=20', '--outdir=out', '--device=cpu', '--against=2']
    assert invoke(study.main, *args).exit_code == 0
    summary, = json.loads(Path('out/study.json').read_text())['summaries']
    assert [row['x'] for row in summary['study']['rows']] == [0, 2, 10]
    assert [each['name'] for each in summary['differences']] == ['0', '10']
    assert not any(each['paired'] for each in summary['differences'])
    invoke(calc_metrics.main, 'calc', '--images=sets/epoch10.npz', '--num_samples=20', '--metrics=fd', '--json=r.json',
           '--device=cpu', REF)
    expected, = json.loads(Path('r.json').read_text())['summaries']
    assert values(summary)['10'] == pytest.approx(values(expected)['epoch10.npz'], rel=1e-6)


@pytest.mark.parametrize('kind, name, given, expected', [
    ('epochs', 'reproduction', ['--training=a'], dict(num_samples=10000, adaptive_weight=0, cond=0)),
    ('repeats', 'reproduction', ['--training=a', '--training=b', '--num_samples=60'],
     dict(num_samples=60, log_ratio='clipped')),
    ('churn', 'reproduction-fine', [], dict(adaptive_weight=1, cond=1, num_samples=10000)),
    ('ranks', 'reproduction', ['--training=a', '--training=r2'],
     dict(num_samples=50000, refs=('/stats/cifar10-32x32.npz',))),
])
def test_presets_are_defaults(networks, place, monkeypatch, kind, name, given, expected):
    calls = []
    monkeypatch.setattr(study, 'draw_study', lambda kind, label, rows, opts: calls.append((rows, opts)))
    for run in ('a', 'b', 'r2'):
        shutil.copytree(networks / run, run)
    for epoch in range(3, 61):
        Path(f'a/discriminator_{epoch}.pt').touch()
    result = invoke(study.main, kind, f'--preset={name}', '--outdir=out', *given)
    assert result.exit_code == 0, result.output
    (rows, opts), = calls
    assert {key: opts[key] for key in expected} == expected and opts['network'].startswith('https://nvlabs')
    if kind == 'epochs':
        assert [row.x for row in rows] == [None, 1, 3, 5, 7, 9, 11, 20, 30, 40, 50, 60]
    if kind == 'churn':
        assert [row.options['S_churn_manual'] for row in rows] == [1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 2.75, 3]


@pytest.mark.parametrize('args, part', [
    (['epochs', '--training=nowhere'], '--training: nowhere is not a folder'),
    (['epochs', '--training={}'], 'holds no discriminator by the name'),
    (['epochs', '--training={}/a', '--epochs=1,9'], 'has none of epoch 9, but discriminators of epochs 1-2'),
    (['churn', '--S_churn=1'], '--S_churn: give several values'),
    (['churn', '--S_churn_manual=1,2'], '--S_churn_manual: is the churn of boosted samples; add --boosting=1'),
    (['churn', '--S_churn=1,1'], 'a number occurs twice'),
    (['weights', '--dg_weight_1st_order=0,1,x'], "'0,1,x' is no list of numbers"),
    (['weights', '--dg_weight_1st_order=0,1', '--dg_weight_2nd_order=0,1,2'], '--dg_weight_2nd_order: 3 weights'),
    (['weights', '--dg_weight_1st_order=0,1', '--equal', '--dg_weight_2nd_order=1'], '--equal: given together'),
    (['weights', '--dg_weight_1st_order=0,1', '--against=2', '--discriminator_ckpt={}/a/best.pt'],
     '--against: 2 is no row of this study (0, 1)'),
    (['weights', '--dg_weight_1st_order=0', '--metrics=fid'], '--metrics: fid needs statistics of the detector'),
    (['weights', '--dg_weight_1st_order=0', '--seed=4294967290'], '--seed: 4294967309 is too large'),
    (['repeats', '--training={}/a', '--training={}/c'], 'is no repetition of {}/a: lr is 1, not 3'),
    (['repeats', '--training={}/a', '--training={}/r2'], 'lora_rank is 2, not None'),
    (['repeats', '--training={}/a', '--training={}/a'], '--training: a run is named twice'),
    (['repeats', '--training={}/a', '--file=8'], 'holds no discriminator to be called 8'),
    (['repeats', '--training={}/a', '--file=first'], "'first' is neither best, last nor an epoch"),
    (['ranks', '--training={}/a', '--training={}/c'], 'is no repetition of {}/a: lr is 1, not 3'),
    (['repeats', '--training={}/a', '--training={}/unguided', '--unguided'],
     'two rows of this study would be called unguided'),
    (['epochs', '--training={}/a', '--discriminator_ckpt={}/b/best.pt'], '--discriminator_ckpt: each row has its own'),
    (['ranks', '--training={}/a', '--lora_checkpoint={}/r2/lora_best.pt'], '--lora_checkpoint: each row has its own'),
    (['weights', '--dg_weight_1st_order=0,1', '--precision=tf32'], '--precision: tf32 would hold for the detectors'),
    (['weights', '--dg_weight_1st_order=0', '--num_particles=3'], '--num_samples: must be a multiple of 3'),
])
def test_bad_input(networks, place, args, part):
    args, part = [arg.format(networks) for arg in args], part.format(networks)
    result = invoke(study.main, args[0], *arguments(networks, '--outdir=out', '--num_samples=20', REF, *args[1:]))
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit), result.output
    assert part in ' '.join(result.output.split()), result.output
    assert not Path('out').exists()


@pytest.mark.parametrize('names', [('epoch1.npz', 'epoch01.npz'), ('epoch1.npz', 'epoch1')])
def test_two_sets_of_one_number(place, names):
    Path('sets/epoch1').mkdir(parents=True)
    for name in names:
        np.savez(f'sets/{name}' if name.endswith('.npz') else f'sets/{name}/samples_0.npz',
                 samples=np.zeros([20, 8, 8, 3], np.uint8))
    if 'epoch1' not in names:
        Path('sets/epoch1').rmdir()
    result = invoke(study.main, 'images', '--images=sets', REF, '--num_samples=20', '--outdir=out', '--device=cpu')
    assert result.exit_code == 1 and 'two rows of this study would be called 1;' in result.output, result.output
    assert not Path('out').exists()


def test_images_that_the_detector_does_not_take(networks, place):
    """The shipped one takes 32x32; the error names the option that the images come from."""
    Path('sets').mkdir()
    np.savez('sets/epoch1.npz', samples=np.zeros([20, 8, 8, 3], np.uint8))
    result = invoke(study.main, 'images', '--images=sets', '--num_samples=20', '--outdir=a', '--device=cpu')
    assert result.exit_code == 1 and 'Error: --images: the detector cifar10 takes images' in result.output
    result = invoke(study.main, 'weights', '--dg_weight_1st_order=0', *arguments(networks, '--outdir=b',
                                                                                 '--num_samples=20'))
    assert result.exit_code == 1 and 'Error: --network: the detector cifar10 takes images' in result.output


def test_names_tell_rows_apart(tmp_path):
    assert [row.name for row in study_rows.of_values([0.1234567, 0.1234568, 2.0], 'S_churn')] == [
        '0.1234567', '0.1234568', '2']
    for name in ('samples_w0', 'samples_w0.5'):
        (tmp_path / name).mkdir()
    (tmp_path / 'samples_00000000.npz').touch()
    assert [row.name for row in study_rows.of_folders(str(tmp_path))] == ['0', '0.5']


def test_blocks_do_not_decide_whether_to_compile(networks, place, monkeypatch):
    evaluations = []
    monkeypatch.setattr(prepare, 'compile_for_sampling', lambda machine, net, log_ratio, count: (
        evaluations.append(count), count > 60)[1])
    for blocks in (1, 2):
        run(networks, 'weights', '--dg_weight_1st_order=0', f'--blocks={blocks}')
    assert set(evaluations) == {20 * 3}


def test_sets_that_are_none(place):
    Path('mixed').mkdir()
    for name in ('epoch1.npz', 'w2.npz'):
        np.savez(f'mixed/{name}', samples=np.zeros([2, 8, 8, 3], np.uint8))
    Path('run').mkdir()
    np.savez('run/samples_00000000.npz', samples=np.zeros([2, 8, 8, 3], np.uint8))
    for where, part in (('mixed', 'but epoch1.npz, w2.npz'), ('run', 'run does not hold sets of images by number')):
        result = invoke(study.main, 'images', f'--images={where}', '--outdir=out')
        assert result.exit_code == 1 and part in result.output and not Path('out').exists()


def test_another_classifier_is_refused(networks, place):
    shutil.copytree(networks / 'a', 'run')
    Path('run/options.json').write_text(json.dumps(dict(classifier_sha256='0123456789abcdef')))
    result = invoke(study.main, 'epochs', '--training=run',
                    *arguments(networks, '--outdir=out', '--num_samples=20', REF))
    assert result.exit_code == 1 and not Path('out').exists()
    assert 'Error: --pretrained_classifier_ckpt: 1 was trained on another classifier' in result.output


def test_samples_of_nan(files, place):
    result = invoke(study.main, 'weights', '--dg_weight_1st_order=0', f'--network={files}/nan.safetensors', REF,
                    '--outdir=out', '--num_samples=20', '--steps=2', '--device=cpu', '--precision=fp32')
    assert result.exit_code == 1 and 'Error: --network: the sample of seed 100000 holds NaN' in result.output


@pytest.mark.slow
def test_processes_give_the_same_numbers(networks, place):
    Path('job.py').write_text(f'import sys\n'
                              f'sys.path.insert(0, "{ROOT}/tests/helpers")\n'
                              f'import study\n'
                              f'import toy_detector\n'
                              f'toy_detector.register()\n'
                              f'study.main()\n')
    args = [*WEIGHTS, DISC.format(networks), '--blocks=2']
    code, output = finish(place / 'job.py', [*args, *arguments(
        networks, f'--outdir={place}/two', f'--ref={place}/stats.npz', '--num_samples=20', '--batch=10')], 2)
    assert code == 0, output
    one, _ = run(networks, *args, outdir='one')
    two, = json.loads(Path('two/study.json').read_text())['summaries']
    assert values(two) == pytest.approx(values(one), rel=1e-9)
    assert [each['costs'] for each in two['results']] == [each['costs'] for each in one['results']]
    for ours, theirs in zip(two['differences'], one['differences'], strict=True):
        assert ours['paired'] and ours['error'] == pytest.approx(theirs['error'], rel=1e-5)
