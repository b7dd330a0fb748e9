"""calc_metrics.py gen: the numbers of images that are drawn are those of the same images from files."""

import json
import os
import shlex
from pathlib import Path

import measuring
import pytest
from click.testing import CliRunner
from goldens import recipe_
from script_runs import finish
from tiny_networks import TINY, write_discriminators

import calc_metrics
import generate
import generate_diffrs
import generate_dmcmc
import networks
import plot
from commands import in_memory
from metrics import evaluate
from networks.noise_level import NoiseLevelNet, save_noise_level

SMALL = ('--device=cpu', '--precision=fp32', '--batch=10', '--seeds=0-39')


@pytest.fixture(scope='module')
def nets(tmp_path_factory):
    """A folder of tiny networks of 32x32 images, which the detector takes."""
    folder = tmp_path_factory.mktemp('networks')
    net = networks.construct('EDMPrecond', TINY | dict(
        label_dim=0, img_resolution=32, model_channels=8, attn_resolutions=[]))
    networks.save_network(folder / 'net.safetensors', recipe_(net))
    write_discriminators(folder, size=32)
    save_noise_level(folder / 'levels.safetensors', recipe_(NoiseLevelNet(sigma_min=0.1, sigma_max=20.0, levels=20)))
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    return measuring.make_place(tmp_path, monkeypatch)


def gen(*args):
    result = CliRunner().invoke(calc_metrics.main, ['gen', *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def words(nets, script):
    """A sampling command of tiny networks without its --outdir."""
    disc = [f'--pretrained_classifier_ckpt={nets}/classifier.pt', f'--discriminator_ckpt={nets}/disc_uncond.pt']
    return [f'{script}.py', f'--network={nets}/net.safetensors', *SMALL, *dict(
        generate=['--steps=2', '--S_churn=1', '--dg_weight_1st_order=0'],
        generate_diffrs=['--steps=2', '--iter_warmup=1', '--rej_percentile=0.75', *disc],
        generate_dmcmc=[f'--noise_classifier={nets}/levels.safetensors', '--chains=10', '--n_init=1', '--n_burn=1',
                        '--n_skip=1', '--steps=2'])[script]]


@pytest.mark.parametrize('script', [generate, generate_dmcmc, pytest.param(generate_diffrs, marks=pytest.mark.slow)],
                         ids=lambda script: script.__name__)
def test_numbers_are_those_of_files(nets, place, monkeypatch, script):
    command = words(nets, script.__name__)
    before = {path: path.stat().st_mtime_ns for path in place.rglob('*')}
    monkeypatch.setattr(in_memory.tempfile, 'tempdir', None)
    monkeypatch.setenv('TMPDIR', str(place / 'tmp'))
    os.mkdir('tmp')
    blocks = 2 if script is generate else 1
    command += [f'--seeds=0-{20 * blocks - 1}']
    result = gen(f'--blocks={blocks}', '--json=out/drawn.json', '--', *command)
    assert result.exit_code == 0, result.output
    made = {path.name for path in place.rglob('*') if path not in before and path.is_file()}
    assert made == {'drawn.json', 'drawn.json.npz'} and not list(Path('tmp').glob('samples-*'))

    result = CliRunner().invoke(script.main, [*command[1:], '--outdir=files'])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(calc_metrics.main, ['calc', '--images=files', '--num=20', f'--blocks={blocks}',
                                                    '--batch=10', '--json=files.json'])
    assert result.exit_code == 0, result.output
    drawn, saved = (json.loads(Path(name).read_text())['summaries'][0] for name in ('out/drawn.json', 'files.json'))
    ours, theirs = drawn.pop('results')[0], saved.pop('results')[0]
    assert drawn == saved and ours['metrics'] == theirs['metrics'] and ours['name'] == script.__name__
    own, other = (options.pop('report') for options in (ours['options'], theirs['options']))
    words_of = shlex.split(ours['options'].pop('command'))
    assert words_of == ['python', *command] and theirs['options'].pop('command').endswith(' --outdir=files')
    assert ours['options'] == theirs['options']
    assert [own[name] for name in ('images', 'nfe', 'discriminator_calls')] == [
        other[name] for name in ('images', 'nfe', 'discriminator_calls')]
    assert own['timed_images'] == 20 * blocks and own['wall_sec'] > 0


def test_the_same_command_again_draws_nothing(nets, place, monkeypatch):
    passes = []
    measure_all = evaluate.measure_all
    monkeypatch.setattr(evaluate, 'measure_all', lambda source, *args, **kwargs: (
        passes.append(source.name), measure_all(source, *args, **kwargs))[1])

    def reports():
        return [result['options']['report'] for summary in json.loads(Path('r.json').read_text())['summaries']
                for result in summary['results']]

    def plot_report():
        return CliRunner().invoke(plot.main, ['report', 'r.json', '--out=page.html'])

    command = words(nets, 'generate')
    first = gen('--metrics=fd', '--json=r.json', '--', *command)
    report, = reports()
    again = gen('--metrics=fd', '--json=r.json', '--', *command)
    assert passes == ['generate'] and again.output.partition('Detector')[2].strip() in first.output
    again_report, = reports()
    assert again_report == report and report['images'] == 40
    assert plot_report().exit_code == 0
    gen('--metrics=fd', '--json=r.json', '--', *command, '--steps=3')
    assert len(passes) == 2


@pytest.mark.slow
def test_processes_give_the_same_numbers(nets, place):
    """Also where one of two ranks has nothing to draw in a pass, and chains that it has to follow from their start."""
    (place / 'job.py').write_text(
        'import os, sys\nfrom pathlib import Path\nfrom dnnlib import demo\n'
        'os.chdir(Path(__file__).parent)\n'
        'demo.DEMO_FEATURES = Path("features.safetensors").resolve()\n'
        'import calc_metrics\ncalc_metrics.main(sys.argv[1:])\n')
    for script in ('generate', 'generate_diffrs', 'generate_dmcmc'):
        common = ['gen', '--metrics=fd,kid', f'--ref={place}/stats/demo.npz']
        command = ['--', *words(nets, script)]
        result = gen(*common[1:], '--json=one.json', *command)
        assert result.exit_code == 0, result.output
        code, output = finish(place / 'job.py', [*common, f'--json={place}/two.json', *command], processes=2)
        assert code == 0, output
        one, two = (json.loads(Path(name).read_text())['summaries'][0]['results'][0] for name in ('one.json',
                                                                                                  'two.json'))
        for name in one['metrics']:
            assert one['metrics'][name]['value'] == pytest.approx(two['metrics'][name]['value'], rel=1e-6), name
        assert one['options']['report']['nfe'] == two['options']['report']['nfe']
        Path('one.json').unlink(), Path('two.json').unlink()


@pytest.mark.parametrize('change, part', [
    (['nothing.py'], 'COMMAND: nothing.py is not a sampling script; use one of generate.py, generate_diffrs.py'),
    (['generate.py', '--stepz=3'], 'No such option'),
    (['generate.py', '--seeds=0-9', '--network=nowhere.pkl'], '--network: '),
    (['generate.py', '--network={files}/nan.safetensors', '--dg_weight_1st_order=0', '--seeds=0-39', '--steps=2'],
     '--network: the sample of seed 0 holds NaN or infinity'),
    (['generate.py', '--network={files}/uncond.safetensors', '--dg_weight_1st_order=0', '--seeds=0-39', '--steps=2'],
     '--network: the detector cifar10 takes images'),
    (['generate.py', '--network={files}/uncond.safetensors', '--dg_weight_1st_order=0', '--precision=tf32'],
     '--precision: tf32 would hold for the detectors too'),
    (['generate.py', '--outdir=here', '--seeds=0-39'], 'COMMAND: --outdir: no images are saved here; leave it out'),
    (['generate_reflected.py', '--likelihood=data.npz'], 'COMMAND: --likelihood: draws no images'),
])
def test_bad_input(files, place, change, part):
    result = gen('--', *(word.format(files=files) for word in change), '--device=cpu')
    assert result.exit_code != 0 and isinstance(result.exception, SystemExit), result.output
    assert part in ' '.join(result.output.split()) and 'Traceback' not in result.output


def test_blocks_are_whole_batches(nets, place):
    result = gen('--blocks=3', '--', *words(nets, 'generate'))
    assert result.exit_code == 1 and '--blocks: 40 images in batches of 10 are not 3 equal blocks' in result.output
