"""generation/folder.py: damaged files, and locks if folders have none."""

import errno
import fcntl
import os
import stat

import pytest
from test_run import run

from generation.folder import SampleFolder


@pytest.mark.parametrize('save_type', ['npz', 'png'])
def test_damage_anywhere_is_no_error(tmp_path, save_type):
    """Each byte of the headers in turn: a shard counts as complete or not, and never ends the run."""
    run(tmp_path, seeds=range(4), save_type=save_type)
    folder = SampleFolder(tmp_path, range(4), 4, {}, save_type)
    path = folder.last_file(folder.shards[0])
    whole, found = path.read_bytes(), set()
    for place in [*range(80), *range(len(whole) - 400 if save_type == 'npz' else 0, len(whole))]:
        for flipped in (255, 1, 8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flipped]) + whole[place + 1:])
            found.add(folder.is_complete(folder.shards[0]))
    assert False in found


@pytest.mark.parametrize('save_type', ['npz', 'png'])
def test_a_file_cut_short_is_not_whole(tmp_path, save_type):
    run(tmp_path, seeds=range(4), save_type=save_type)
    folder = SampleFolder(tmp_path, range(4), 4, {}, save_type)
    path = folder.last_file(folder.shards[0])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert not folder.is_complete(folder.shards[0]), len(whole) - length


def test_folders_that_lock_files_only(tmp_path, monkeypatch):
    """As on NFS: a folder cannot be opened for writing, so a file in it is locked."""
    flock = fcntl.flock

    def nfs_flock(handle, operation):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EBADF, 'Bad file descriptor')
        flock(handle, operation)

    monkeypatch.setattr(fcntl, 'flock', nfs_flock)
    run(tmp_path)
    handle = os.open(tmp_path / '.lock', os.O_RDWR)
    flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match='another run is writing'):
        run(tmp_path)
    os.close(handle)
    monkeypatch.setattr(fcntl, 'flock', lambda handle, operation: nfs_flock(os.open('/', os.O_RDONLY), 0))
    (tmp_path / '.samples_00000004.npz.0a1b2c3d.tmp').write_bytes(b'half')
    run(tmp_path)  # no locks at all: files that may be another run's stay
    assert (tmp_path / '.samples_00000004.npz.0a1b2c3d.tmp').exists()


def test_options_that_are_no_options(tmp_path):
    run(tmp_path)
    for text in ('[1, 2]', '3', '{"a": '):
        (tmp_path / 'options.json').write_text(text)
        with pytest.raises(ValueError, match='options.json is not readable'):
            run(tmp_path)
