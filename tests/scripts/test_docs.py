"""The code of README.md and docs/extending.md runs as it is, and a new sampler is one line of a table."""

import re
from pathlib import Path

import pytest
from script_runs import comparable, finish, run_forked

ROOT = Path(__file__).resolve().parents[2]
SMALL_DEMO = '''
import sys
sys.path.insert(0, {root!r})
from dnnlib import demo
demo.DEMO_SCORE, demo.DEMO_CLASSIFIER, demo.DEMO_DISCRIMINATOR = {files!r}
{code}
'''
REGISTER = '''
import sys
sys.path.insert(0, {root!r})
{code}
import generate
generate.main()
'''


def blocks(name: str) -> list[str]:
    """The Python code blocks of a page."""
    return re.findall(r'^```python\n(.*?)^```$', (ROOT / name).read_text(), flags=re.M | re.S)


@pytest.mark.parametrize('name', ['README.md', 'docs/extending.md'])
def test_code_runs(name, files, tmp_path):
    """In one process for each page, in the repository, as a reader types it, with small networks as bundled ones.

    tests/networks/test_log_ratio.py loads the bundled ones by the same calls.
    """
    assert blocks(name)
    script = tmp_path / 'page.py'
    small = [f'{files}/{name}' for name in ('uncond.safetensors', 'classifier.pt', 'disc_uncond.pt')]
    script.write_text(SMALL_DEMO.format(root=str(ROOT), files=small, code='\n'.join(blocks(name))))
    done = run_forked(script, environment=dict(PATH='', HOME=str(tmp_path), DIFFUSION_CACHE=''))
    assert done.returncode == 0, done.stderr[-3000:]


def test_code_is_short():
    """Your own sampler, guidance, backbone or metric takes less than 30 lines."""
    for block in blocks('docs/extending.md'):
        assert len(block.splitlines()) < 30


def test_a_new_sampler_works_from_the_command_line(files, tmp_path):
    """It has its own options, resumes, and runs under torchrun, with only the table changed."""
    code = next(block for block in blocks('docs/extending.md') if 'def euler_sampler' in block)
    script = tmp_path / 'generate_euler.py'
    script.write_text(REGISTER.format(root=str(ROOT), code=f'{code}\nfrom sampling import SAMPLERS\n'
                                                           f"SAMPLERS['euler'] = euler_sampler"))
    arguments = ['--sampler=euler', '--set', 'power=1.1', f'--network={files}/uncond.safetensors', '--steps=2',
                 '--dg_weight_1st_order=0', '--seeds=0-6', '--batch=2', '--device=cpu', '--precision=fp32']
    code, output = finish(script, [*arguments, f'--outdir={tmp_path}/run'], processes=2)
    assert code == 0 and '2 evaluations of the score network' in output, output
    whole = comparable(tmp_path / 'run')
    for first in (0, 2, 6):
        (tmp_path / f'run/samples_{first:08d}.npz').unlink()
    code, output = finish(script, [*arguments, f'--outdir={tmp_path}/run'])
    assert '5 of them new' in output and comparable(tmp_path / 'run') == whole, output
    code, output = finish(script, [*arguments, '--set', 'speed=2', f'--outdir={tmp_path}/other'])
    assert code == 1 and "Error: --set: 'speed=2' is not NAME=VALUE" in output, output
