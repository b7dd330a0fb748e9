"""The folder of a training run: one set of options, one run at a time."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from dnnlib.files import atomic_write, check_options, lock_folder, read_options
from torch_utils import distributed as dist

OPTIONS_FILE = 'options.json'
STATE_FILE = 'training-state.pt'


@contextlib.contextmanager
def claim_folder(outdir, config: dict, owned: Callable[[dict], Iterable[str]],
                 overwrite: bool = False) -> Iterator[None]:
    """Reserve `outdir` for the run that `config` (JSON-able) describes while the block runs; all ranks call this.

    `owned(config)` gives the names (or patterns) of what a run of such a config writes beside its state. Raises
    ValueError where the folder belongs to a run with other options (which are named), holds files of such a name from
    elsewhere, or is in use by another process, and OSError where it cannot be written. Rank 0 alone raises; the other
    ranks then exit silently. `overwrite` removes the files of an earlier run, and those that this one would replace.
    """
    outdir, config = Path(outdir), json.loads(json.dumps(config))
    with contextlib.ExitStack() as stack:
        dist.on_rank0(lambda: _claim(outdir, config, owned, overwrite, stack))
        yield


def _claim(outdir, config, owned, overwrite, stack):
    outdir.mkdir(parents=True, exist_ok=True)
    options, names = outdir / OPTIONS_FILE, {STATE_FILE, 'stats.jsonl', *owned(config)}
    if stack.enter_context(lock_folder(outdir)):
        for name in (OPTIONS_FILE, *names):
            for leftover in outdir.glob(f'.{name}.*.tmp'):  # of a process that was killed while writing
                leftover.unlink()
    if overwrite:
        for name in names | set(owned(read_options(options))):
            for path in outdir.glob(name):
                path.unlink()
        options.unlink(missing_ok=True)
    elif options.is_file():
        check_options(options, config)
        return
    elif present := sorted(path.name for name in names for path in outdir.glob(name)):
        raise ValueError(f'{outdir} holds {", ".join(present[:3])} but no {OPTIONS_FILE}; use another folder, or '
                         f'--overwrite to replace them')
    with atomic_write(options) as file:
        file.write((json.dumps(config, indent=2, sort_keys=True) + '\n').encode())
