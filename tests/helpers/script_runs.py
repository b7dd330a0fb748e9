"""Starts the scripts as a user does, as one process or under torchrun, and kills them."""

import atexit
import contextlib
import fcntl
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from click.testing import CliRunner, Result

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ('-m', 'torch.distributed.run', '--standalone')
RANKS = str(Path(__file__).parent / 'ranks.py')
OWN_TEMPORARY = '.*.tmp'


def generate_arguments(files, *args):
    """Unguided samples of a tiny network in two steps, with churn."""
    return [f'--network={files}/uncond.safetensors', '--dg_weight_1st_order=0', '--steps=2', '--S_churn=5',
            '--device=cpu', '--precision=fp32', *map(str, args)]


def diffrs_arguments(files, *args):
    """Rejection sampling with a tiny network in four steps after a short warm-up."""
    return [f'--network={files}/uncond.safetensors', f'--pretrained_classifier_ckpt={files}/classifier.pt',
            f'--discriminator_ckpt={files}/disc_uncond.pt', '--steps=4', '--iter_warmup=1', '--rej_percentile=0.75',
            '--device=cpu', '--precision=fp32', *map(str, args)]


def invoke(main, *args) -> Result:
    """Run a script's command in this process. Raises what it did not turn into an exit code."""
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def start(script, arguments, processes: int = 1, launcher=(), environment=None, **kwargs) -> subprocess.Popen:
    """Start the script in its own session, under torchrun if there are several processes; one thread each.

    `launcher`: other arguments than torchrun's usual ones; `environment`: more variables.
    """
    if processes > 1 and not launcher:
        launcher = [*TORCHRUN, f'--nproc_per_node={processes}']
    return subprocess.Popen([sys.executable, *launcher, str(script), *map(str, arguments)], cwd=ROOT, text=True,
                            env=_environment_of_runs() | (environment or {}), start_new_session=True, **kwargs)


@functools.cache
def _forker() -> subprocess.Popen:
    """ranks.py, one for each process that runs tests; it ends with it."""
    process = subprocess.Popen([sys.executable, RANKS], cwd=ROOT, text=True, env=_environment_of_runs(),
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    atexit.register(_end, process)
    return process


def _end(forker: subprocess.Popen) -> None:
    """End ranks.py and whatever it runs."""
    kill_all(forker)
    forker.stdin.close()
    forker.stdout.close()
    _forker.cache_clear()


def _environment_of_runs() -> dict[str, str]:
    return os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')


def run_forked(script, arguments=(), processes: int = 1, timeout: float = 120, together: bool = False,
               environment=None, cwd=ROOT) -> subprocess.CompletedProcess:
    """Run a script to its end, forked from a process that has imported torch already.

    Several processes are ranks as torchrun starts them, without its own start. `together`: both streams in `stdout`;
    `environment`: more variables. Raises subprocess.TimeoutExpired.
    """
    command = [str(word) for word in (Path(cwd, script), *arguments)]
    with tempfile.NamedTemporaryFile('r') as stdout, tempfile.NamedTemporaryFile('r') as stderr:
        job = dict(processes=processes, command=command, cwd=str(cwd), stdout=stdout.name,
                   stderr=stdout.name if together else stderr.name,
                   environment=_environment_of_runs() | (environment or {}))
        forker = _forker()
        try:
            print(json.dumps(job), file=forker.stdin, flush=True)
            if not select.select([forker.stdout], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(command, timeout, stdout.read(), stderr.read())
            code = int(forker.stdout.readline())
        except BaseException:  # interrupted, or it died: the next call gets a new one
            _end(forker)
            raise
        return subprocess.CompletedProcess(command, code, stdout.read(), stderr.read())


def finish(script, arguments, processes: int = 1, timeout: float = 120) -> tuple[int, str]:
    """(exit code, output to both streams) of `run_forked`."""
    done = run_forked(script, arguments, processes, timeout, together=True)
    return done.returncode, done.stdout


def children(pid: int) -> list[int]:
    """The running processes below `pid`, all generations, parents first."""
    try:
        direct = [int(child) for task in os.listdir(f'/proc/{pid}/task')
                  for child in Path(f'/proc/{pid}/task/{task}/children').read_text().split()]
    except OSError:
        return []
    return [descendant for child in direct for descendant in (child, *children(child))]


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL a launcher and everything below it at once; returns when all are gone."""
    pids = [process.pid, *children(process.pid)]
    for pid in pids:
        _kill(pid)
    process.wait()
    while any(is_running(pid) for pid in pids):
        time.sleep(0.01)


def rank_pids(process: subprocess.Popen, rank: int | None = None) -> list[int]:
    """Processes of one rank (None: of all) below a launcher."""
    ranks = [(pid, _environment(pid).get('RANK')) for pid in children(process.pid)]
    return [pid for pid, found in ranks if found is not None and rank in (None, int(found))]


def kill_rank(process: subprocess.Popen, rank: int) -> bool:
    """SIGKILL one rank below a launcher; returns whether there was one."""
    ranks = rank_pids(process, rank)
    for pid in ranks:
        _kill(pid)
    return bool(ranks)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def wait_until(condition, timeout: float = 60) -> None:
    """Wait until condition() holds. Raises TimeoutError."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError('it did not happen')
        time.sleep(0.02)


def _environment(pid: int) -> dict[str, str]:
    try:
        entries = Path(f'/proc/{pid}/environ').read_bytes().decode(errors='replace').split('\0')
    except OSError:
        return {}
    return dict(entry.split('=', 1) for entry in entries if '=' in entry)


def is_running(pid: int) -> bool:
    """Whether the process is neither gone nor a zombie."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def watch_rank0_first(monkeypatch, script, **works) -> list[tuple[str, bool]]:
    """(name, whether rank 0 goes first) of each call of functions of `script`; `works`: their replacements."""
    calls, entered = [], []

    @contextlib.contextmanager
    def rank0_first():
        entered.append(True)
        yield
        entered.pop()

    monkeypatch.setattr(script.dist, 'rank0_first', rank0_first)
    for name, work in works.items():
        monkeypatch.setattr(script, name, lambda *args, name=name, work=work, **kwargs: (
            calls.append((name, bool(entered))), work(*args, **kwargs))[1])
    return calls


@contextlib.contextmanager
def another_run(folder):
    """The lock that another process holds while it writes to the folder."""
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield
    os.close(handle)


def contents(folder) -> dict[str, bytes]:
    """All files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def comparable(folder) -> dict:
    """All files of a folder of samples, options.json without times and the command, which names the folder."""
    found = contents(folder)
    if 'options.json' in found:
        found['options.json'] = options = json.loads(found['options.json'])
        options.pop('command', None)
        options.get('report', {}).update(wall_sec=None, timed_images=None)
    return found
