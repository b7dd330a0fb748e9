"""The folder of a training run: one set of options, one run at a time."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from dnnlib.files import atomic_write, check_options, lock_folder
from torch_utils import distributed as dist

OPTIONS_FILE = 'options.json'
STATE_FILE = 'training-state.pt'


@contextlib.contextmanager
def claim_folder(outdir, config: dict, owned: Sequence[str] = ('network-*.safetensors',),
                 overwrite: bool = False) -> Iterator[None]:
    """Reserve `outdir` for the run that `config` (JSON-able) describes while the block runs; all ranks call this.

    Raises ValueError where the folder belongs to a run with other options (which are named), holds files of unknown
    origin that match `owned`, or is in use by another process, and OSError where it cannot be written. Rank 0 alone
    raises; the other ranks then exit silently. `overwrite` removes the files of an earlier run.
    """
    outdir, config = Path(outdir), json.loads(json.dumps(config))
    with contextlib.ExitStack() as stack:
        dist.on_rank0(lambda: _claim(outdir, config, [STATE_FILE, 'stats.jsonl', *owned], overwrite, stack))
        yield


def _claim(outdir, config, owned, overwrite, stack):
    outdir.mkdir(parents=True, exist_ok=True)
    if stack.enter_context(lock_folder(outdir)):
        for pattern in (OPTIONS_FILE, *owned):
            for leftover in outdir.glob(f'.{pattern}.*.tmp'):  # of a process that was killed while writing
                leftover.unlink()
    present = sorted(path for pattern in owned for path in outdir.glob(pattern))
    options = outdir / OPTIONS_FILE
    if overwrite:
        for path in [*present, options]:
            path.unlink(missing_ok=True)
    elif options.is_file():
        check_options(options, config)
        return
    elif present:
        raise ValueError(f'{outdir} holds {present[0].name} but no {OPTIONS_FILE}; '
                         f'use another folder or --overwrite')
    with atomic_write(options) as file:
        file.write((json.dumps(config, indent=2, sort_keys=True) + '\n').encode())
