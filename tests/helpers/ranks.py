"""A program that starts scripts by forking, without the seconds that importing torch and starting torchrun take.

It reads JSON lines {processes, command, cwd, environment, stdout, stderr}; `command` is a script and its arguments. It
answers each with a line, the exit code. Several processes are the ranks of a job as torchrun starts them; one that
fails ends the others.
"""

import json
import os
import random
import runpy
import signal
import socket
import sys
import time
from pathlib import Path

import click  # noqa: F401  what the scripts import from elsewhere; their own modules read the environment
import numpy as np
import PIL.Image  # noqa: F401
import torch.utils.flop_counter  # noqa: F401
import tqdm  # noqa: F401


def serve() -> int | None:
    """Answer until the input ends; in a forked process, the script's exit code."""
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if not pid:
            os.environ.clear()
            os.environ |= job['environment']
            os.chdir(job['cwd'])
            for stream, name in (1, 'stdout'), (2, 'stderr'):
                os.dup2(os.open(job[name], os.O_WRONLY | os.O_APPEND), stream)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            return run_ranks(job['command'], job['processes']) if job['processes'] > 1 else run_script(job['command'])
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return None


def run_ranks(command: list[str], processes: int) -> int:
    """Fork one process for each rank and wait for all."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    os.environ |= dict(WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes), MASTER_ADDR='127.0.0.1',
                       MASTER_PORT=str(port))
    running = []
    for rank in range(processes):
        running.append(os.fork())
        if not running[-1]:
            os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank))
            return run_script(command)
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


def run_script(command: list[str]) -> int:
    """The script in this process, as Python would start it."""
    random.seed()  # as for processes of their own; only the order of sets stays the same
    np.random.seed()
    sys.argv = command
    sys.path[0] = str(Path(command[0]).resolve().parent)
    runpy.run_path(command[0], run_name='__main__')
    return 0


if __name__ == '__main__':
    sys.exit(serve())
