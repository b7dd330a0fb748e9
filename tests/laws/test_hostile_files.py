"""Malicious files: every reader refuses each in one line, within seconds, with little memory, and without effects.

Each file is given to each command that takes it, in a child with half a gigabyte beyond an idle process and ten seconds
of work.
"""

import json
from pathlib import Path

import hostile_files as hostile
import hostile_networks
import numpy as np
import pytest
import torch
from script_runs import ROOT, ForkedWorker

import networks

CPU = '--device=cpu'
SLOW = 1  # second of work; most take a tenth of it
IMAGES = {
    'zip': lambda path: ['dataset_tool', 'zip', f'--source={path}', '--dest=out.zip'],
    'npz': lambda path: ['dataset_tool', 'npz', f'--source={path}', '--outdir=out'],
    'stats': lambda path: ['dataset_tool', 'stats', f'--source={path}', '--dest=out.npz', CPU],
    'fid': lambda path: ['fid_npzs', f'--images={path}', '--num_samples=4', CPU],
    'train': lambda path: ['train_score', f'--data={path}', '--outdir=out', '--cond=1', '--dry_run', CPU],
}
NETWORKS = {
    'convert': lambda path: ['convert', str(path), 'out.safetensors'],
    'classifier': lambda path: ['classifier', str(path)],
    'detector': lambda path: ['dataset_tool', 'stats', '--source=../good.npz', '--dest=out.npz',
                              f'--detector_ckpt={path}', CPU],
}
STATES = {'convert': NETWORKS['convert'], 'classifier': NETWORKS['classifier'],
          'state': lambda path: ['state', str(path)],
          'inception': lambda path: ['inception', str(path)]}
REFERENCES = {'ref': lambda path: ['fid_npzs', f'--ref={path}', '--images=../good.npz', '--num_samples=4', CPU]}


@pytest.fixture(scope='module')
def give(tmp_path_factory):
    """give(make, *readers): the answers of readers to the file that make(place) writes, and the files they leave."""
    room = tmp_path_factory.mktemp('hostile')
    np.savez(room / 'good.npz', samples=np.random.RandomState(0).randint(256, size=[5, 32, 32, 3], dtype=np.uint8),
             label=np.arange(5))
    worker = ForkedWorker('tests/helpers/hostile_worker.py', environment=dict(DIFFUSION_CACHE=str(room / 'cache')))
    worker.stdout.readline()
    count = 0

    def call(make, *commands):
        """Answers of several commands about one file."""
        nonlocal count
        place = room / f'{count}'
        folder = place / 'here'
        folder.mkdir(parents=True)
        (place / 'good.npz').symlink_to(room / 'good.npz')
        count += 1
        given = make(place)
        before = sorted(place.rglob('*'))
        task = dict(commands=[command(given) for command in commands], folder=str(folder))
        print(json.dumps(task), file=worker.stdin, flush=True)
        answers = json.loads(worker.stdout.readline())
        left = sorted(set(place.rglob('*')) - set(before))
        return [answer | dict(left=left, cache=(room / 'cache').exists()) for answer in answers]

    with worker:
        yield call


def problems(answer):
    """What is wrong with the refusal of a file; '' if nothing."""
    lines = [line for line in answer['output'].splitlines() if line.startswith(('Error', 'Usage', 'Traceback'))]
    errors = [line for line in lines if line.startswith('Error: --') or line.startswith(('Error: PATH', 'Error: SRC'))]
    found = dict(code=answer['code'] != 1, time=answer['code'] > 128, lines=len(lines) != 1 or len(errors) != 1,
                 long=any(len(line) > 700 for line in lines), left=bool(answer['left']), cache=answer['cache'],
                 advice='allow_pickle' in answer['output'] or 'weights_only' in answer['output'],
                 slow=answer['seconds'] > SLOW)
    return ', '.join(name for name, wrong in found.items() if wrong)


def refuse_all(give, files, readers):
    """Every reader refuses every file as it should; all exceptions are shown."""
    wrong = []
    for name, make in files.items():
        for reader, answer in zip(readers, give(make, *readers.values()), strict=True):
            if found := problems(answer):
                wrong.append(f'{name} by {reader}: {found} (code {answer["code"]}, {answer["seconds"]:.1f} s, left '
                             f'{answer["left"]}): {answer["output"][-800:]}')
    assert not wrong, f'{len(wrong)} files\n' + '\n'.join(wrong)


def of(blobs, name='given'):
    """Builders of files with these contents."""
    return {key: lambda place, blob=blob: hostile.written(place / name, blob) for key, blob in blobs.items()}


def test_good_files_pass(give):
    """So it is not the limits that refuse the others."""
    weights = hostile_networks.saved(torch.nn.Linear(1, 1).state_dict())
    for make, commands in [
            (lambda place: place / 'good.npz', IMAGES.values()),
            (lambda place: hostile.written(place / 'a.pt', weights), [STATES['state']]),
            (lambda place: ROOT / 'checkpoints/demo/score.safetensors', [NETWORKS['convert']]),
            (lambda place: ROOT / 'checkpoints/demo/classifier.safetensors', [NETWORKS['classifier']]),
            (lambda place: ROOT / 'checkpoints/demo/features.safetensors', [NETWORKS['detector']]),
            (lambda place: ROOT / 'stats/cifar10-demo.npz', REFERENCES.values())]:
        for answer in give(make, *commands):
            assert answer['code'] == 0, answer['output']


def test_images(give):
    refuse_all(give, {name: lambda place, name=name: hostile.image_in_folder(place, name) for name in hostile.IMAGES},
               {name: IMAGES[name] for name in ('zip', 'fid')})
    refuse_all(give, {name: lambda place, name=name: hostile.image_in_zip(place, name) for name in hostile.IMAGES},
               {'npz': IMAGES['npz']})


def test_zips(give):
    labels = ('nested', 'label', 'two labels', 'json', 'digits')
    refuse_all(give, {name: make for name, make in hostile.ZIPS.items() if name not in labels},
               {name: IMAGES[name] for name in ('zip', 'fid', 'train')})
    refuse_all(give, {name: hostile.ZIPS[name] for name in labels}, {name: IMAGES[name] for name in ('zip', 'train')})


def test_arrays(give):
    labels = ('object labels', 'labels', 'many labels')
    refuse_all(give, {name: make for name, make in hostile.ARRAYS.items() if name not in labels},
               {name: IMAGES[name] for name in ('npz', 'fid', 'train')})
    refuse_all(give, {name: hostile.ARRAYS[name] for name in labels}, {'train': IMAGES['train']})
    refuse_all(give, {'inflating': hostile.inflating_array}, {'train': IMAGES['train']})


def test_places_that_are_no_files(give):
    refuse_all(give, hostile.PLACES, {name: IMAGES[name] for name in ('zip', 'fid', 'train')})
    refuse_all(give, {name: hostile.PLACES[name] for name in ('fifo.npz', 'zero.npz', 'loop.npz', 'folder.npz')},
               REFERENCES | NETWORKS | dict(state=STATES['state']))


def test_references(give):
    refuse_all(give, hostile.REFERENCES | {'objects': hostile.ARRAYS['objects']}, REFERENCES)


def test_pickles(give):
    refuse_all(give, of(hostile_networks.PICKLES), {name: NETWORKS[name] for name in ('convert', 'classifier')})


def test_safetensors(give):
    refuse_all(give, of(hostile_networks.SAFETENSORS, 'given.safetensors'), NETWORKS)


def test_state_files(give):
    files = of(hostile_networks.STATES, 'given.pt')
    numbers = files.pop('numbers')  # as a training state they are fine
    refuse_all(give, files, STATES)
    refuse_all(give, dict(numbers=numbers), {name: STATES[name] for name in ('convert', 'classifier', 'inception')})


def test_a_pickle_cut_at_every_instruction(tmp_path):
    for index, blob in enumerate(hostile_networks.cut_at_every_opcode()):
        path = Path(tmp_path / f'{index}.pkl')
        path.write_bytes(blob)
        with pytest.raises(ValueError) as caught:
            networks.load_network(path)
        assert '\n' not in str(caught.value) and path.name in str(caught.value)


def test_there_are_enough():
    counts = [len(files) for files in (hostile.IMAGES, hostile.ZIPS, hostile.ARRAYS, hostile.PLACES, hostile.REFERENCES,
                                       hostile_networks.PICKLES, hostile_networks.SAFETENSORS, hostile_networks.STATES)]
    assert sum(counts) >= 40 and min(counts) >= 8
