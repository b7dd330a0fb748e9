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
    """Unguided samples of a tiny network in two steps, with churn; uncompiled, without counting whether that pays."""
    return [f'--network={files}/uncond.safetensors', '--dg_weight_1st_order=0', '--steps=2', '--S_churn=5',
            '--device=cpu', '--precision=fp32', '--compile=off', *map(str, args)]


def diffrs_arguments(files, *args):
    """Rejection sampling with a tiny network in four steps after a short warm-up; uncompiled, as above."""
    return [f'--network={files}/uncond.safetensors', f'--pretrained_classifier_ckpt={files}/classifier.pt',
            f'--discriminator_ckpt={files}/disc_uncond.pt', '--steps=4', '--iter_warmup=1', '--rej_percentile=0.75',
            '--device=cpu', '--precision=fp32', '--compile=off', *map(str, args)]


def few_trajectories(rounds: int) -> range:
    """Six trajectories of a DiffRS warm-up instead of a hundred a round, in place of `commands.diffrs.warmup_seeds`."""
    return range(6 * rounds)


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


class Forked:
    """A script forked from a process that has imported torch already, in its own session; as subprocess.Popen.

    `streams`: files for stdin, stdout and stderr in place of the usual ones.
    """

    returncode: int | None = None

    def __init__(self, script, arguments=(), processes: int = 1, launcher=(), together: bool = False, environment=None,
                 cwd=ROOT, **streams):
        self.command = [str(word) for word in (Path(cwd, script), *arguments)]
        self._stdout, self._stderr = (tempfile.NamedTemporaryFile('r') for _ in range(2))
        names = dict(stdin=os.devnull, stdout=self._stdout.name,
                     stderr=(self._stdout if together else self._stderr).name) | streams
        job = dict(command=self.command, processes=processes, launcher=list(launcher), cwd=str(cwd),
                   environment=_environment_of_runs() | (environment or {}), **names)
        self._forker = _forker()
        self.pid = self._forker.start(job)

    def poll(self) -> int | None:
        """The exit code, None if it is still running."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""
        if self.returncode is None and not self._forker.has_ended(self.pid, timeout):
            raise subprocess.TimeoutExpired(self.command, timeout, *self._outputs())
        self.returncode = self._forker.codes[self.pid]
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has printed by its end. Raises subprocess.TimeoutExpired."""
        self.wait(timeout)
        return self._outputs()

    def _outputs(self) -> tuple[str, str]:
        return tuple(Path(file.name).read_text() for file in (self._stdout, self._stderr))


class ForkedWorker:
    """A script that answers each line of its input with a line, forked; as subprocess.Popen with two pipes of text.

    A context manager, which ends it.
    """

    def __init__(self, script, arguments=(), stderr=None, environment=None):
        with tempfile.TemporaryDirectory() as folder:
            ends = dict(stdin=f'{folder}/stdin', stdout=f'{folder}/stdout')
            for end in ends.values():
                os.mkfifo(end)
            if stderr:
                ends['stderr'] = stderr.name
            self.process = Forked(script, arguments, environment=environment, **ends)
            self.stdout = open(ends['stdout'])  # in the order of ranks.py: each waits for the other side
            self.stdin = open(ends['stdin'], 'w')

    def wait(self) -> int:
        """The exit code."""
        return self.process.wait()

    def __enter__(self) -> 'ForkedWorker':
        return self

    def __exit__(self, *exception) -> None:
        self.stdin.close()
        self.wait()
        self.stdout.close()


class Forker:
    """ranks.py, one for each process that runs tests; it ends with it."""

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, RANKS], cwd=ROOT, env=_environment_of_runs(), bufsize=0,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self.codes: dict[int, int] = {}  # of the processes that have ended
        atexit.register(self.end)

    def start(self, job: dict) -> int:
        """The number of the process that does it."""
        self.process.stdin.write(json.dumps(job).encode() + b'\n')
        while (said := self._hear())[0] != 'started':
            pass
        return int(said[1])

    def has_ended(self, pid: int, timeout: float | None) -> bool:
        """Whether it has ended after `timeout` seconds at most."""
        end = None if timeout is None else time.monotonic() + timeout
        while pid not in self.codes:
            if not self._hear(None if end is None else max(end - time.monotonic(), 0)):
                return False
        return True

    def _hear(self, timeout: float | None = None) -> list[str]:
        """The words of the next line, none after `timeout` seconds."""
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            return []
        said = self.process.stdout.readline().decode().split()
        if not said:
            raise EOFError('ranks.py has died')
        if said[0] == 'started':
            self.codes.pop(int(said[1]), None)  # of an earlier process of this number
        else:
            self.codes[int(said[1])] = int(said[2])
        return said

    def end(self) -> None:
        """End ranks.py and whatever it runs; the next script gets a new one."""
        _forker.cache_clear()
        atexit.unregister(self.end)
        kill_all(self.process)
        self.process.stdin.close()
        self.process.stdout.close()


_forker = functools.cache(Forker)


def _environment_of_runs() -> dict[str, str]:
    return os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')


def start_forked(script, arguments, processes: int = 2, launcher=(), environment=None) -> Forked:
    """As `start` with torchrun, which runs and forks the ranks in processes that have imported torch already."""
    launcher = launcher or ['--standalone', f'--nproc_per_node={processes}']
    return Forked(script, arguments, processes, launcher, together=True, environment=environment)


def run_forked(script, arguments=(), processes: int = 1, timeout: float = 120, together: bool = False,
               environment=None, cwd=ROOT) -> subprocess.CompletedProcess:
    """Run a script to its end, forked from a process that has imported torch already.

    Several processes are ranks as torchrun starts them, without its own start. `together`: both streams in `stdout`;
    `environment`: more variables. Raises subprocess.TimeoutExpired.
    """
    try:
        process = Forked(script, arguments, processes, (), together, environment, cwd)
        stdout, stderr = process.communicate(timeout)
    except BaseException:  # interrupted, or it died
        _forker().end()
        raise
    return subprocess.CompletedProcess(process.command, process.returncode, stdout, stderr)


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


def kill_all(process: subprocess.Popen | Forked) -> None:
    """SIGKILL a launcher and everything below it at once; returns when all are gone."""
    pids = [process.pid, *children(process.pid)]
    for pid in pids:
        _kill(pid)
    process.wait()
    while any(is_running(pid) for pid in pids):
        time.sleep(0.01)


def rank_pids(process: subprocess.Popen | Forked, rank: int | None = None) -> list[int]:
    """Processes of one rank (None: of all) below a launcher."""
    ranks = [(pid, _rank_of(pid)) for pid in children(process.pid)]
    return [pid for pid, found in ranks if found is not None and rank in (None, found)]


def _rank_of(pid: int) -> int | None:
    """By the environment that it started with or, if it was forked, by the name that it has given itself."""
    with contextlib.suppress(OSError):
        if (words := Path(f'/proc/{pid}/comm').read_text().split())[0] == 'rank':
            return int(words[1])
    rank = _environment(pid).get('RANK')
    return None if rank is None else int(rank)


def kill_rank(process: subprocess.Popen | Forked, rank: int) -> bool:
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
