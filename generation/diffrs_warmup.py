"""The files of a DiffRS warm-up: batches, kept until all exist, and the thresholds.json made of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from dnnlib.files import atomic_write
from torch_utils import distributed as dist
from torch_utils.progress import progress

THRESHOLDS = 'thresholds.json'
PART = 'thresholds-part-{}.json'  # a batch of the warm-up, named by its first trajectory


def find_thresholds(outdir: Path, overwrite: bool) -> str | None:
    """The text of a folder's thresholds.json, the same on all ranks; None if there is none to use."""
    path = Path(outdir) / THRESHOLDS
    found = dist.get_rank() == 0 and path.is_file() and not overwrite  # one rank looks, as it may appear meanwhile
    return dist.broadcast_object(path.read_text() if found else None)


def draw_warmup(outdir: Path, seeds: Sequence[int], batch: int, draw: Callable, *, encode: Callable[..., str],
                decode: Callable[[str], np.ndarray], overwrite: bool = False) -> np.ndarray:
    """Log-ratios [levels, trajectories] of a warm-up whose batches the ranks share; the same for any number of ranks.

    draw(seeds, progress) returns the log-ratios [levels, n] of a batch. `encode` turns the log-ratios of a batch
    (part=True) or of all into text; `decode` turns a batch's text into log-ratios, or raises ValueError if another run
    made it. Each batch is kept in `outdir` until all exist, so that after a kill the same run draws only what is
    missing; `overwrite` draws all of them again. Rank 0 writes thresholds.json.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    batches = [slice(first, first + batch) for first in range(rank * batch, len(seeds), ranks * batch)]
    parts = [None if overwrite else _read(outdir / PART.format(rows.start), decode) for rows in batches]
    found = ranks * sum(part.shape[1] for part in parts if part is not None)
    values = None
    with progress(total=len(seeds), initial=min(found, len(seeds)), desc='warm-up') as bar:
        done = float(bar.n)

        def advance(images: float) -> None:
            nonlocal done
            dist.sign_of_life()
            done += ranks * images
            bar.update(min(int(done + 1e-6), bar.total) - bar.n)

        for rows, part in zip(batches, parts):
            if part is None:
                part = draw(seeds[rows], advance)
                with atomic_write(outdir / PART.format(rows.start)) as file:
                    file.write(encode(part, part=True).encode())
            values = torch.zeros([len(part), len(seeds)], dtype=torch.float64) if values is None else values
            values[:, rows] = torch.from_numpy(part)
        dist.wait_for_all('warm-up')
        levels = int(dist.all_reduce_(torch.tensor(0 if values is None or rank else len(values))))
        values = torch.zeros([levels, len(seeds)], dtype=torch.float64) if values is None else values
        dist.all_reduce_(values)
    if rank == 0:
        with atomic_write(outdir / THRESHOLDS) as file:
            file.write(encode(values.numpy(), part=False).encode())
        for first in range(0, len(seeds), batch):
            (outdir / PART.format(first)).unlink(missing_ok=True)
    return values.numpy()


def _read(path: Path, decode: Callable[[str], np.ndarray]) -> np.ndarray | None:
    """A batch of the warm-up that an earlier start of the same run left, if any."""
    try:
        return decode(path.read_text())
    except (OSError, ValueError):
        return None
