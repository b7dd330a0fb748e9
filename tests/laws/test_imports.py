"""The arrows between the rooms run one way (which package may import which)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = {'dnnlib'}
MAY_IMPORT = {
    'dnnlib': BASE,
    'torch_utils': BASE | {'torch_utils'},
    'diffusion': BASE | {'torch_utils', 'diffusion'},
    'guided_diffusion': {'guided_diffusion'},
    'networks': BASE | {'torch_utils', 'diffusion', 'guided_diffusion', 'networks'},
    'sampling': BASE | {'torch_utils', 'diffusion', 'sampling'},
    'training': BASE | {'torch_utils', 'diffusion', 'training'},
    'metrics': BASE | {'torch_utils', 'diffusion', 'metrics'},
    'classifier_lib': BASE | {'networks', 'guided_diffusion', 'diffusion', 'torch_utils'},
}
ROOMS = set(MAY_IMPORT)
SCRIPTS = {path.stem for path in ROOT.glob('*.py')} - ROOMS


def imported(path: Path) -> set[str]:
    """Top-level names of all absolute imports in a file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split('.')[0])
    return names


@pytest.mark.parametrize('room', sorted(ROOMS))
def test_rooms_import_only_downwards(room):
    files = [ROOT / f'{room}.py'] if (ROOT / f'{room}.py').is_file() else sorted((ROOT / room).rglob('*.py'))
    assert files
    for path in files:
        assert imported(path) & (ROOMS | SCRIPTS) <= MAY_IMPORT[room], path.relative_to(ROOT)


SAMPLERS = sorted((ROOT / 'sampling').glob('*.py'))
NOT_SAMPLERS = {'runner', 'folder', 'options', 'diffrs_report'}  # they know files, ranks and the command line


@pytest.mark.parametrize('path', [path for path in SAMPLERS if path.stem not in NOT_SAMPLERS], ids=lambda p: p.stem)
def test_samplers_know_no_files_ranks_or_commands(path):
    tree = ast.parse(path.read_text())
    siblings = {name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level
                for name in [node.module, *(alias.name for alias in node.names)]}
    assert not siblings & NOT_SAMPLERS
    assert 'click' not in imported(path) and 'distributed' not in path.read_text()


def test_scripts_do_not_import_scripts():
    for script in SCRIPTS:
        assert not imported(ROOT / f'{script}.py') & SCRIPTS, script


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
