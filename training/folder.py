"""The folder of a training run: one set of options, one run at a time."""

import contextlib
import json
from pathlib import Path

from dnnlib.files import atomic_write
from torch_utils import distributed as dist

OPTIONS_FILE = 'options.json'
STATE_FILE = 'training-state.pt'
_locks = []  # open for as long as the process lives


def claim_folder(outdir, config: dict, owned=('network-*.safetensors',), overwrite: bool = False) -> Path:
    """Make `outdir` the folder of the run that `config` (JSON-able) describes; all ranks call this.

    Raises ValueError on every rank where the folder belongs to a run with other options (they are named), holds
    files that match `owned` from somewhere else, or is in use by another process. With `overwrite`, the earlier
    run's files go.
    """
    outdir = Path(outdir)
    error = None
    if dist.get_rank() == 0:
        try:
            _claim(outdir, json.loads(json.dumps(config)), [STATE_FILE, 'stats.jsonl', *owned], overwrite)
        except (ValueError, OSError) as problem:
            error = str(problem)
    error = dist.broadcast_object(error)
    if error is not None:
        raise ValueError(error)
    return outdir


def _claim(outdir, config, owned, overwrite):
    outdir.mkdir(parents=True, exist_ok=True)
    _lock(outdir)
    for leftover in outdir.glob('.*.tmp'):  # of a process that was killed while writing
        leftover.unlink()
    present = sorted(path for pattern in owned for path in outdir.glob(pattern))
    options = outdir / OPTIONS_FILE
    if overwrite:
        for path in [*present, options]:
            path.unlink(missing_ok=True)
    elif options.is_file():
        _compare(outdir, json.loads(options.read_text()), config)
        return
    elif present:
        raise ValueError(f'{outdir} holds {present[0].name} but no {OPTIONS_FILE}; '
                         f'choose another folder, or --overwrite')
    with atomic_write(options) as file:
        file.write((json.dumps(config, indent=2, sort_keys=True) + '\n').encode())


def _compare(outdir, there, here):
    names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    if names:
        listed = ', '.join(f'{name} ({_short(there.get(name))} there, {_short(here.get(name))} here)' for name in names)
        raise ValueError(f'{outdir} holds a run with other options: {listed}; choose another folder, or --overwrite')


def _short(value):
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + '...'


def _lock(outdir):
    """One run per folder, where the file system has locks; the lock goes with the process."""
    try:
        import fcntl
    except ImportError:
        return
    file = open(outdir / '.lock', 'a')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f'{outdir} is in use by another process') from None
    except OSError:
        file.close()
        return
    _locks.append(file)


@contextlib.contextmanager
def released():
    """Give the locks back at the end of the block."""
    try:
        yield
    finally:
        while _locks:
            _locks.pop().close()
