"""Write docs/help/<script>.txt, the real --help of every script (`make help`; held by tests/scripts/test_help.py)."""

import importlib
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted({path.stem for path in ROOT.glob('*.py')} - {'classifier_lib'})  # which is not a script
WIDTH = 118


def help_text(script: str) -> str:
    """The output of `python <script>.py --help` and of its subcommands at a width of 118."""
    sys.path.insert(0, str(ROOT))
    command = importlib.import_module(script).main
    context = click.Context(command, info_name=f'{script}.py', max_content_width=WIDTH, terminal_width=WIDTH)
    texts = [command.get_help(context)]
    for name in sorted(getattr(command, 'commands', {})):
        child = click.Context(command.commands[name], info_name=name, parent=context,
                              max_content_width=WIDTH, terminal_width=WIDTH)
        texts.append(command.commands[name].get_help(child))
    return '\n\n\n'.join(texts) + '\n'


if __name__ == '__main__':
    for script in SCRIPTS:
        (ROOT / 'docs' / 'help' / f'{script}.txt').write_text(help_text(script))
        print(f'docs/help/{script}.txt')
