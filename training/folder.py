"""The folder of a training run: one set of options, one run at a time."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from dnnlib.files import atomic_write, check_options, lock_folder, read_options
from torch_utils import distributed as dist

OPTIONS_FILE = 'options.json'
STATE_FILE = 'training-state.pt'
STATS_FILE = 'stats.jsonl'
TEMPORARY = re.compile(r'\.(.+)\.[0-9a-f]+\.tmp')  # as atomic_write names it


@contextlib.contextmanager
def claim_folder(outdir, config: dict, owns: Callable[[dict, str], bool], overwrite: bool = False) -> Iterator[None]:
    """Reserve `outdir` for the run that `config` (JSON-able) describes while the block runs; all ranks call this.

    `owns(config, name)` says whether a run of such a config writes a file of this name, beside its state. Raises
    ValueError where the folder belongs to a run with other options (which are named), holds files of such a name from
    elsewhere, or is in use by another process, and OSError where it cannot be written. Rank 0 alone raises; the other
    ranks then exit silently. `overwrite` removes the files of an earlier run, and those that this one would replace.
    """
    outdir, config = Path(outdir), json.loads(json.dumps(config))
    with contextlib.ExitStack() as stack:
        dist.on_rank0(lambda: _claim(outdir, config, owns, overwrite, stack))
        yield


def _claim(outdir, config, owns, overwrite, stack):
    def own(name, config=config):
        return name in (STATE_FILE, STATS_FILE) or owns(config, name)

    outdir.mkdir(parents=True, exist_ok=True)
    locked = stack.enter_context(lock_folder(outdir))
    options, files = outdir / OPTIONS_FILE, os.listdir(outdir)
    if locked:
        for name in files:
            whole = TEMPORARY.fullmatch(name)
            if whole and (whole[1] == OPTIONS_FILE or own(whole[1])):  # of a process that was killed while writing
                (outdir / name).unlink()
    if overwrite:
        earlier = read_options(options)
        for name in files:
            if own(name) or own(name, earlier):
                (outdir / name).unlink(missing_ok=True)
        options.unlink(missing_ok=True)
    elif options.is_file():
        check_options(options, config)
        return
    elif present := sorted(filter(own, files)):
        raise ValueError(f'{outdir} holds {", ".join(present[:3])} but no {OPTIONS_FILE}; use another folder, or '
                         f'--overwrite to replace them')
    with atomic_write(options) as file:
        file.write((json.dumps(config, indent=2, sort_keys=True) + '\n').encode())
