"""Paths as users write them, and files written complete or not at all."""

import hashlib
import os
import stat

import pytest

from dnnlib.files import atomic_write, file_digest, file_sha256, resolve_output, resolve_path


@pytest.fixture
def room(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'stats').mkdir()
    (tmp_path / 'stats' / 'x.npz').write_bytes(b'x')
    return tmp_path


def test_published_paths_are_below_the_working_folder(room):
    assert resolve_path('/stats/x.npz') == room / 'stats' / 'x.npz'
    assert resolve_path('/stats') == room / 'stats'


def test_paths_as_given(room):
    assert resolve_path('stats/x.npz').samefile(room / 'stats' / 'x.npz')
    assert resolve_path(room / 'stats' / 'x.npz') == room / 'stats' / 'x.npz'
    assert str(resolve_path('/stats/absent.npz')) == '/stats/absent.npz'  # the message names the path that was given
    assert str(resolve_path('absent.npz')) == 'absent.npz'
    assert str(resolve_path('/')) == '/'


def test_an_existing_absolute_path_wins(room):
    """Even if the working folder has the same path."""
    twin = room.joinpath(*room.parts[1:])
    twin.mkdir(parents=True)
    assert resolve_path(room) == room and resolve_output(room) == room


def test_the_home_folder(room, monkeypatch):
    monkeypatch.setenv('HOME', str(room))
    assert resolve_path('~/stats') == room / 'stats' and resolve_output('~/new') == room / 'new'
    assert str(resolve_path('~nobody-here/x')) == '~nobody-here/x'


def test_outputs(room):
    assert resolve_output('/no-such-folder-here/run') == room / 'no-such-folder-here' / 'run'
    assert resolve_output('/no-such-folder-here/a/b') == room / 'no-such-folder-here' / 'a' / 'b'
    assert resolve_output('/stats/new') == room / 'stats' / 'new'
    assert resolve_output('/stats') == room / 'stats'
    assert resolve_output(room / 'new') == room / 'new'
    assert str(resolve_output('new/run')) == os.path.join('new', 'run')
    # the same path is written and read
    path = resolve_output('/no-such-folder-here/run')
    path.mkdir(parents=True)
    assert resolve_path('/no-such-folder-here/run') == path == resolve_output('/no-such-folder-here/run')


def test_atomic_write(tmp_path):
    path = tmp_path / 'deep' / 'er' / 'file.bin'
    for content in (b'first', b'second'):
        with atomic_write(path) as file:
            file.write(content)
        assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


def test_the_name_appears_at_the_end(tmp_path):
    path = tmp_path / 'file.bin'
    with atomic_write(path) as file:
        file.write(b'half')
        file.flush()
        assert not path.exists()
        temporary, = tmp_path.iterdir()
        assert temporary.name.startswith('.file.bin.') and temporary.name.endswith('.tmp')


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_the_old_file(tmp_path, error):
    path = tmp_path / 'file.bin'
    path.write_bytes(b'old')
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b'half')
        raise error
    assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]


def test_failure_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic_write(tmp_path / 'file.bin') as file:
        file.write(b'half')
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / 'taken').mkdir()
    with pytest.raises(OSError), atomic_write(tmp_path / 'taken') as file:
        file.write(b'x')
    assert [path.name for path in tmp_path.iterdir()] == ['taken']
    (tmp_path / 'file').write_bytes(b'')
    with pytest.raises(OSError), atomic_write(tmp_path / 'file' / 'below'):
        pass


def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / 'file.bin') as file:
            file.write(b'x')
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / 'file.bin').stat().st_mode) == 0o640


def test_digests(tmp_path):
    """For a file longer than one read."""
    data = bytes(range(256)) * 5000
    (tmp_path / 'file').write_bytes(data)
    assert file_sha256(tmp_path / 'file') == hashlib.sha256(data).hexdigest()
    assert file_digest(tmp_path / 'file') == hashlib.sha256(data).hexdigest()[:16]
    assert file_digest(tmp_path / 'absent') is None
