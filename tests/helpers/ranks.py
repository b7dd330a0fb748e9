"""A program that starts scripts by forking, without the seconds that importing torch takes in each process.

It reads JSON lines {command, processes, launcher, cwd, environment, stdin, stdout, stderr}; `command` is a script and
its arguments. Output: a line 'started PID' for each of them, and 'ended PID CODE' when it has ended. Several processes
are the ranks of a job as torchrun starts them; one that fails ends the others. `launcher`: instead, torchrun itself
runs with these arguments, and forks the ranks.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

import click  # noqa: F401  what the scripts import from elsewhere; their own modules read the environment
import numpy as np
import PIL.Image  # noqa: F401
import requests  # noqa: F401
import safetensors.torch  # noqa: F401
import torch._dynamo  # noqa: F401
import torch.distributed.run
import torch.utils.flop_counter  # noqa: F401
import tqdm  # noqa: F401
import yaml  # noqa: F401


def serve() -> None:
    """Start one process for each line of the input; end with it. Returns in the new processes too, with their job."""
    gc.collect()
    gc.freeze()  # otherwise each process copies the memory of all modules when it collects garbage
    os.register_at_fork(after_in_child=np.random.seed)  # as for a process of its own
    signal.signal(signal.SIGCHLD, report_ended)
    for line in sys.stdin:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # so that 'started' comes first
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            return run_job(json.loads(line))
        os.write(1, f'started {pid}\n'.encode())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def report_ended(signum, frame) -> None:
    """Say which processes have ended."""
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            os.write(1, f'ended {ended[0]} {os.waitstatus_to_exitcode(ended[1])}\n'.encode())
    except ChildProcessError:  # none is left
        pass


def run_job(job: dict) -> None:
    """Do as one line of the input says. Returns in ranks, which end as Python does; other processes end here."""
    os.setsid()
    os.environ.clear()
    os.environ |= job['environment']
    os.chdir(job['cwd'])
    for stream, name in (1, 'stdout'), (2, 'stderr'):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_APPEND), stream)
    os.dup2(os.open(job['stdin'], os.O_RDONLY), 0)
    if job['launcher']:
        run_and_leave(torch.distributed.run.main, ['--run-path', '--start-method=fork', *job['launcher'], __file__,
                                                   *job['command']])
    if job['processes'] > 1:
        return run_ranks(job['command'], job['processes'])
    run_and_leave(run_script, job['command'])


def run_and_leave(work, *args) -> None:
    """End this process after the work, without the half second in which an interpreter with torch clears itself up."""
    code = 0
    try:
        work(*args)
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except Exception:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_ranks(command: list[str], processes: int) -> None:
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
    os._exit(int(failed))


def run_script(command: list[str]) -> None:
    """The script in this process, as Python would start it."""
    if 'RANK' in os.environ:  # for those who look for a rank: the environment of a forked process can't be seen
        with contextlib.suppress(OSError):
            Path('/proc/self/comm').write_text(f'rank {os.environ["RANK"]}')
    sys.argv = command
    sys.path[0] = str(Path(command[0]).resolve().parent)
    runpy.run_path(command[0], run_name='__main__')


if __name__ == '__main__':
    if sys.argv[1:]:  # a rank that torchrun has forked; such processes end without Python's own exit functions
        try:
            run_script(sys.argv[1:])
        finally:
            atexit._run_exitfuncs()
    else:
        serve()
