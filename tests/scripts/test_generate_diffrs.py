"""generate_diffrs.py as a user runs it: files, reports, resuming, published inputs, one-line errors."""

import json
import pickle
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from script_runs import few_trajectories, finish
from tiny_networks import write_discriminators

import generate_diffrs
import plot
from commands import diffrs, loading
from generation.folder import read_costs
from sampling import diffrs_slots

ROOT = Path(__file__).resolve().parents[2]


def arguments(files, *args, network='uncond', disc='disc_uncond'):
    return [str(a) for a in (
        '--device=cpu', '--precision=fp32', '--steps=4', '--iter_warmup=1', '--rej_percentile=0.75',
        f'--network={files / network}.safetensors', f'--pretrained_classifier_ckpt={files / "classifier.pt"}',
        f'--discriminator_ckpt={files / disc}.pt', *args)]


def invoke(files, *args, **kwargs):
    """Run the script in-process; (exit code, output)."""
    result = CliRunner().invoke(generate_diffrs.main, arguments(files, *args, **kwargs))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def samples(folder):
    """All shards of a folder, one after the other."""
    shards = [dict(np.load(path, allow_pickle=False)) for path in sorted(Path(folder).glob('samples_*.npz'))]
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def report_of(folder):
    return json.loads((folder / 'options.json').read_text())['report']


@pytest.fixture(scope='module', autouse=True)
def short_warmup():
    """The published hundred trajectories a round are held by tests/sampling/test_diffrs.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffrs, 'warmup_seeds', few_trajectories)
        yield


@pytest.fixture(scope='module')
def run(files, short_warmup, tmp_path_factory):
    """A finished run of seven seeds in batches of three."""
    folder = tmp_path_factory.mktemp('diffrs') / 'out'
    code, output = invoke(files, f'--outdir={folder}', '--seeds=0-6', '--batch=3')
    assert code == 0, output
    return folder, output


def test_files_and_report(run, tmp_path):
    folder, output = run
    arrays = samples(folder)
    assert arrays['samples'].shape == (7, 16, 16, 3) and arrays['rejections'].shape == (7, 5)
    assert (arrays['nfe'] >= 7).all() and arrays['rejections'].sum() > 0
    report = report_of(folder)
    assert report['images'] == report['timed_images'] == 7 and report['wall_sec'] > 0
    assert report['warmup'] == dict(trajectories=6, nfe=42) and report['nfe']['mean'] == arrays['nfe'].mean()
    assert [level['rejections'] for level in report['levels']] == arrays['rejections'].sum(0).tolist()
    assert f'{report["nfe"]["mean"]:.1f}' in output
    assert ('may flip single decisions' in output) == (report['precision'] == 'bfloat16')
    result = CliRunner().invoke(plot.main, ['profile', str(folder), f'--out={tmp_path}/profile.png'])
    assert result.exit_code == 0, result.output
    assert (tmp_path / 'profile.png').stat().st_size > 1000


def test_sample_depends_on_its_seed_only(files, run, tmp_path):
    """Another batch size and another list of seeds; the warm-up's thresholds are reused."""
    folder, _ = run
    code, output = invoke(files, f'--outdir={tmp_path}/out', '--seeds=5,2', '--batch=2',
                          f'--thresholds={folder / "thresholds.json"}')
    assert code == 0, output
    expected, found = samples(folder), samples(tmp_path / 'out')
    for name in ('nfe', 'discriminator_calls', 'rejections', 'tests'):
        assert np.array_equal(found[name], expected[name][[5, 2]]), name
    assert np.abs(found['samples'].astype(int) - expected['samples'][[5, 2]]).max() <= 1


def test_same_command_finishes_what_is_missing(files, run):
    folder, _ = run
    before = samples(folder)
    (folder / 'samples_00000003.npz').unlink()
    report = report_of(folder)
    code, output = invoke(files, f'--outdir={folder}', '--seeds=0-6', '--batch=3')
    assert code == 0 and '3 of them new' in output, output
    after, longer = samples(folder), report_of(folder)
    assert longer['wall_sec'] > report['wall_sec'] and longer['timed_images'] == report['timed_images'] + 3
    assert invoke(files, f'--outdir={folder}', '--seeds=0-6', '--batch=3')[0] == 0
    assert report_of(folder) == longer  # nothing was drawn
    assert np.array_equal(after['nfe'], before['nfe'])
    assert np.abs(after['samples'].astype(int) - before['samples']).max() <= 1
    code, output = invoke(files, f'--outdir={folder}', '--seeds=0-6', '--batch=3', '--max_iter=50')
    assert code == 1 and 'max_iter' in output and len(output.strip().splitlines()[-1]) < 400


def test_warmup_resumes_after_a_kill(files, tmp_path, monkeypatch):
    """Existing batches of the warm-up are not drawn again, unless other options made them."""
    drawn, calibrate = [], generate_diffrs.calibrate

    def warm_up(folder, *args, killed_after=99):
        """The sizes of the batches that a run draws until it ends or is killed."""
        def counted(net, log_ratio, seeds, *args, **kwargs):
            if len(drawn) == killed_after:
                raise KeyboardInterrupt
            drawn.append(len(seeds))
            return calibrate(net, log_ratio, seeds, *args, **kwargs)

        drawn.clear()
        monkeypatch.setattr(generate_diffrs, 'calibrate', counted)
        CliRunner().invoke(generate_diffrs.main, arguments(files, f'--outdir={tmp_path}/{folder}', '--seeds=0-1',
                                                           '--batch=2', *args))
        return list(drawn)

    assert warm_up('whole') == [2, 2, 2]
    assert warm_up('killed', killed_after=2) == [2, 2]
    assert len(list(tmp_path.glob('killed/*'))) == 2
    assert warm_up('killed', '--S_churn=1', killed_after=1) == [2]  # replaces the first one
    assert warm_up('killed', '--rej_percentile=0.5') == [2, 2]
    assert (tmp_path / 'killed/thresholds.json').read_bytes() == (tmp_path / 'whole/thresholds.json').read_bytes()
    assert warm_up('killed', '--overwrite', killed_after=1) == [2]
    assert warm_up('killed', '--overwrite') == [2, 2, 2]
    assert not list(tmp_path.glob('*/.*')) and not list(tmp_path.glob('*/thresholds-*'))


def test_pictures_carry_what_they_cost(files, run, tmp_path):
    """--save_type=png: the same samples, the same report, even if some of them existed already."""
    command = [f'--outdir={tmp_path}/out', '--seeds=0-6', '--batch=3', '--save_type=png',
               f'--thresholds={run[0] / "thresholds.json"}']
    code, output = invoke(files, *command)
    assert code == 0 and f'{report_of(run[0])["nfe"]["mean"]:.1f}' in output, output
    found = [np.array(PIL.Image.open(tmp_path / f'out/{seed:06d}.png')).astype(int) for seed in range(7)]
    assert np.abs(found - samples(run[0])['samples']).max() <= 1
    counts, expected = list(read_costs(tmp_path / 'out')), samples(run[0])
    assert all(np.array_equal(np.concatenate([c[name] for c in counts]), expected[name]) for name in counts[0])
    report = report_of(tmp_path / 'out')
    (tmp_path / 'out/000004.png').unlink()
    assert invoke(files, *command)[0] == 0
    assert report_of(tmp_path / 'out')['levels'] == report['levels'] == report_of(run[0])['levels']
    assert report_of(tmp_path / 'out')['timed_images'] == 10


def test_published_command(files, tmp_path, monkeypatch):
    """As its authors' users type it, with small networks in the documented places; and its other options."""
    monkeypatch.chdir(tmp_path)
    network = tmp_path / 'checkpoints/pretrained_score/edm-cifar10-32x32-uncond-vp.pkl'
    for path in (network, tmp_path / loading.CLASSIFIER[1:], tmp_path / loading.DISCRIMINATOR[1:]):
        path.parent.mkdir(parents=True, exist_ok=True)
    network.write_bytes((ROOT / 'tests/goldens/edm/ddpmpp_cond.pkl').read_bytes())
    write_discriminators(tmp_path, size=32)
    (tmp_path / 'classifier.pt').rename(tmp_path / loading.CLASSIFIER[1:])
    (tmp_path / 'disc_uncond.pt').rename(tmp_path / loading.DISCRIMINATOR[1:])
    short = '--num_samples=3 --batch=2 --steps=4 --iter_warmup=1 --device=cpu'
    for args in ('--outdir=samples/cifar10/diffrs --rej_percentile=0.75 --max_iter=105',
                 '--outdir=/samples/other --rej_percentile=0.9 --adaptive_pickle=None --adaptive_pickle2=None '
                 '--boosting=1 --mode=debug --no_zero=1 --backsteps=2 --min_backsteps=1 --max_backsteps=3 --do_seed=1 '
                 '--seed=5 --S_churn=10 --rule=published'):
        command = f'--network checkpoints/pretrained_score/{network.name} {args} {short}'
        result = CliRunner().invoke(generate_diffrs.main, command.split())
        assert result.exit_code == 0, result.output
    assert len(samples(tmp_path / 'samples/cifar10/diffrs')['samples']) == 3
    found = json.loads((tmp_path / 'samples/other/options.json').read_text())
    assert (found['seeds'], found['backsteps'], found['no_zero']) == ('5-7', 2, 1)
    assert np.flatnonzero(samples(tmp_path / 'samples/other')['tests'].sum(0)).tolist() == [2, 3]


def test_thresholds_of_another_run_are_refused(files, run, tmp_path):
    """A warm-up belongs to its networks, guidance and churn; the message names the difference."""
    state = torch.load(files / 'disc_uncond.pt', weights_only=True)
    torch.save({name: 2 * tensor for name, tensor in state.items()}, tmp_path / 'disc.pt')
    old = json.loads((run[0] / 'thresholds.json').read_text())
    for args, words in ((['--S_churn=10'], 'made with S_churn 0.0, this run has 10.0'),
                        (['--dg_weight_1st_order=1'], 'dg_weight_1st_order'),
                        ([f'--discriminator_ckpt={tmp_path}/disc.pt'], 'discriminator_sha256')):
        code, output = invoke(files, f'--outdir={tmp_path}/out', '--seeds=0-1', *args,
                              f'--thresholds={run[0] / "thresholds.json"}')
        assert code == 1 and words in output, output
        assert output.strip().splitlines()[-1].startswith('Error: --thresholds: '), output
    del old['origin']  # as earlier versions wrote them
    (tmp_path / 'old.json').write_text(json.dumps(old))
    code, output = invoke(files, f'--outdir={tmp_path}/out', '--seeds=0-1', f'--thresholds={tmp_path}/old.json')
    assert code == 0, output


def test_a_sample_without_end(files, run, tmp_path, monkeypatch):
    monkeypatch.setattr(diffrs_slots, 'HOPELESS', 0)
    code, output = invoke(files, f'--outdir={tmp_path}/out', '--seeds=0-6', '--batch=3',
                          f'--thresholds={run[0] / "thresholds.json"}')
    assert code == 1, output
    assert output.strip().splitlines()[-1].startswith('Error: --rej_percentile: the sample of seed '), output


def test_labels_belong_to_their_samples(files, tmp_path):
    args = dict(network='cond', disc='disc_cond')
    code, output = invoke(files, f'--outdir={tmp_path}/all', '--seeds=0-5', '--batch=2', '--cond=1', **args)
    assert code == 0, output
    labels = samples(tmp_path / 'all')['label']
    assert labels.shape == (6, 10) and (labels.sum(1) == 1).all() and len(set(labels.argmax(1))) > 1
    code, output = invoke(files, f'--outdir={tmp_path}/one', '--seeds=0-1', '--batch=2', '--cond=1', '--class=7',
                          **args)
    assert code == 0, output
    assert (samples(tmp_path / 'one')['label'].argmax(1) == 7).all()


def test_levels_that_go_untested_are_named(files, run, tmp_path):
    code, output = invoke(files, f'--outdir={tmp_path}/out', '--seeds=0-2', '--batch=3', '--max_backsteps=3',
                          f'--thresholds={run[0] / "thresholds.json"}')
    assert code == 0 and 'after the last 1 of 4 steps are not tested; --max_backsteps=4 tests them' in output, output
    assert (samples(tmp_path / 'out')['tests'][:, 4] == 0).all()
    assert 'not tested' not in run[1]
    for args in (['--min_backsteps=4'], ['--min_backsteps=1', '--backsteps=0']):
        folder = tmp_path / args[0]
        code, output = invoke(files, f'--outdir={folder}', '--seeds=0-2', '--batch=3', *args,
                              f'--thresholds={run[0] / "thresholds.json"}')
        assert code == 0 and '--min_backsteps leaves nothing to test' in output, output
        assert not samples(folder)['tests'].any()


def test_guidance_composes(files, run, tmp_path):
    code, output = invoke(files, f'--outdir={tmp_path}/out', '--seeds=0-2', '--batch=3', '--dg_weight_1st_order=2')
    assert code == 0, output
    assert (samples(tmp_path / 'out')['samples'] != samples(run[0])['samples'][:3]).any()


def test_published_warmup_is_read_without_running_it(files, run, tmp_path):
    calibration = json.loads((run[0] / 'thresholds.json').read_text())
    log_ratio = torch.tensor(calibration['log_ratio'])
    increments = torch.cat([torch.zeros_like(log_ratio[:1]), log_ratio.diff(dim=0)])
    for name, rows in (('adaptive', log_ratio), ('adaptive2', increments)):
        (tmp_path / f'{name}.pickle').write_bytes(pickle.dumps([row.clone() for row in rows]))
    pickles = [f'--adaptive_pickle={tmp_path}/adaptive.pickle', f'--adaptive_pickle2={tmp_path}/adaptive2.pickle']
    code, output = invoke(files, f'--outdir={tmp_path}/out', '--seeds=0-2', '--batch=3', *pickles)
    assert code == 0, output
    assert np.array_equal(samples(tmp_path / 'out')['nfe'], samples(run[0])['nfe'][:3])
    code, output = invoke(files, f'--outdir={tmp_path}/half', '--seeds=0-2', pickles[0])
    assert code == 1 and '--adaptive_pickle2' in output
    (tmp_path / 'adaptive.pickle').write_bytes(b'cos\nsystem\n(S"touch PWNED"\ntR.')
    code, output = invoke(files, f'--outdir={tmp_path}/bad', '--seeds=0-2', *pickles)
    assert code == 1 and 'os.system' in output and not Path('PWNED').exists()


@pytest.mark.parametrize(('args', 'words'), [
    (['--max_iter=3'], '--max_iter'),
    (['--rej_percentile=nan'], '--rej_percentile'),
    (['--boosting=1', '--dg_weight_1st_order=1'], '--boosting'),
    (['--class=1'], '--class'),
    (['--cond=1'], '--cond'),
    (['--thresholds=missing.json'], '--thresholds'),
    (['--restart=cifar10-43'], '--restart: a rejected step goes back one level, and a restart goes back itself'),
    (['--sampler=restart'], '--sampler: a rejected step goes back one level'),
    (['--num_particles=4'], '--num_particles: rejection draws from the ratio already'),
    (['--select'], '--select: rejection draws from the ratio already'),
    (['--solver=unipc'], '--solver: a step that depends on earlier ones cannot be drawn again'),
    (['--device=cuda:9'], '--device'),
])
def test_mistakes_end_in_one_line(files, tmp_path, args, words):
    code, output = invoke(files, f'--outdir={tmp_path}/out', '--seeds=0-1', *args)
    lines = output.strip().splitlines()
    assert code in (1, 2) and words in lines[-1] and lines[-1].startswith('Error: '), output
    assert not (tmp_path / 'out').exists()


def test_warmup_of_other_steps_is_refused(files, run, tmp_path):
    code, output = invoke(files, f'--outdir={tmp_path}/out', '--seeds=0-1', '--steps=5',
                          f'--thresholds={run[0] / "thresholds.json"}')
    assert code == 1 and 'calibrate again' in output


FEW_TRAJECTORIES = f'''
import sys
sys.path.insert(0, {str(ROOT / 'tests/helpers')!r})
import generate_diffrs
from commands import diffrs
from script_runs import few_trajectories
diffrs.warmup_seeds = few_trajectories
generate_diffrs.main()
'''


def test_two_processes_draw_the_same_samples(files, tmp_path):
    """Each takes a part of the warm-up, of six trajectories in batches of four, and of the samples."""
    (tmp_path / 'job.py').write_text(FEW_TRAJECTORIES)
    for processes in (1, 2):
        command = arguments(files, f'--outdir={tmp_path}/{processes}', '--seeds=0-6', '--batch=4')
        code, output = finish(tmp_path / 'job.py', command, processes, timeout=240)
        assert code == 0, output[-2000:]
    thresholds = [(tmp_path / processes / 'thresholds.json').read_text() for processes in '12']
    assert thresholds[0] == thresholds[1]
    expected, found = samples(tmp_path / '1'), samples(tmp_path / '2')
    assert np.array_equal(found['nfe'], expected['nfe'])
    assert np.abs(found['samples'].astype(int) - expected['samples']).max() <= 1


def test_a_weaker_network_may_guide(files, tmp_path):
    """In an interval of noise levels; the warm-up records it, so another guidance needs another warm-up."""
    guide = [f'--guiding_network={files / "uncond.safetensors"}', '--guiding_weight=1.5', '--guidance_interval=0.5,100']
    code, output = invoke(files, f'--outdir={tmp_path}/out', '--seeds=0-3', *guide)
    assert code == 0, output
    report = report_of(tmp_path / 'out')
    assert 0 < report['guiding_calls']['mean'] < report['nfe']['mean']
    code, output = invoke(files, f'--outdir={tmp_path}/other', '--seeds=0-3',
                          f'--thresholds={tmp_path}/out/thresholds.json')
    assert code == 1 and '--thresholds' in output and 'guiding' in output
    code, output = invoke(files, f'--outdir={tmp_path}/steps', '--seeds=0-3', *guide[:2], '--guidance_interval=[1,2]')
    assert code == 1 and output.strip().splitlines()[-1].startswith('Error: --guidance_interval'), output
