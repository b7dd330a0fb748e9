"""The arrows between the rooms run one way (the table of the design): which package may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BELOW = {'torch_utils', 'dnnlib'}
MAY_IMPORT = {
    'dnnlib': set(),
    'torch_utils': {'dnnlib'},
    'diffusion': BELOW,
    'guided_diffusion': set(),
    'figures': BELOW,
    'networks': BELOW | {'guided_diffusion', 'diffusion'},
    'sampling': {'diffusion', 'torch_utils.rng', 'torch_utils.transfer'},
    'generation': BELOW,
    'training': BELOW | {'diffusion'},
    'metrics': BELOW | {'diffusion'},
    'classifier_lib': BELOW | {'networks', 'diffusion', 'guided_diffusion'},
    'commands': BELOW | {'generation', 'sampling', 'training', 'metrics', 'networks', 'figures', 'diffusion'},
}
SCRIPTS = {path.stem for path in ROOT.glob('*.py')} - MAY_IMPORT.keys()
ONLY_IN = {  # libraries that few places may import
    'click': ('commands/', 'dnnlib/cli.py'),
    'matplotlib': ('figures/',),
}


def imported(path: Path) -> set[str]:
    """The modules that a file imports by absolute names; names imported `from` them count as modules too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


def allowed(name: str, room: str) -> bool:
    """Whether a room may import a module: its own, one in the table or below it, or a library."""
    if name.split('.')[0] not in MAY_IMPORT.keys() | SCRIPTS:
        return True
    return any(f'{name}.'.startswith(f'{place}.') for place in MAY_IMPORT[room] | {room})


def files(room: str) -> list[Path]:
    return [ROOT / f'{room}.py'] if (ROOT / f'{room}.py').is_file() else sorted((ROOT / room).rglob('*.py'))


@pytest.mark.parametrize('room', MAY_IMPORT)
def test_rooms_import_only_downwards(room):
    assert files(room)
    for path in files(room):
        assert not [name for name in imported(path) if not allowed(name, room)], path.relative_to(ROOT)


def test_scripts_do_not_import_scripts():
    for script in SCRIPTS:
        found = {name.split('.')[0] for name in imported(ROOT / f'{script}.py')}
        assert not found & SCRIPTS and 'classifier_lib' not in found, script


@pytest.mark.parametrize('library', ONLY_IN)
def test_libraries_that_few_places_know(library):
    for room in MAY_IMPORT:
        for path in files(room):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(ONLY_IN[library]):
                assert library not in {found.split('.')[0] for found in imported(path)}, name


def test_scripts_start_without_what_is_slow_to_import():
    """Each of these takes about as long to import as torch itself; plot.py draws, so it needs matplotlib at once."""
    slow = ('torchvision', 'torch._dynamo', 'torch._inductor', 'scipy', 'matplotlib')
    show = f'print([name for name in {slow} if name in sys.modules])'
    code = f'import sys, {", ".join(SCRIPTS - {"plot"})}; {show}; import plot; {show}'
    found = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.splitlines() == ['[]', "['matplotlib']"], found.stderr


def test_torch_distributed_has_one_user():
    for path in ROOT.rglob('*.py'):
        if '.venv' in path.parts or path.relative_to(ROOT).parts[0] == 'tests':
            continue
        if path.relative_to(ROOT) != Path('torch_utils/distributed.py'):
            assert 'torch.distributed' not in path.read_text(), path.relative_to(ROOT)


def test_nothing_unpickles():
    """The restricted unpickler is the only use of pickle; loads are weights-only and free of objects."""
    for path in ROOT.rglob('*.py'):
        parts = path.relative_to(ROOT).parts
        if '.venv' in parts or parts[0] == 'tests':
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            where = f'{"/".join(parts)}:{node.lineno}'
            assert name not in ('pickle.load', 'pickle.loads', 'exec', 'eval'), where
            if name == 'torch.load':
                assert keywords.get('weights_only') == 'True', where
            if name == 'np.load':
                assert keywords.get('allow_pickle') == 'False', where
