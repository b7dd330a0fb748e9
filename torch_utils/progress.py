"""Progress bars with a rate and a remaining time, on rank 0 only."""

import tqdm

from . import distributed as dist


def progress(iterable=None, *, total: int | None = None, desc: str = '', unit: str = 'img',
             initial: int = 0, shown: bool = True) -> tqdm.tqdm:
    """A tqdm bar; silent on every rank but 0, and if not `shown`. Counts `unit`s.

    Call `.update(n)` if no iterable is given.
    """
    return tqdm.tqdm(iterable, total=total, desc=desc, unit=unit, initial=initial, dynamic_ncols=True,
                     disable=not shown or dist.get_rank() != 0, smoothing=0.05, mininterval=0.5)
