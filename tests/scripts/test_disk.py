"""Full and read-only disks: one line that names the option, nothing half-written, and the same command completes."""

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from script_runs import (
    ROOT,
    comparable,
    contents,
    diffrs_arguments,
    few_trajectories,
    finish,
    generate_arguments,
    invoke,
)

import dataset_tool
import fid_npzs
import generate
import generate_diffrs
import train_score
from commands import diffrs
from dnnlib.files import atomic_write
from torch_utils.checkpoint import load_state, save_state

SCRIPTS = dict(generate=(generate.main, generate_arguments, '24k', ('--seeds=0-4', '--batch=1')),
               generate_diffrs=(generate_diffrs.main, diffrs_arguments, '24k', ('--seeds=0-4', '--batch=1')))
WRITERS = dict(
    bytes=lambda file: file.write(bytes(100000)),
    npz=lambda file: np.savez(file, a=np.zeros(100000)),
    npz_compressed=lambda file: np.savez_compressed(file, a=np.random.RandomState(0).rand(20000)),
    torch=lambda file: torch.save(dict(a=torch.zeros(100000)), file),
    zip=lambda file: _write_zip(file))


def _write_zip(file):
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('a', bytes(100000))


class Disk:
    """A small separate file system at `path`."""

    def __init__(self, path):
        self.path = path
        path.mkdir()
        self._run('mount', '-t', 'tmpfs', '-o', 'size=300k', 'none')

    def _run(self, *command):
        done = subprocess.run([*command, str(self.path)], capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr.strip())

    def set(self, option):
        """E.g. size=4m, ro or rw."""
        self._run('mount', '-o', f'remount,{option}')

    def fill(self):
        """Leave no room for another byte."""
        with contextlib.suppress(OSError), open(self.path / 'filler', 'wb', buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    def close(self):
        self._run('umount', '-l')


@pytest.fixture
def disk(tmp_path):
    if not shutil.which('mount'):
        pytest.skip('no mount command')
    try:
        disk = Disk(tmp_path / 'disk')
    except OSError as error:
        pytest.skip(f'no right to mount a small disk: {error}')
    yield disk
    disk.close()


@pytest.fixture(scope='module')
def extra(files, tmp_path_factory):
    """Options by script that save the warm-up."""
    folder = tmp_path_factory.mktemp('warm-up')
    command = diffrs_arguments(files, f'--outdir={folder}', '--seeds=0', '--batch=6')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffrs, 'warmup_seeds', few_trajectories)
        assert invoke(generate_diffrs.main, *command).exit_code == 0
    return dict(generate=[], generate_diffrs=[f'--thresholds={folder}/thresholds.json'])


@contextlib.contextmanager
def file_size_limit(size):
    """No file of this process may grow beyond `size` bytes (EFBIG: Python ignores the signal)."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def assert_refused(result, option, words):
    errors = [line for line in result.output.splitlines() if 'Error' in line]
    assert result.exit_code == 1 and len(errors) == 1, result.output
    assert errors[0].startswith(f'Error: {option}: ') and words in errors[0], result.output


def assert_whole(folder):
    """No temporary file, and every shard can be read to its end."""
    assert not list(folder.glob('.*.tmp'))
    for path in folder.glob('*.npz'):
        with np.load(path, allow_pickle=False) as file:
            assert all(len(file[name]) for name in file.files)


@pytest.mark.parametrize('writer', WRITERS)
def test_every_writer_reports_a_file_that_cannot_grow(tmp_path, writer):
    """Also torch.save, which has its own error; the old file stays, and the message has its name and the remedy."""
    path = tmp_path / 'file'
    path.write_bytes(b'old')
    with file_size_limit(5000), pytest.raises(OSError, match=r'File too large.*ulimit.*same command.*/file') as caught:
        with atomic_write(path) as file:
            WRITERS[writer](file)
    assert caught.value.errno == errno.EFBIG and contents(tmp_path) == {'file': b'old'}


@pytest.mark.parametrize('writer', WRITERS)
def test_every_writer_reports_a_full_disk(disk, writer):
    (disk.path / 'file').write_bytes(b'old')
    disk.fill()
    with pytest.raises(OSError, match=r'No space left.*make room.*/file'), atomic_write(disk.path / 'file') as file:
        WRITERS[writer](file)
    assert (disk.path / 'file').read_bytes() == b'old' and len(os.listdir(disk.path)) == 2


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_errors_of_fsync(tmp_path, monkeypatch, code):
    """If the disk promises room that it does not have, the flush fails."""
    def refuse(handle):
        raise OSError(code, os.strerror(code))

    (tmp_path / 'file').write_bytes(b'old')
    monkeypatch.setattr(os, 'fsync', refuse)
    with pytest.raises(OSError, match='same command again.*/file'), atomic_write(tmp_path / 'file') as file:
        file.write(b'new')
    assert contents(tmp_path) == {'file': b'old'}


def test_errors_of_other_files_keep_their_names(tmp_path):
    """An unreadable file inside the block is not the file being written."""
    with pytest.raises(PermissionError, match=r'denied: .*/input'), atomic_write(tmp_path / 'file'):
        raise PermissionError(errno.EACCES, 'denied', str(tmp_path / 'input'))


@pytest.mark.parametrize('script', SCRIPTS)
def test_a_run_on_a_full_disk(files, tmp_path, disk, script, extra):
    main, arguments, size, args = SCRIPTS[script]
    outdir = disk.path / 'out'
    command = arguments(files, f'--outdir={outdir}', *args, *extra[script])
    disk.set(f'size={size}')
    for _ in range(2):  # it does not get worse
        assert_refused(invoke(main, *command), '--outdir', 'No space left')
        assert_whole(outdir)
    written = len(list(outdir.glob('samples_*.npz')))
    disk.set('size=8m')
    assert invoke(main, *command).exit_code == 0
    assert 0 < written < len(list(outdir.glob('samples_*.npz')))
    assert invoke(main, *arguments(files, f'--outdir={tmp_path}/undisturbed', *args, *extra[script])).exit_code == 0
    assert comparable(outdir) == comparable(tmp_path / 'undisturbed')


@pytest.mark.parametrize('script', ['generate', pytest.param('generate_diffrs', marks=pytest.mark.slow)])
def test_a_disk_that_is_full_from_the_start(files, disk, script):
    disk.fill()
    main, arguments, _, args = SCRIPTS[script]
    assert_refused(invoke(main, *arguments(files, f'--outdir={disk.path}/out', *args)), '--outdir', 'make room')
    assert not os.listdir(disk.path / 'out')


@pytest.mark.parametrize('script', SCRIPTS)
def test_files_that_cannot_grow(files, tmp_path, script, extra):
    """Like a full disk, for users who may not mount one."""
    main, arguments, _, _ = SCRIPTS[script]
    command = arguments(files, f'--outdir={tmp_path}/out', '--seeds=0-7', '--batch=4', *extra[script])
    with file_size_limit(900):  # enough for options.json
        assert_refused(invoke(main, *command), '--outdir', 'File too large')
    assert_whole(tmp_path / 'out')
    assert not list((tmp_path / 'out').glob('samples_*.npz'))
    assert invoke(main, *command).exit_code == 0
    assert len(list((tmp_path / 'out').glob('samples_*.npz'))) == 2


@pytest.mark.parametrize('script', SCRIPTS)
def test_a_read_only_folder(files, disk, script, extra):
    """A new folder and an incomplete one are refused; a complete one is only read."""
    main, arguments, _, _ = SCRIPTS[script]
    outdir = disk.path / 'out'
    command = arguments(files, f'--outdir={outdir}', '--seeds=0-7', '--batch=4', *extra[script])
    disk.set('ro')
    assert_refused(invoke(main, *command), '--outdir', 'Read-only file system')
    disk.set('rw')
    assert invoke(main, *command).exit_code == 0
    whole = comparable(outdir)
    (outdir / 'samples_00000004.npz').unlink()
    (outdir / '.samples_00000004.npz.0a1b2c3d.tmp').write_bytes(b'half')
    disk.set('ro')
    assert_refused(invoke(main, *command), '--outdir', 'Read-only file system')
    disk.set('rw')
    assert invoke(main, *command).exit_code == 0
    assert comparable(outdir) == whole


def test_training_on_a_full_disk(tmp_path, disk):
    """A state that does not fit is not written; once there is room, the run ends like one that always had room."""
    np.savez(tmp_path / 'data.npz', samples=np.random.RandomState(0).randint(256, size=[40, 4, 4, 3], dtype=np.uint8))
    args = [f'--data={tmp_path}/data.npz', '--channels=8', '--kimg=1', '--batch=100', '--tick=1', '--device=cpu',
            '--precision=fp32']
    outdir = disk.path / 'run'
    assert_refused(invoke(train_score.main, f'--outdir={outdir}', *args), '--outdir', 'No space left')
    assert not list(outdir.glob('.*.tmp')) and not (outdir / 'training-state.pt').exists()
    disk.set('size=32m')
    for path in (outdir, tmp_path / 'undisturbed'):
        result = invoke(train_score.main, f'--outdir={path}', *args)
        assert result.exit_code == 0, result.output
    ours, expected = contents(outdir), contents(tmp_path / 'undisturbed')
    assert ours['network-000001.safetensors'] == expected['network-000001.safetensors']


def test_an_older_state_survives_a_full_disk(disk):
    save_state(disk.path / 'state.pt', dict(step=1, a=torch.zeros(1000)))
    disk.fill()
    with pytest.raises(OSError, match='No space left'):
        save_state(disk.path / 'state.pt', dict(step=2, a=torch.zeros(1000)))
    assert load_state(disk.path / 'state.pt')['step'] == 1


@pytest.mark.parametrize('problem, words', [('full', 'No space left'), ('read-only', 'Read-only file system')])
def test_other_outputs(tmp_path, disk, problem, words):
    """Reports, statistics and data sets: only earlier files are there."""
    images = np.random.RandomState(0).randint(256, size=[24, 32, 32, 3], dtype=np.uint8)
    np.savez(tmp_path / 'source.npz', samples=images, label=np.arange(24) % 5)
    disk.fill() if problem == 'full' else disk.set('ro')
    before = sorted(os.listdir(disk.path))
    measure = [fid_npzs.main, f'--images={tmp_path}/source.npz', '--num_samples=24', '--device=cpu']
    make = [dataset_tool.main, None, f'--source={tmp_path}/source.npz']
    for option, name, command in [('--json', 'report.json', measure), ('--save_stats', 'stats.npz', measure),
                                  ('--outdir', 'data', [make[0], 'npz', make[2]]),
                                  ('--dest', 'data.zip', [make[0], 'zip', make[2]]),
                                  ('--dest', 'stats.npz', [make[0], 'stats', make[2]])]:
        assert_refused(invoke(*command, f'{option}={disk.path}/{name}'), option, words)
        found = [path for path in sorted(os.listdir(disk.path)) if path != 'data' or os.listdir(disk.path / path)]
        assert found == before, (option, name)


@pytest.mark.slow
@pytest.mark.parametrize('script', SCRIPTS)
def test_processes_on_a_full_disk(files, tmp_path, disk, script):
    """Under torchrun all ranks end; the same command completes."""
    main, arguments, size, args = SCRIPTS[script]
    command = (ROOT / f'{script}.py', arguments(files, f'--outdir={disk.path}/out', *args), 2)
    disk.set(f'size={size}')
    code, output = finish(*command)
    assert code != 0 and 'Error: --outdir: ' in output and 'make room' in output, output
    disk.set('size=8m')
    code, output = finish(*command)
    assert code == 0, output
    assert_whole(disk.path / 'out')
    assert invoke(main, *arguments(files, f'--outdir={tmp_path}/undisturbed', *args)).exit_code == 0
    assert comparable(disk.path / 'out') == comparable(tmp_path / 'undisturbed')
