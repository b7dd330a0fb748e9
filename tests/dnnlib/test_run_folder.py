"""Folders that belong to one run: locks, compared options, removed files."""

import errno
import fcntl
import json
import os

import pytest
from script_runs import another_run, contents

from dnnlib.run_folder import RunFolder, check_options, lock_folder, read_options, write_options


def test_a_folder_is_locked_for_others(tmp_path):
    with lock_folder(tmp_path) as locked, lock_folder(tmp_path) as again:  # which leaves the lock where it is
        assert locked and again
        handle = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)
    with another_run(tmp_path), pytest.raises(ValueError, match='another run is writing'), lock_folder(tmp_path):
        pass
    with lock_folder(tmp_path) as locked:
        assert locked and not list(tmp_path.iterdir())


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def no_locks(handle, operation):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(fcntl, 'flock', no_locks)
    with lock_folder(tmp_path) as locked:
        assert not locked


def test_options_of_another_run_are_named(tmp_path):
    path, there = tmp_path / 'options.json', dict(a=1, same=[1.0, None], report=3, long='x' * 70)
    path.write_text(json.dumps(there))
    check_options(path, there)
    check_options(path, there | dict(report=4), ignored={'report'})
    with pytest.raises(ValueError, match=r"\(new was None, now 2; long was 'x{56}\.\.\., now None\); use"):
        check_options(path, dict(a=1, same=[1.0, None], new=2, report=3))
    path.write_text('[1, 2]')
    with pytest.raises(ValueError, match='options.json is not readable'):
        check_options(path, {})


def owns(options, name):
    """A run with `length` n writes result-1 to result-n."""
    return name.startswith('result-') and int(name[7:]) <= options.get('length', 0)


def folder_with(path, **files):
    """`path` with an options.json (options) and results, by their content."""
    for name, content in files.items():
        if name == 'options':
            write_options(path, content)
        else:
            (path / name.replace('_', '-')).write_text(content)
    return path


def test_a_claimed_folder_is_locked_and_described(tmp_path):
    folder = RunFolder(tmp_path / 'deep' / 'run', dict(length=2, pair=(1, 2)), owns)
    with folder.claim():
        assert contents(folder.path).keys() == {'options.json'}
        assert read_options(folder.path / 'options.json') == dict(length=2, pair=[1, 2])
        with pytest.raises(BlockingIOError):
            handle = os.open(folder.path, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)
    with lock_folder(folder.path):  # no longer locked
        pass
    written = os.stat(folder.path / 'options.json').st_mtime_ns
    with RunFolder(folder.path, dict(length=2, pair=[1, 2]), owns).claim():
        assert os.stat(folder.path / 'options.json').st_mtime_ns == written


def test_another_run_is_refused_and_stays(tmp_path):
    folder_with(tmp_path, options=dict(length=1, report=dict(sec=3)), result_1='precious')
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r'other options \(length was 1, now 2\); use another folder or --overwrite'):
        RunFolder(tmp_path, dict(length=2), owns).prepare(locked=True)
    RunFolder(tmp_path, dict(length=2), owns).check(undecided=['length'])
    RunFolder(tmp_path, dict(length=1, report=None, unknown=None), owns).prepare(locked=True)  # of an older version
    assert contents(tmp_path) == before


def test_results_of_unknown_origin_are_refused(tmp_path):
    folder_with(tmp_path, result_1='precious', result_2='precious', result_3='precious')
    with pytest.raises(ValueError, match='holds result-1, result-2 but no options.json that says what made them; use'):
        RunFolder(tmp_path, dict(length=2), owns).prepare()
    assert contents(tmp_path).keys() == {'result-1', 'result-2', 'result-3'}


def test_overwriting_removes_what_either_run_owns(tmp_path):
    folder_with(tmp_path, options=dict(length=3), result_1='old', result_3='old', result_4='foreign', notes='mine')
    with RunFolder(tmp_path, dict(length=1), owns).claim(overwrite=True):
        assert contents(tmp_path).keys() == {'options.json', 'notes', 'result-4'}
        assert read_options(tmp_path / 'options.json') == dict(length=1)


@pytest.mark.parametrize('locked', [True, False])
def test_half_files_go_if_nobody_can_be_writing_them(tmp_path, locked):
    for name in ('options.json', 'result-1', 'notes'):
        (tmp_path / f'.{name}.0a1b2c3d.tmp').write_bytes(b'half')
    RunFolder(tmp_path, dict(length=1), owns).prepare(locked=locked)
    left = {path.name for path in tmp_path.glob('.*')}
    assert left == {'.notes.0a1b2c3d.tmp'} | (set() if locked else {'.options.json.0a1b2c3d.tmp',
                                                                    '.result-1.0a1b2c3d.tmp'})


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / 'run').write_bytes(b'')
    with pytest.raises(NotADirectoryError, match='is a file; name a folder'):
        RunFolder(tmp_path / 'run', {}, owns).prepare()
