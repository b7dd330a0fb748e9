"""The only user of torch.distributed; scripts run the same as one process or under torchrun, on gloo or NCCL."""

import atexit
import contextlib
import datetime
import importlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed

TIMEOUT = datetime.timedelta(seconds=float(os.environ.get('DIST_TIMEOUT_SEC', 1800)))
ALIVE = 'alive'  # counts signs of life, of all ranks
_last_sign = 0.0
_counters: dict[str, int] = {}  # replaces the store in a process that torchrun did not start
_launcher: int | None = None  # the process that started this rank
_nccl_at_work = False  # True from the first collective on a GPU


def init() -> None:
    """Join the process group that torchrun describes in the environment; do nothing without one."""
    if 'RANK' not in os.environ or int(os.environ.get('WORLD_SIZE', 1)) < 2 or torch.distributed.is_initialized():
        return
    global _launcher
    _launcher = os.getppid()
    # torch._dynamo (imported when an optimizer is made) keeps references to a group that exists at its import; the
    # group's threads then outlive shutdown() and sometimes abort the process when the interpreter ends.
    importlib.import_module('torch._dynamo')
    # Both back ends: gloo carries CPU tensors and objects, NCCL gradients between GPUs. NCCL needs a GPU for each rank;
    # if several share one, gloo carries everything.
    ranks_here = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    backend = 'cpu:gloo,cuda:nccl' if ranks_here <= torch.cuda.device_count() else 'gloo'
    torch.distributed.init_process_group(backend, timeout=TIMEOUT)
    atexit.register(_leave)  # after an error too: gloo's threads abort a process that ends with the group open


def shutdown() -> None:
    """Leave the process group once every rank has come here."""
    if torch.distributed.is_initialized():
        barrier()
        torch.distributed.destroy_process_group()


def _leave() -> None:
    """Leave the process group after an error; a process without one has called shutdown()."""
    if not torch.distributed.is_initialized():
        return
    if _nccl_at_work:  # the other ranks wait for this one, and leaving for them; torchrun ends them when it is gone
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    with contextlib.suppress(RuntimeError):
        torch.distributed.destroy_process_group()


def is_orphaned() -> bool:
    """Whether torchrun itself is gone; its ranks then end too, or they would keep the next run out of the folder."""
    return _launcher is not None and os.getppid() != _launcher


def get_rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def get_local_rank() -> int:
    return int(os.environ.get('LOCAL_RANK', 0))


def get_world_size() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def barrier() -> None:
    """Wait for all ranks (a sum over the CPU back end, so that no GPU is needed)."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(torch.zeros([]))


@contextlib.contextmanager
def rank0_first():
    """Let rank 0 go through the block before the others (a download, say)."""
    if get_rank() != 0:
        try:
            barrier()
        except RuntimeError:  # rank 0 has said why and is gone
            raise SystemExit(1) from None
    yield
    if get_rank() == 0:
        barrier()


def on_rank0(action: Callable[[], object]) -> None:
    """Run `action` on rank 0; its ValueError or OSError is raised there, and ends the other ranks silently."""
    error = None
    if get_rank() == 0:
        try:
            action()
        except (ValueError, OSError) as problem:
            error = problem
    if broadcast_object(error is None):
        return
    if error is not None:
        raise error
    with contextlib.suppress(RuntimeError):
        barrier()  # rank 0 exits after its message and never comes here; torchrun then ends the other ranks
    raise SystemExit(1)


def print0(*args, **kwargs) -> None:
    """Print on rank 0 only."""
    if get_rank() == 0:
        print(*args, **kwargs, flush=True)


def all_reduce_(tensor: torch.Tensor) -> torch.Tensor:
    """Sum `tensor` over all ranks, in place."""
    global _nccl_at_work
    if torch.distributed.is_initialized():
        _nccl_at_work |= tensor.is_cuda
        torch.distributed.all_reduce(tensor)
    return tensor


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value` (of plain Python types) on every rank."""
    if not torch.distributed.is_initialized():
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0, device=torch.device('cpu'))
    return box[0]


def claim(key: str) -> int:
    """The next number (0, 1, 2, ...) of a counter that all ranks share: a work queue without a master."""
    return _add(key, 1) - 1


def claimed(key: str) -> int:
    """How many numbers of the counter `key` have been claimed."""
    return _add(key, 0)


def sign_of_life() -> None:
    """Tell ranks in `wait_for_all` that this one is working; call it often, it reports at most once a second."""
    global _last_sign
    if torch.distributed.is_initialized() and time.monotonic() - _last_sign > 1:
        _last_sign = time.monotonic()
        claim(ALIVE)


def wait_for_all(key: str) -> None:
    """Wait until every rank has called this with `key`, as long as those still working give signs of life.

    A collective would allow DIST_TIMEOUT_SEC for all of their remaining work; here it is allowed for each step of it.
    Raises RuntimeError after that time without a sign of life.
    """
    if not torch.distributed.is_initialized():
        return
    claim(key)
    signs, since = -1, 0.0
    while claimed(key) < get_world_size():
        if claimed(ALIVE) != signs:
            signs, since = claimed(ALIVE), time.monotonic()
        elif time.monotonic() - since > TIMEOUT.total_seconds():
            raise RuntimeError(f'Timed out: for {TIMEOUT.total_seconds():g} s no other rank has shown a sign of life')
        time.sleep(0.1)


def _add(key: str, amount: int) -> int:
    """Add to a counter that all ranks share; its new value."""
    if torch.distributed.is_initialized():
        if is_orphaned():
            raise ConnectionError('torchrun is gone; run the same command again')
        return torch.distributed.distributed_c10d._get_default_store().add(f'claim/{key}', amount)
    _counters[key] = _counters.get(key, 0) + amount
    return _counters[key]
