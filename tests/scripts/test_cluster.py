"""Several nodes, ranks and launchers that die or hang, preemption, and the sbatch files of docs/slurm."""

import os
import re
import shlex
import signal
import socket
import subprocess

import numpy as np
import pytest
from script_runs import (
    ROOT,
    comparable,
    finish,
    generate_arguments,
    is_running,
    kill_all,
    kill_rank,
    rank_pids,
    run_forked,
    start,
    start_forked,
    wait_until,
)

import generate
import generate_diffrs
import train
import train_score
from torch_utils import distributed as dist

LINUX = pytest.mark.skipif(not os.path.isdir('/proc/self/task'), reason='finds processes through /proc')
PIPES = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
COMMANDS = {'generate.py': generate.main, 'generate_diffrs.py': generate_diffrs.main, 'train.py': train.main,
            'train_score.py': train_score.main}


def free_port():
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        return probe.getsockname()[1]


def arguments(files, folder, images=64):
    return generate_arguments(files, f'--outdir={folder}', f'--seeds=0-{images - 1}', '--batch=4')


def has_shards(folder, count=1):
    return lambda: folder.is_dir() and sum(name.endswith('.npz') for name in os.listdir(folder)) >= count


def test_two_nodes_give_the_files_of_one_process(files, tmp_path):
    """Two launchers that find each other by a rendezvous, as two machines would."""
    launcher = ['--nnodes=2', '--nproc_per_node=1', '--rdzv_backend=c10d', f'--rdzv_endpoint=localhost:{free_port()}',
                '--rdzv_id=test']
    nodes = [start_forked(ROOT / 'generate.py', arguments(files, tmp_path / 'two', 16), launcher=launcher)
             for _ in range(2)]
    try:
        outputs = [node.communicate(timeout=120)[0] for node in nodes]
    finally:
        for node in nodes:
            kill_all(node)
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert sum('16 images in' in output for output in outputs) == 1  # only rank 0 prints
    code, output = finish(ROOT / 'generate.py', arguments(files, tmp_path / 'one', 16))
    assert code == 0, output
    assert comparable(tmp_path / 'two') == comparable(tmp_path / 'one')


@LINUX
@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others_with_a_message(files, tmp_path):
    command = (ROOT / 'generate.py', arguments(files, tmp_path / 'out', 1500), 2)
    process = start(*command, **PIPES)
    wait_until(has_shards(tmp_path / 'out'))
    pids = rank_pids(process)
    assert len(pids) == 2 and kill_rank(process, 1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and 'Signal 9 (SIGKILL)' in output and not any(map(is_running, pids))
    assert finish(*command)[0] == 0
    assert finish(ROOT / 'generate.py', arguments(files, tmp_path / 'one', 1500))[0] == 0
    assert comparable(tmp_path / 'out') == comparable(tmp_path / 'one')


@LINUX
@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run_by_the_time_out(files, tmp_path):
    """The other rank waits DIST_TIMEOUT_SEC for it at the end; torchrun then gives the sleeper 30 s to end."""
    process = start(ROOT / 'generate.py', arguments(files, tmp_path / 'out', 1500), 2,
                    environment=dict(DIST_TIMEOUT_SEC='5'), **PIPES)
    wait_until(has_shards(tmp_path / 'out'))
    pids = rank_pids(process)
    os.kill(rank_pids(process, 1)[0], signal.SIGSTOP)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and 'Timed out' in output and not any(map(is_running, pids)), output
    assert finish(ROOT / 'generate.py', arguments(files, tmp_path / 'out', 1500), 2)[0] == 0


@LINUX
@pytest.mark.slow
def test_ranks_end_when_their_launcher_is_gone(files, tmp_path):
    """SIGKILL to torchrun only: its ranks would hold the lock of the folder as long as they have work."""
    command = (ROOT / 'generate.py', arguments(files, tmp_path / 'out', 1500), 2)
    process = start(*command, **PIPES)
    wait_until(has_shards(tmp_path / 'out'))
    pids = rank_pids(process)
    process.kill()
    wait_until(lambda: not any(map(is_running, pids)), 20)
    process.stdout.close()
    process.wait()
    assert not has_shards(tmp_path / 'out', 375)()
    assert finish(*command)[0] == 0


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize('everyone', [True, False])
def test_preempted_training_saves_and_resumes(tmp_path, everyone):
    """SIGTERM to torchrun, as SLURM sends it, or SIGKILL: either way two ranks save, end, and the next run resumes."""
    np.savez(tmp_path / 'data.npz', samples=np.random.RandomState(0).randint(256, size=[40, 8, 8, 3], dtype=np.uint8))
    options = ['--batch=20', '--channels=8', '--kimg=100', '--tick=1', '--device=cpu', '--precision=fp32']
    command = (ROOT / 'train_score.py', [f'--outdir={tmp_path}/run', f'--data={tmp_path}/data.npz', *options], 2)
    process = start(*command, **PIPES)
    stats = tmp_path / 'run' / 'stats.jsonl'
    wait_until(lambda: stats.is_file() and stats.stat().st_size)
    pids = rank_pids(process)
    process.send_signal(signal.SIGTERM if everyone else signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, pids)), 30)
    process.stdout.close()
    process.wait()
    assert (tmp_path / 'run' / 'training-state.pt').is_file()
    code, output = finish(command[0], [*command[1], '--max_minutes=0.02'], 2)
    assert code == 0 and re.search(r'resuming .* at [1-9]', output), output


@pytest.mark.parametrize('path', sorted((ROOT / 'docs' / 'slurm').glob('*.sbatch')), ids=lambda path: path.name)
def test_sbatch_files_are_shell_and_name_options_that_exist(path):
    text = path.read_text()
    subprocess.run(['bash', '-n', path], check=True)
    assert '#SBATCH --requeue' in text
    commands = re.findall(r'(\w+\.py)((?:[^\n]*\\\n)*[^\n]*)', text.replace('\r', ''))
    assert commands
    for script, rest in commands:
        known = {option for parameter in COMMANDS[script].params for option in parameter.opts}
        used = {word.partition('=')[0] for word in shlex.split(rest.replace('\\\n', ' ')) if word.startswith('--')}
        assert used and used <= known, used - known


@pytest.mark.parametrize('gpus, backend', [(2, 'cpu:gloo,cuda:nccl'), (1, 'gloo'), (0, 'gloo')])
def test_nccl_has_a_gpu_for_each_rank(monkeypatch, gpus, backend):
    """Two ranks that share a GPU only have gloo, since NCCL does not allow that."""
    chosen = []
    for name, value in dict(RANK='1', WORLD_SIZE='2', LOCAL_WORLD_SIZE='2').items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist.torch.cuda, 'device_count', lambda: gpus)
    monkeypatch.setattr(dist.torch.distributed, 'init_process_group', lambda name, timeout: chosen.append(name))
    monkeypatch.setattr(dist.atexit, 'register', lambda function: None)
    monkeypatch.setattr(dist, '_launcher', None)
    dist.init()
    assert chosen == [backend]


FAILS = '''
from torch_utils import distributed as dist
dist.torch.distributed.is_initialized = lambda: True
dist.torch.distributed.destroy_process_group = lambda: print('waits for the other ranks')
dist._nccl_at_work = {nccl}
dist.atexit.register(dist._leave)
print('begins')
raise ValueError('of one rank')
'''


@pytest.mark.parametrize('nccl', [False, True])
def test_a_rank_that_fails_does_not_wait_for_nccl(tmp_path, nccl):
    """NCCL's shutdown is collective: a rank that fails leaves without it, and torchrun ends the others."""
    (tmp_path / 'job.py').write_text(FAILS.format(nccl=nccl))
    done = run_forked(tmp_path / 'job.py')
    assert done.returncode == 1 and 'ValueError: of one rank' in done.stderr
    assert done.stdout.splitlines() == ['begins'] + ['waits for the other ranks'] * (not nccl)
