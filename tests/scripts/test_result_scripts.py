"""docs/results/*.sh: the commands that they run are understood by the scripts that they name."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from script_runs import ROOT

from commands.options import seeds_of

WORDS = f'{sys.executable} {ROOT / "tests/helpers/words.py"}'
POINTS = {'compositions': 24, 'diffrs': 9, 'dmcmc': 13, 'dmcmc-search': 15, 'evaluation': 3, 'reflected': 9,
          'discriminators': 7}
FILES = dict(GUIDE='guide.safetensors', TRAIN='train.zip', TEST='test.zip')
EXAMPLE = re.compile(r'^#   (.*)sh docs/results/.*sh((?: --\S+)*)', flags=re.M)


def run(script, environment, options, folder) -> list:
    """The commands of a script of results, each as a list of words."""
    done = subprocess.run(['sh', script, *options.split()], cwd=folder, check=True, text=True, stdout=subprocess.PIPE,
                          env=os.environ | dict(PYTHON=WORDS, PLOT=WORDS) | FILES | environment)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize('name', POINTS)
def test_commands_are_understood(name, tmp_path):
    """With the sizes and options of the examples in its header."""
    script = ROOT / f'docs/results/{name}.sh'
    examples = EXAMPLE.findall(script.read_text())
    assert examples
    for sizes, options in examples:
        sizes = dict(word.split('=') for word in sizes.split() if word.startswith(('N=', 'BLOCKS=')))
        folders, trainings, likelihoods = set(), set(), 0
        for file, *words in run(script, sizes, options, tmp_path):
            command = importlib.import_module(Path(file).stem).main
            while isinstance(command, click.Group):
                command = command.commands[words.pop(0)]
            with command.make_context(file, words) as context:
                likelihoods += bool(context.params.get('data'))
                if 'outdir' in context.params:
                    assert context.params['outdir'] not in folders
                    folders.add(context.params['outdir'])
                if 'seeds' in context.params:
                    assert len(seeds_of(context.params)) % context.params.get('num_particles', 1) == 0
                if 'savedir' in context.params:
                    assert context.params['gendir'] in folders and context.params['savedir'] not in trainings
                    trainings.add(context.params['savedir'])
                assert trainings.issuperset(context.params.get('runs') or ())
                for images in context.params.get('images') or ():
                    assert str(images) in folders
        assert len(folders) - likelihoods == POINTS[name]


def test_only_some_points(tmp_path):
    """Others are measured if they are there."""
    (tmp_path / 'samples/dmcmc-1x8/heun5').mkdir(parents=True)
    sizes = dict(N='8', ONLY='heun9 kar1-10 kar2-20')
    *drawn, measured, shown = run(ROOT / 'docs/results/dmcmc.sh', sizes, '', tmp_path)
    assert [words[1].rpartition('/')[2] for words in drawn] == ['heun9', 'kar1-10', 'kar2-20']
    names = ['heun5', 'heun9', 'kar1-10', 'kar2-20']
    assert [word.rpartition('/')[2] for word in measured if word.startswith('--images=')] == names
    assert '--lines=Heun,Heun,DMCMC (KAR1),DMCMC (KAR2)' in shown
