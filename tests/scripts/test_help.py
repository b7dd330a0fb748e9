"""docs/help/*.txt is what --help prints."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'docs'))

from make_help import SCRIPTS, help_text  # noqa: E402


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_file_is_current(script):
    text = (ROOT / 'docs' / 'help' / f'{script}.txt').read_text()
    # click versions differ in where they break lines and in how they mark ranges; the words must agree
    assert help_text(script).split() == text.split(), 'run: python docs/make_help.py'


def test_every_script_has_its_help():
    assert {path.stem for path in (ROOT / 'docs' / 'help').glob('*.txt')} == set(SCRIPTS)
