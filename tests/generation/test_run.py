"""generation/run.py and generation/folder.py: the files that a run leaves, whatever happens on the way."""

import collections
import fcntl
import itertools
import json
import os
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from script_runs import run_forked

from dnnlib.int_lists import format_int_list
from generation import folder
from generation import run as runner
from generation.folder import SampleFolder
from generation.writer import QUEUE_DEPTH
from sampling.samples import Samples, draw_inputs
from torch_utils.images import to_uint8
from torch_utils.rng import StackedRandomGenerator

ROOT = Path(__file__).resolve().parents[2]


class Net:
    img_channels, img_resolution, label_dim = 3, 8, 4


class Unconditional(Net):
    label_dim = 0


class Sampler:
    """Returns the latents as images; keeps the batches it drew."""

    def __init__(self, net=Net, bad_seed=None, fail_at=None):
        self.net, self.bad_seed, self.fail_at, self.batches = net, bad_seed, fail_at, []

    def __call__(self, seeds, progress):
        if len(self.batches) == self.fail_at:
            raise KeyboardInterrupt
        self.batches.append(list(seeds))
        _, latents, labels = draw_inputs(self.net, seeds, 'cpu')
        if self.bad_seed in seeds:
            latents[seeds.index(self.bad_seed), 0, 0, 0] = float('nan')
        progress(0.5 * len(seeds))
        return Samples(latents, labels)


def batches_of(sampler, batch):
    """A sampler of batches as a stream."""
    def stream(seeds, progress):
        while chosen := list(itertools.islice(seeds, batch)):
            yield sampler(chosen, progress)

    return stream


def run_stream(stream, seeds, path, batch=4, options=None, save_type='npz', **kwargs):
    return runner.run(stream, SampleFolder(path, seeds, batch, options or {}, save_type), **kwargs)


def run(path, sampler=None, seeds=range(10), batch=4, options=None, **kwargs):
    return run_stream(batches_of(sampler or Sampler(), batch), list(seeds), path, batch, options or dict(a=1), **kwargs)


def contents(path):
    return {name: (path / name).read_bytes() for name in sorted(os.listdir(path))}


def test_files_of_a_run(tmp_path):
    report = run(tmp_path / 'a' / 'b', seeds=[5, 6, 7, 100, 3], batch=2)
    assert (report.images, report.drawn) == (5, 5)
    assert sorted(os.listdir(tmp_path / 'a' / 'b')) == [
        'options.json', 'sample_00000003.png', 'sample_00000005.png', 'sample_00000007.png',
        'samples_00000003.npz', 'samples_00000005.npz', 'samples_00000007.npz']
    with np.load(tmp_path / 'a' / 'b' / 'samples_00000007.npz', allow_pickle=False) as file:
        assert sorted(file.files) == ['label', 'samples']
        assert file['samples'].shape == (2, 8, 8, 3) and file['samples'].dtype == np.uint8
        assert file['label'].shape == (2, 4) and file['label'].dtype == np.float32
        assert (file['label'].sum(1) == 1).all()
    record = json.loads((tmp_path / 'a' / 'b' / 'options.json').read_text())
    assert record == dict(a=1, seeds='5-7,100,3', batch=2, save_type='npz')


def test_latents_and_labels_are_those_of_edm():
    """Per seed: normal latents first, then the label; a fixed class does not change later draws."""
    rnd, latents, labels = draw_inputs(Net, [3, 2**32 + 7], 'cpu')
    after = rnd.randn_like(latents)
    for row, seed in enumerate([3, 7]):
        generator = torch.Generator().manual_seed(seed)
        assert torch.equal(latents[row], torch.randn([3, 8, 8], generator=generator))
        assert labels[row].argmax() == torch.randint(4, [], generator=generator)
        assert torch.equal(after[row], torch.randn([3, 8, 8], generator=generator))
    fixed, same_latents, fixed_labels = draw_inputs(Net, [3, 7], 'cpu', class_idx=2)
    assert torch.equal(same_latents, latents) and (fixed_labels.argmax(1) == 2).all()
    other, _, _ = draw_inputs(Net, [3, 7], 'cpu')
    assert torch.equal(fixed.randn_like(latents), other.randn_like(latents))
    assert draw_inputs(Unconditional, [1], 'cpu')[2] is None


@pytest.mark.parametrize('net, class_idx', [(Net, 4), (Unconditional, 0)])
def test_classes_that_do_not_exist(net, class_idx):
    with pytest.raises(ValueError):
        draw_inputs(net, [1], 'cpu', class_idx)


@pytest.mark.parametrize('batch', [1, 3, 10, 64])
def test_image_k_does_not_depend_on_the_batch(tmp_path, batch):
    run(tmp_path, seeds=range(20, 30), batch=batch)
    for path in tmp_path.glob('samples_*.npz'):
        with np.load(path, allow_pickle=False) as file:
            first = int(path.stem.removeprefix('samples_'))
            for k, image in enumerate(file['samples']):
                latents = StackedRandomGenerator('cpu', [first + k]).randn([1, 3, 8, 8])
                assert np.array_equal(image, to_uint8(latents)[0])


def test_png_files(tmp_path):
    run(tmp_path, seeds=[0, 123456, 1234567], batch=2, save_type='png')
    assert sorted(os.listdir(tmp_path)) == ['000000.png', '123456.png', '1234567.png', 'options.json']
    latents = StackedRandomGenerator('cpu', [123456]).randn([1, 3, 8, 8])
    with PIL.Image.open(tmp_path / '123456.png') as image:
        assert np.array_equal(np.asarray(image), to_uint8(latents)[0])
    sampler = Sampler()
    (tmp_path / '1234567.png').write_bytes((tmp_path / '1234567.png').read_bytes()[:-40])
    run(tmp_path, sampler, seeds=[0, 123456, 1234567], batch=2, save_type='png')
    assert sampler.batches == [[1234567]]


def test_pictures_beside_the_first_shards_only(tmp_path):
    run(tmp_path, seeds=range(12), batch=2)
    assert len(list(tmp_path.glob('sample_*.png'))) == folder.GRIDS
    with PIL.Image.open(tmp_path / 'sample_00000000.png') as image:
        assert image.size == (12, 22)  # two images of 8 pixels below one another, 2 pixels of padding


def test_costs_and_classes_are_kept(tmp_path):
    def sample(seeds, progress):
        return Samples(torch.zeros(len(seeds), 1, 4, 4), torch.eye(3)[torch.tensor(seeds) % 3],
                       costs=dict(nfe=np.array(seeds)))

    run(tmp_path / 'npz', sample, seeds=range(5), batch=4)
    with np.load(tmp_path / 'npz' / 'samples_00000004.npz', allow_pickle=False) as file:
        assert file['nfe'].tolist() == [4] and file['samples'].shape == (1, 4, 4, 1)
    run(tmp_path / 'png', sample, seeds=range(5), batch=4, save_type='png')
    assert [costs['nfe'].tolist() for costs in folder.read_costs(tmp_path / 'png')] == [[0], [1], [2], [3], [4]]
    folder.write_labels(tmp_path / 'png')
    assert json.loads((tmp_path / 'png' / 'dataset.json').read_text())['labels'] == [
        ['000000.png', 0], ['000001.png', 1], ['000002.png', 2], ['000003.png', 0], ['000004.png', 1]]
    run(tmp_path / 'png', sample, seeds=range(5), batch=4, save_type='png')  # the file belongs to the folder


def test_states_are_decoded(tmp_path):
    """If samples are not pixels, the network decodes them."""
    run(tmp_path, seeds=range(3), decode=lambda x: 0 * x[:, :, :4, :4] + 1)
    with np.load(tmp_path / 'samples_00000000.npz', allow_pickle=False) as file:
        assert file['samples'].shape == (3, 4, 4, 3) and (file['samples'] == 255).all()


def test_the_same_command_completes_a_run(tmp_path):
    """After a kill, with a shard cut short, a picture missing and a temporary file left behind."""
    run(tmp_path / 'whole', seeds=range(20))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / 'killed', Sampler(fail_at=3), seeds=range(20))
    killed = tmp_path / 'killed'
    assert len(list(killed.glob('samples_*.npz'))) == 3  # finished shards are on disk
    data = (killed / 'samples_00000004.npz').read_bytes()
    (killed / 'samples_00000004.npz').write_bytes(data[:len(data) // 2])
    (killed / 'sample_00000008.png').unlink()
    (killed / '.samples_00000012.npz.x1y2.tmp').write_bytes(b'half')
    sampler = Sampler()
    report = run(killed, sampler, seeds=range(20))
    assert [batch[0] for batch in sampler.batches] == [4, 8, 12, 16] and report.drawn == 16
    assert contents(killed) == contents(tmp_path / 'whole')
    assert run(killed, sampler, seeds=range(20)).drawn == 0


def test_flipped_bytes_are_noticed(tmp_path):
    run(tmp_path)
    path = tmp_path / 'samples_00000004.npz'
    whole = path.read_bytes()
    path.write_bytes(whole[:300] + bytes(64) + whole[364:])
    run(tmp_path)
    assert path.read_bytes() == whole


def test_other_options_are_refused_by_name(tmp_path):
    run(tmp_path, options=dict(a=1, S_max=float('inf')))
    before = contents(tmp_path)
    run(tmp_path, options=dict(a=1, S_max=float('inf')))
    with pytest.raises(ValueError, match=r'a was 1, now 2; batch was 4, now 5'):
        run(tmp_path, options=dict(a=2, S_max=float('inf')), batch=5)
    with pytest.raises(ValueError, match=r"seeds was '0-9', now '0-8'"):
        run(tmp_path, seeds=range(9), options=dict(a=1, S_max=float('inf')))
    assert contents(tmp_path) == before


@pytest.mark.parametrize('save_type', ['npz', 'png'])
def test_more_seeds_continue_a_run(tmp_path, save_type):
    """Existing shards are kept, except the one that was cut short by the end of the list."""
    run(tmp_path / 'grown', seeds=range(10), save_type=save_type)
    sampler = Sampler()
    run(tmp_path / 'grown', sampler, seeds=range(18), save_type=save_type)
    assert [batch[0] for batch in sampler.batches] == [8, 12, 16]
    run(tmp_path / 'whole', seeds=range(18), save_type=save_type)
    assert contents(tmp_path / 'grown') == contents(tmp_path / 'whole')


def test_a_network_that_was_moved_is_the_same(tmp_path):
    run(tmp_path, options=dict(network='a.pkl', network_sha256='12'))
    run(tmp_path, options=dict(network='b.pkl', network_sha256='12'))
    assert json.loads((tmp_path / 'options.json').read_text())['network'] == 'b.pkl'
    with pytest.raises(ValueError, match='network_sha256'):
        run(tmp_path, options=dict(network='b.pkl', network_sha256='34'))


def test_foreign_samples_are_refused(tmp_path):
    (tmp_path / 'samples_731.npz').write_bytes(b'x')
    with pytest.raises(ValueError, match='no options.json'):
        run(tmp_path)
    assert os.listdir(tmp_path) == ['samples_731.npz']
    (tmp_path / 'samples_731.npz').unlink()
    run(tmp_path)
    (tmp_path / 'samples_00000002.npz').write_bytes(b'x')
    with pytest.raises(ValueError, match='samples_00000002.npz'):
        run(tmp_path)


def test_overwrite_removes_samples_and_nothing_else(tmp_path):
    (tmp_path / 'notes.txt').write_text('keep')
    (tmp_path / 'samples_731.npz').write_bytes(b'x')
    run(tmp_path, overwrite=True)
    run(tmp_path, batch=5, options=dict(a=2), overwrite=True)
    assert (tmp_path / 'notes.txt').read_text() == 'keep'
    assert sorted(path.name for path in tmp_path.glob('samples*')) == ['samples_00000000.npz', 'samples_00000005.npz']


def test_nan_names_the_seed_and_writes_nothing(tmp_path):
    with pytest.raises(runner.NonFiniteSample, match='seed 6 '):
        run(tmp_path, Sampler(bad_seed=6))
    assert not (tmp_path / 'samples_00000004.npz').exists() and not (tmp_path / 'sample_00000004.png').exists()
    assert (tmp_path / 'samples_00000000.npz').exists()
    assert not list(tmp_path.glob('.*'))


def test_errors_of_the_writer_reach_the_caller(tmp_path, monkeypatch):
    """A full disk: the error is raised, sampling stops soon, no incomplete file stays."""
    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(folder.np, 'savez', full)
    sampler = Sampler()
    with pytest.raises(OSError, match='No space left'):
        run(tmp_path, sampler, seeds=range(400))
    assert len(sampler.batches) < 60
    assert not list(tmp_path.glob('.*')) and not list(tmp_path.glob('samples_*'))
    assert not [thread for thread in threading.enumerate() if thread.name == 'writer']


def test_a_slow_disk_holds_few_batches(tmp_path, monkeypatch):
    """Memory is flat: at most the queue, the batch being written and the one being drawn are alive."""
    alive, most = [0], [0]
    write = folder.SampleFolder.write

    def slow(*args):
        time.sleep(0.02)
        write(*args)
        alive[0] -= 1

    def sample(seeds, progress):
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        return Samples(torch.zeros(len(seeds), 3, 8, 8))

    monkeypatch.setattr(folder.SampleFolder, 'write', slow)
    run(tmp_path, sample, seeds=range(60))
    assert alive == [0] and 1 < most[0] <= QUEUE_DEPTH + 2


def test_two_runs_in_one_folder(tmp_path):
    """As in another process: a lock through its own descriptor."""
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match='another run'):
        run(tmp_path)
    with pytest.raises(ValueError, match='another run'), runner.reserve(SampleFolder(tmp_path, [1], 1, {}),
                                                                        undecided=()):
        pass
    assert not os.listdir(tmp_path)
    os.close(handle)
    with runner.reserve(SampleFolder(tmp_path, range(10), 4, {}), undecided=['a']):
        run(tmp_path)  # the block's own run has the lock already
    with pytest.raises(ValueError, match='a was 1, now 2'), runner.reserve(
            SampleFolder(tmp_path, range(10), 4, dict(a=2, b=1)), undecided=['b']):
        pass


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        with pytest.raises(OSError):
            run(path)


def test_repeated_seeds_are_refused(tmp_path):
    with pytest.raises(ValueError, match='twice'):
        run(tmp_path, seeds=[1, 2, 1])


def test_many_seeds_are_not_listed(tmp_path):
    """50 million seeds in shards of 1000: 50,000 shards, a few tens of MiB, not gigabytes."""
    tracemalloc.start()
    made = folder.SampleFolder(tmp_path, runner.choose_seeds(None, 50_000_000, None), 1000, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(made.shards) == 50_000 and made.shards[-1].seeds[-1] == 49_999_999
    assert made.options['seeds'] == '0-49999999' and peak < 64 * 2**20


def test_choose_seeds():
    assert runner.choose_seeds([4, 2], None, None) == [4, 2]
    assert list(runner.choose_seeds(None, 3, 10)) == [10, 11, 12]
    assert runner.choose_seeds(None, None, None) == range(50000)
    for seeds in ((None, 2, 2**32 - 1), ([0, 2**32], None, None)):  # the same images twice
        with pytest.raises(ValueError, match='4294967296 is too large'):
            runner.choose_seeds(*seeds)
    for given in ((3, None), (None, 0)):
        with pytest.raises(ValueError):
            runner.choose_seeds([1], *given)


def test_format_int_list():
    assert format_int_list([0, 1, 2, 7, 5, 6]) == '0-2,7,5-6'


WORKER = '''
import sys, time
sys.path[:0] = {tests!r}
from test_run import Sampler, run
from torch_utils import distributed as dist

class Slow(Sampler):
    ended = longest = 0

    def __call__(self, seeds, progress):
        began = time.monotonic()
        for _ in range(25 if dist.get_rank() == 1 else 1):
            time.sleep(0.02)
            progress(0)
        samples = super().__call__(seeds, progress)
        self.ended = time.monotonic()
        self.longest = max(self.longest, self.ended - began)
        return samples

dist.init()
sampler = Slow(bad_seed={bad_seed})
report = run({path!r}, sampler, seeds=range(50))
sys.stdout.write(f'rank {{dist.get_rank()}} drew {{len(sampler.batches)}} of {{report.drawn}} '
                 f'until {{sampler.ended}} longest {{sampler.longest}}\\n')
dist.shutdown()
'''


def launch(tmp_path, processes, path, bad_seed=None, worker=WORKER):
    script = tmp_path / 'worker.py'
    tests = [str(ROOT / 'tests' / room) for room in ('generation', 'helpers')]
    script.write_text(worker.format(tests=tests, path=str(path), bad_seed=bad_seed))
    return run_forked(script, processes=processes)


def said(result):
    """The words of each rank's line; torch 2.8 has lines of its own."""
    return [line.split() for line in result.stdout.splitlines() if line.startswith('rank ')]


@pytest.mark.parametrize('processes', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_share_the_work_and_the_files_are_the_same(tmp_path, processes):
    """Rank 1 is slow: it draws less, nobody waits longer than a block, and the files are those of one process."""
    result = launch(tmp_path, processes, tmp_path / 'many')
    assert result.returncode == 0, result.stderr
    run(tmp_path / 'one', seeds=range(50))
    assert contents(tmp_path / 'many') == contents(tmp_path / 'one')
    drawn = {int(words[1]): int(words[3]) for words in said(result)}
    assert sum(drawn.values()) >= 13 and len(drawn) == processes  # and those drawn again for the slow one
    assert drawn[1] < max(drawn.values())
    assert result.stdout.count('of 50') == processes
    ended, longest = ([float(words[k]) for words in said(result)] for k in (7, 9))
    assert max(ended) - min(ended) < max(longest) + 0.4  # and the time between two blocks of 0.5 s each


STREAM_WORKER = '''
import sys, time
sys.path[:0] = {tests!r}
from test_run import Net, stream_of
from test_run import run_stream
from torch_utils import distributed as dist

def stream(seeds, progress):
    try:
        yield from stream_of(seeds, progress, wait=0.5 if dist.get_rank() == 1 else 0.01)
    finally:
        global ended
        ended = time.monotonic()

dist.init()
ended = 0
report = run_stream(stream, range(80), {path!r})
sys.stdout.write(f'rank {{dist.get_rank()}} of {{report.drawn}} ended {{ended}} knows {{time.monotonic()}}\\n')
dist.shutdown()
'''


def stream_of(seeds, progress, wait=0.0):
    """As DiffRS: two shards of seeds at once, of which one sample ends at a time."""
    under_way = collections.deque()
    while True:
        under_way.extend(itertools.islice(seeds, 8 - len(under_way)))
        if not under_way:
            return
        time.sleep(wait)
        yield Samples(draw_inputs(Unconditional, [under_way.popleft()], 'cpu')[1])


@pytest.mark.parametrize('processes', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_streams_help_the_slow_one(tmp_path, processes):
    """A slow rank holds two to three shards; the others draw them at the end, and no rank waits for it."""
    result = launch(tmp_path, processes, tmp_path / 'many', worker=STREAM_WORKER)
    assert result.returncode == 0, result.stderr
    run_stream(stream_of, range(80), tmp_path / 'one')
    assert contents(tmp_path / 'many') == contents(tmp_path / 'one')
    assert result.stdout.count('of 80 ended') == processes  # samples drawn twice are counted once
    ended, knows = ([float(words[k]) for words in said(result)] for k in (5, 7))
    assert max(knows) - min(ended) < 4 * 0.5  # of 8 to 12 samples


def test_what_is_there_in_part_is_drawn_again(tmp_path):
    """A complete file is kept; a cut one is removed before its samples are drawn, lest it count as complete."""
    run_stream(stream_of, range(12), tmp_path)
    before = contents(tmp_path)
    path = tmp_path / 'samples_00000004.npz'
    path.write_bytes(path.read_bytes()[:-100])
    there = []

    def watched(seeds, progress):
        for piece in stream_of(seeds, progress):
            there.append(path.exists())
            yield piece

    report = run_stream(watched, range(12), tmp_path)
    assert (report.images, report.drawn, there) == (12, 4, [False] * 4)
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_others(tmp_path):
    result = launch(tmp_path, 2, tmp_path / 'many', bad_seed=17)
    assert result.returncode != 0 and 'seed 17' in result.stderr


LIFE = '''
import sys, time
from torch_utils import distributed as dist
dist.init()
for _ in range(30 if dist.get_rank() else 0):  # twice as long as the time-out
    time.sleep(0.2)
    if sys.argv[1] == 'works':
        dist._last_sign = 0
        dist.sign_of_life()
dist.wait_for_all('end')
dist.shutdown()
'''


@pytest.mark.parametrize('rank', ['works', 'hangs'])
def test_a_rank_is_waited_for_while_it_shows_life(tmp_path, rank):
    (tmp_path / 'life.py').write_text(LIFE)
    # The ranks' first meeting has to fit in as well: a tenth of a second, some more on a busy machine.
    done = run_forked(tmp_path / 'life.py', [rank], 2, environment=dict(DIST_TIMEOUT_SEC='3'))
    assert (done.returncode == 0) == (rank == 'works'), done.stderr[-2000:]
    assert ('Timed out: for 3 s' in done.stderr) == (rank == 'hangs'), done.stderr[-2000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_samples_on_the_gpu(tmp_path):
    """Images leave the device while sampling goes on; each image follows its own CUDA generator."""
    def sample(seeds, progress):
        _, latents, labels = draw_inputs(Net, seeds, 'cuda')
        return Samples(latents, labels)

    run(tmp_path / 'a', sample, batch=4)
    run(tmp_path / 'b', sample, batch=10)
    images = [np.load(path, allow_pickle=False)['samples'] for path in sorted((tmp_path / 'a').glob('*.npz'))]
    whole = np.load(tmp_path / 'b' / 'samples_00000000.npz', allow_pickle=False)['samples']
    assert np.array_equal(np.concatenate(images), whole)
