"""Talks to benchmarks/reference_worker.py, which runs the published code."""

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import torch

from torch_utils.checkpoint import read_network

# name: (owner+name, a file by which a checkout is recognised, where it is published)
CHECKOUTS = {
    'edm': ('NVlabs+edm', 'training/networks.py', 'https://github.com/NVlabs/edm'),
    'DG': ('alsdudrla10+DG', 'guided_diffusion/unet.py', 'https://github.com/alsdudrla10/DG'),
    'DiffRS': ('aailabkaist+DiffRS', 'generate_diffrs.py', 'https://github.com/aailabkaist/DiffRS'),
}
# Checkouts in which a piece of work looks for its modules, in this order.
NEEDED = {'score': ['edm'], 'discriminator': ['DG', 'edm'], 'dg': ['DG', 'edm'], 'diffrs': ['DiffRS', 'edm'],
          'train_discriminator': ['DG', 'edm'], 'train_score': ['edm'], 'frechet': ['DG']}


def find_checkouts(folder: str, names: list[str]) -> list[str]:
    """Paths of the checkouts `names` in `folder`. Raises ValueError, which says where to get what is missing."""
    found = []
    for name in names:
        alias, proof, url = CHECKOUTS[name]
        paths = [path for path in (Path(folder, name), Path(folder, alias)) if (path / proof).is_file()]
        if not paths:
            raise ValueError(f'no {name}/{proof} in {folder}; run git clone {url} there')
        found.append(str(paths[0].resolve()))
    return found


def start_worker(script: Path, arguments: list[str], stderr) -> subprocess.Popen:
    """A Python process that answers lines of text with lines of text."""
    return subprocess.Popen([sys.executable, str(script), *arguments], text=True, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=stderr)


class Reference:
    """The published code with the weights in `files` (name -> .safetensors), in a process that waits for requests.

    A context manager; `run` returns when the work has been done.
    """

    def __init__(self, checkouts: list[str], files: dict[str, Path], device: torch.device):
        self.folder = tempfile.TemporaryDirectory()
        networks = {name: dict(path=str(path), constructor=file.constructor, kwargs=file.kwargs)
                    for name, path in files.items() for file in [read_network(path)]}
        job = Path(self.folder.name, 'job.json')
        job.write_text(json.dumps(dict(device=str(device), threads=torch.get_num_threads(), networks=networks)))
        self.errors = open(Path(self.folder.name, 'errors.txt'), 'w+')
        worker = Path(__file__).with_name('reference_worker.py')
        self.process = start_worker(worker, [str(job), *checkouts], self.errors)

    def run(self, work: str, **arguments) -> dict:
        """Call a method of reference_worker.Published there; returns its answer."""
        try:
            self.process.stdin.write(json.dumps(dict(work=work, arguments=arguments)) + '\n')
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ''
        if not answer:
            self.errors.seek(0)
            last = self.errors.read().strip().splitlines()[-1:]
            raise click.ClickException(f'--reference: the published code failed at {work}: {" ".join(last)}')
        return json.loads(answer)

    def __enter__(self) -> 'Reference':
        return self

    def __exit__(self, *exception) -> None:
        with contextlib.suppress(BrokenPipeError):  # it failed, and `run` has reported that
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()
        self.folder.cleanup()
