"""The sampling scripts are killed at random moments; then the same command gives the files of an undisturbed run."""

import functools
import os
import random
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from script_runs import (
    ROOT,
    comparable,
    diffrs_arguments,
    finish,
    generate_arguments,
    kill_all,
    kill_rank,
    start,
    start_forked,
)

import generate
import generate_diffrs

pytestmark = pytest.mark.skipif(not os.path.isdir('/proc/self/task'), reason='finds processes through /proc')
SCRIPTS = dict(generate=(generate.main, generate_arguments), generate_diffrs=(generate_diffrs.main, diffrs_arguments))


def undisturbed(script, files, folder, *args):
    """The files of one run in this process."""
    main, arguments = SCRIPTS[script]
    result = CliRunner().invoke(main, arguments(files, f'--outdir={folder}', *args))
    assert result.exit_code == 0, result.output
    return comparable(folder)


def state(folder):
    """The signs of a run at work in the folder."""
    return set(os.listdir(folder)) if folder.is_dir() else set()


class Torturer:
    """Starts a command under torchrun with two processes and kills one rank or all, at seeded random moments."""

    def __init__(self, script, arguments, folder: Path, seed: int, start):
        self.command, self.start = (ROOT / f'{script}.py', arguments, 2), start
        self.folder, self.random = folder, random.Random(seed)
        self.moments: list[str] = []  # of each kill: what was killed, when, and how many files there were

    def disturb(self, longest_sec: float, early: float = 0.2, victim=None) -> bool:
        """Run and kill; False if the run was complete before it was killed.

        The moment: up to `longest_sec` after the first new file or, for a share `early` of the kills, up to five
        times as long after the start, while modules and networks are loaded.
        `victim`: a rank or 'all', drawn if None.
        """
        wait_for_file = self.random.random() >= early
        delay = self.random.uniform(0, longest_sec if wait_for_file else 5 * longest_sec)
        victim = self.random.choice([0, 1, 'all']) if victim is None else victim
        before = state(self.folder)
        process = self.start(*self.command)
        started = time.monotonic()
        try:
            while wait_for_file and process.poll() is None and state(self.folder) <= before:
                assert time.monotonic() - started < 120, 'the run does nothing'
                time.sleep(0.005)
            try:
                code = process.wait(delay)
            except subprocess.TimeoutExpired:
                code = None
            if code is None:
                self.moments.append(f'{victim} after {time.monotonic() - started:.2f} s, {len(before)} files')
                if victim == 'all' or not kill_rank(process, victim):
                    kill_all(process)
                code = process.wait(60)  # torchrun ends the other ranks: nothing hangs
            return code != 0
        finally:
            kill_all(process)


@pytest.mark.slow
@pytest.mark.parametrize('script', SCRIPTS)
def test_killed_at_random_moments(files, tmp_path, script):
    """Twelve kills per script; a run that ends before a kill is checked and started again."""
    args = ('--seeds=0-239', '--batch=3')
    expected = undisturbed(script, files, tmp_path / 'undisturbed', *args)
    kills = complete = 0
    while kills < 12 or not complete:
        folder = tmp_path / f'tortured{complete}'
        torturer = Torturer(script, SCRIPTS[script][1](files, f'--outdir={folder}', *args), folder, 100 * complete,
                            functools.partial(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        while kills < 12 and torturer.disturb(longest_sec=2.0):
            kills += 1
        code, output = finish(*torturer.command)
        assert code == 0, output
        assert comparable(folder) == expected, torturer.moments
        print(f'{script}: {len(torturer.moments)} kills:', '; '.join(torturer.moments))
        complete += 1


def test_killed_twice(files, tmp_path):
    """The short version: rank 1, then all are killed between shards; one process completes the run."""
    args = ('--seeds=0-119', '--batch=2')
    folder = tmp_path / 'tortured'
    torturer = Torturer('generate', generate_arguments(files, f'--outdir={folder}', *args), folder, 1, start_forked)
    for victim in (1, 'all'):
        assert torturer.disturb(longest_sec=0.1, early=0, victim=victim)
    assert len(os.listdir(folder)) < 60, torturer.moments
    expected = undisturbed('generate', files, tmp_path / 'undisturbed', *args)
    assert undisturbed('generate', files, folder, *args) == expected, torturer.moments
