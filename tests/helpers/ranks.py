"""A program: the ranks of a job as torchrun starts them, without the three seconds that torchrun takes itself.

python ranks.py N SCRIPT ARGUMENTS... ends with 0 if all ranks do; a rank that fails ends the others, as with torchrun.
"""

import os
import random
import runpy
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
import torch  # noqa: F401  imported once: the ranks are forked


def main(processes: int, command: list[str]) -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    os.environ |= dict(WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes), MASTER_ADDR='127.0.0.1',
                       MASTER_PORT=str(port))
    running = []
    for rank in range(processes):
        running.append(os.fork())
        if not running[-1]:
            return run_rank(rank, command)
    failed = False
    while running:
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                running.remove(pid)
                failed |= bool(status)
                for other in running if status else ():
                    os.kill(other, signal.SIGTERM)
        time.sleep(0.02)
    return int(failed)


def run_rank(rank: int, command: list[str]) -> int:
    """The script in this process, as Python would start it."""
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank))
    random.seed()  # as for processes of their own; only the order of sets stays the same
    np.random.seed()
    sys.argv = command
    sys.path[0] = str(Path(command[0]).resolve().parent)
    runpy.run_path(command[0], run_name='__main__')
    return 0


if __name__ == '__main__':
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
