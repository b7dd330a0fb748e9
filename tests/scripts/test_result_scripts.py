"""docs/results/*.sh: the commands that they run are understood by the scripts that they name."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from script_runs import ROOT

WORDS = f'{sys.executable} {ROOT / "tests/helpers/words.py"}'
SCRIPTS = [path for path in sorted((ROOT / 'docs/results').glob('*.sh')) if path.stem != 'points']
FILES = dict(GUIDE='guide.safetensors', TRAIN='train.zip', TEST='test.zip')


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.stem)
def test_commands_are_understood(script, tmp_path):
    environment = os.environ | dict(PYTHON=WORDS, PLOT=WORDS, N='60', BLOCKS='3') | FILES
    done = subprocess.run(['sh', script, '--compile=off'], env=environment, cwd=tmp_path, check=True, text=True,
                          stdout=subprocess.PIPE)
    commands = [json.loads(line) for line in done.stdout.splitlines()]
    folders = set()
    for name, *words in commands:
        command = importlib.import_module(Path(name).stem).main
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        with command.make_context(name, words) as context:
            if 'outdir' in context.params:
                assert context.params['outdir'] not in folders
                folders.add(context.params['outdir'])
            for images in context.params.get('images') or ():
                assert str(images) in folders
    assert len(folders) >= 3 and commands[-1][0] in ('plot.py', 'fid_npzs.py', 'generate_reflected.py')
