"""The training loop: resuming, gradient accumulation, several processes, refusals."""

import contextlib
import errno
import fcntl
import functools
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from script_runs import another_run, run_forked
from tiny_run import TinyNet, tiny_run

from torch_utils import compiler as compiler_lib
from torch_utils.checkpoint import load_state
from torch_utils.compiler import CompilerFailed
from torch_utils.stats import JsonLines
from training import loop
from training.data import BatchLoader
from training.ema import Ema
from training.loop import Trainer, train
from training.randomness import BatchRandom
from training.run import STATE_FILE, NonFiniteLoss, TrainRun, adam

TIMES = ('timestamp', 'elapsed_sec', 'img_per_sec')


def outcome(outdir):
    """All that a run leaves, without times."""
    state = load_state(outdir / STATE_FILE)
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in JsonLines(outdir / 'stats.jsonl').read()]
    return state, lines


def assert_same(a, b, exact=True):
    (state_a, lines_a), (state_b, lines_b) = outcome(a), outcome(b)
    tolerance = dict(rtol=0, atol=0) if exact else dict(rtol=1e-4, atol=1e-6)
    for part in ('module', 'ema', 'optimizer'):
        torch.testing.assert_close(state_a[part], state_b[part], **tolerance)
    assert state_a['nimg'] == state_b['nimg']
    if exact:
        assert lines_a == lines_b
    else:
        assert [line['label'] for line in lines_a] == [line['label'] for line in lines_b]
        assert [line['loss'] for line in lines_a] == pytest.approx([line['loss'] for line in lines_b], rel=1e-5)


@pytest.fixture
def undisturbed(tmp_path):
    assert train(tiny_run(tmp_path / 'undisturbed', dropout=0.2)).reason == 'finished'
    return tmp_path / 'undisturbed'


def test_undisturbed(undisturbed):
    state, lines = outcome(undisturbed)
    assert state['nimg'] == 400 and [line['nimg'] for line in lines] == [100, 200, 300, 400]
    assert lines[-1]['loss'] < lines[0]['loss']
    assert torch.equal(state['module']['frozen'], torch.ones(2))
    assert sorted(p.name for p in undisturbed.iterdir()) == ['options.json', 'stats.jsonl', STATE_FILE]


def test_stopped_after_every_step(undisturbed, tmp_path):
    reasons = []
    while not reasons or reasons[-1] != 'finished':
        reasons.append(train(tiny_run(tmp_path / 'run', dropout=0.2, max_minutes=1e-9)).reason)
    assert reasons == ['time'] * 19 + ['finished']
    assert_same(undisturbed, tmp_path / 'run')


@pytest.mark.parametrize('state_sec', [0, 1000], ids=['saved every step', 'never saved'])
def test_killed(undisturbed, tmp_path, state_sec):
    run = tiny_run(tmp_path / 'run', dropout=0.2, state_sec=state_sec)
    step_loss, steps = run.step_loss, []

    def dying(*args):
        steps.append(1)
        if len(steps) == 13:
            raise KeyboardInterrupt
        return step_loss(*args)

    run.step_loss = dying
    with pytest.raises(KeyboardInterrupt):
        train(run)
    assert len(outcome(tmp_path / 'run')[1] if state_sec == 0 else JsonLines(run.outdir / 'stats.jsonl').read()) == 2
    (tmp_path / 'run' / '.training-state.pt.abc.tmp').write_bytes(b'half a file')
    assert train(tiny_run(tmp_path / 'run', dropout=0.2)).reason == 'finished'
    assert_same(undisturbed, tmp_path / 'run')
    assert not list((tmp_path / 'run').glob('.*.tmp'))


def test_sigterm(undisturbed, tmp_path):
    run = tiny_run(tmp_path / 'run', dropout=0.2)
    step_loss = run.step_loss

    def terminated(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return step_loss(*args)

    run.step_loss = terminated
    result = train(run)
    assert result.reason == 'signal' and result.nimg == 20 and not result.complete
    assert train(tiny_run(tmp_path / 'run', dropout=0.2)).reason == 'finished'
    assert_same(undisturbed, tmp_path / 'run')


def test_complete_run_stays_as_it_is(undisturbed, capsys):
    before = {p.name: p.read_bytes() for p in undisturbed.iterdir()}
    assert train(tiny_run(undisturbed, dropout=0.2)).nimg == 400
    assert 'complete' in capsys.readouterr().out
    assert before == {p.name: p.read_bytes() for p in undisturbed.iterdir()}


def test_gradient_accumulation(tmp_path):
    train(tiny_run(tmp_path / 'whole'))
    train(tiny_run(tmp_path / 'parts', batch_gpu=7))
    assert_same(tmp_path / 'whole', tmp_path / 'parts', exact=False)


def test_two_processes(tmp_path):
    train(tiny_run(tmp_path / 'one'))
    run_forked('tests/helpers/tiny_run.py', [tmp_path / 'two'], 2).check_returncode()
    assert_same(tmp_path / 'one', tmp_path / 'two', exact=False)


def test_other_options_are_refused(tmp_path):
    train(tiny_run(tmp_path))
    with pytest.raises(ValueError, match=r'other options \(total was 400, now 600\); .*--overwrite'):
        train(tiny_run(tmp_path, total=600))
    assert train(tiny_run(tmp_path, total=600, overwrite=True)).nimg == 600


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / 'network-000001.safetensors').write_bytes(b'precious')
    with pytest.raises(ValueError, match='network-000001.safetensors but no options.json'):
        train(tiny_run(tmp_path))
    assert (tmp_path / 'network-000001.safetensors').read_bytes() == b'precious'


def test_a_folder_in_use_is_refused(tmp_path):
    with another_run(tmp_path), pytest.raises(ValueError, match='another run is writing'):
        train(tiny_run(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('locks', [True, False])
def test_leftovers(tmp_path, monkeypatch, locks):
    """Temporary files with the run's own names are removed if no other run can be writing them; others stay."""
    def no_locks(handle, operation):
        raise OSError(errno.ENOLCK, 'No locks available')

    if not locks:
        monkeypatch.setattr(fcntl, 'flock', no_locks)
    left = {f'.{name}.0a1b2c3d.tmp' for name in (STATE_FILE, 'stats.jsonl', 'options.json', 'network-7.safetensors')}
    for name in (*left, '.mine.tmp'):
        (tmp_path / name).write_bytes(b'half a file')
    train(tiny_run(tmp_path))
    assert {path.name for path in tmp_path.glob('.*')} == {'.mine.tmp'} | (set() if locks else left)


def test_indivisible_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.dist, 'get_world_size', lambda: 3)
    with pytest.raises(ValueError, match='20 images cannot be divided among 3 processes; use a multiple of 3'):
        train(tiny_run(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


def test_wrong_loss(tmp_path):
    run = tiny_run(tmp_path)
    run.step_loss = lambda *args: (torch.zeros([]), {})
    with pytest.raises(TypeError, match='for a batch of 20'):
        train(run)


def poison(run, step):
    """Let the loss of this step (from 1) be NaN."""
    step_loss, steps = run.step_loss, []

    def poisoned(*args):
        steps.append(1)
        loss, stats = step_loss(*args)
        return loss * (float('nan') if len(steps) == step else 1), stats

    run.step_loss = poisoned


def test_nan_is_never_saved(tmp_path):
    """The state is written after each step: the last one is of the step before."""
    run = tiny_run(tmp_path, state_sec=0)
    poison(run, step=5)
    with pytest.raises(NonFiniteLoss, match='not a finite number'):
        train(run)
    state = load_state(tmp_path / STATE_FILE)
    assert state['nimg'] == 80
    assert all(t.isfinite().all() for part in ('module', 'ema') for t in state[part].values())


def test_no_snapshot_of_a_network_after_nan(tmp_path):
    """Snapshots fall between ticks: the step at 100 images is poisoned, the next tick is at 400."""
    seen = []
    run = tiny_run(tmp_path, tick_nimg=400, snap_nimg=40, on_snapshot=lambda module, nimg: seen.append(nimg))
    poison(run, step=5)
    with pytest.raises(NonFiniteLoss):
        train(run)
    assert seen == [40, 80]


def test_overflow_of_a_gradient_does_not_reach_the_weights(tmp_path):
    run = tiny_run(tmp_path)
    weight = run.module.layers[0].weight
    weight.register_hook(lambda gradient: gradient * float('nan'))
    run.module.layers[3].weight.register_hook(lambda gradient: gradient * float('inf'))
    before = weight.detach().clone()
    assert train(run).reason == 'finished'
    assert torch.equal(weight, before)  # Adam of gradients of 0
    assert all(p.isfinite().all() for p in run.module.parameters())


def test_ranks_agree_every_two_seconds(tmp_path, monkeypatch):
    """The next poll follows from the rate since the last one, also right after a tick."""
    trainer, clock = Trainer(tiny_run(tmp_path), 10), [100.0]
    monkeypatch.setattr(loop.dist, 'get_world_size', lambda: 2)
    monkeypatch.setattr(loop, 'time', SimpleNamespace(monotonic=lambda: clock[0]))
    trainer.step, trainer.last_poll, trainer.last_poll_step = 8, 96.0, 0  # 2 steps a second
    trainer.tick_start, trainer.tick_start_nimg = 100.0, trainer.nimg  # a tick has just ended
    polls = []
    for step_sec in (0.5, 0.5, 0.01, 5.0):
        trainer.poll(SimpleNamespace(caught=False))
        polls.append(trainer.next_poll - trainer.step)
        clock[0] += step_sec * polls[-1]
        trainer.step = trainer.next_poll
    assert polls == [4, 4, 4, 64]
    trainer.poll(SimpleNamespace(caught=False))
    assert trainer.next_poll == trainer.step + 1


def test_hooks(tmp_path):
    seen = []

    def on_tick(context):
        assert not context.module.training and context.record['nimg'] == context.nimg and context.batch_gpu == 7
        context.memory['calls'] = context.memory.get('calls', 0) + 1
        if context.memory['calls'] == 3:
            context.stop()
        return dict(extra=context.memory['calls'])

    def runs(**kwargs):
        return tiny_run(tmp_path, batch_gpu=7, on_tick=on_tick,
                        on_snapshot=lambda module, nimg: seen.append(nimg), **kwargs)

    assert train(runs(max_minutes=1e-9)).reason == 'time'
    assert train(runs()).reason == 'stopped'
    assert seen == [20, 200, 300]
    assert [line['extra'] for line in outcome(tmp_path)[1]] == [1, 2, 3]
    assert train(runs()).complete  # and no more ticks
    assert seen == [20, 200, 300]


def test_pictures_are_drawn_when_the_state_is_written(tmp_path):
    """And once more by a run that finds everything complete: an earlier one may have been killed in between."""
    seen = []

    def draw(lines):
        seen.append((load_state(tmp_path / STATE_FILE)['nimg'], [line['nimg'] for line in lines]))

    assert train(tiny_run(tmp_path, draw=draw, max_minutes=1e-9)).reason == 'time'
    assert train(tiny_run(tmp_path, draw=draw)).reason == train(tiny_run(tmp_path, draw=draw)).reason == 'finished'
    assert seen == [(20, []), (400, [100, 200, 300, 400]), (400, [100, 200, 300, 400])]


def test_a_picture_that_fails_does_not_end_a_run(undisturbed, tmp_path, capsys):
    def draw(lines):
        raise ValueError('no point\non a log axis')

    assert train(tiny_run(tmp_path / 'run', dropout=0.2, draw=draw, state_sec=0)).reason == 'finished'
    assert_same(undisturbed, tmp_path / 'run')
    said = 'could not be drawn (ValueError: no point on a log axis); nothing else is affected'
    assert capsys.readouterr().out.count(said) == 20


def test_gradient_norm_is_clipped(tmp_path):
    """Plain gradient descent with rate 1 moves by the norm of the gradient."""
    run = tiny_run(tmp_path, total=20, max_grad_norm=1e-3, ema=None, lr=lambda nimg: 1.0,
                   optimizer=functools.partial(torch.optim.SGD, lr=0))
    before = torch.cat([p.detach().flatten().clone() for p in run.module.parameters()])
    train(run)
    after = torch.cat([p.detach().flatten() for p in run.module.parameters()])
    assert (after - before).norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_flat_gradients_equal_plain_training(tmp_path):
    """The loop against the same steps written out."""
    run = tiny_run(tmp_path, total=100)
    train(run)
    net = TinyNet().to(memory_format=torch.channels_last)
    plain = tiny_run(tmp_path)
    net.load_state_dict(plain.module.state_dict())
    optimizer = torch.optim.Adam(plain.module.parameters(), lr=1e-2)
    for step in range(5):
        optimizer.zero_grad()
        rows = slice(0, 20)
        loss, _ = plain.step_loss(*plain.batches(step, rows), BatchRandom(5, step, 20, 'cpu').rows(rows))
        loss.mean().backward()
        optimizer.step()
    torch.testing.assert_close(run.module.state_dict(), plain.module.state_dict(), rtol=1e-4, atol=1e-6)


def test_gradients_begin_at_16_bytes(tmp_path):
    """After the last layer's 3 biases too; the padding between them does not count in the norm."""
    run = tiny_run(tmp_path, ema=None)
    run.module.last = torch.nn.Linear(1, 1)
    trainer = Trainer(run, 20)
    assert any(p.numel() % 4 for p in trainer.parameters[:-1])
    assert all(p.grad.data_ptr() % 16 == 0 and p.grad.stride() == p.stride() for p in trainer.parameters)
    trainer.train_step()
    trainer.gradient.zero_()
    for p in trainer.parameters:
        p.grad.fill_(1)
    assert trainer.gradient.sum() == sum(p.numel() for p in trainer.parameters) < len(trainer.gradient)


def test_ema_half_life():
    """After `halflife` images of a constant new value the old one has half its weight."""
    net = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(net.weight)
    ema = Ema(net, halflife_nimg=100, rampup_ratio=None)
    torch.nn.init.ones_(net.weight)
    for step in range(10):
        ema.update(net, step * 10, 10)
    assert ema.module.weight.item() == pytest.approx(0.5, abs=1e-6)
    assert Ema(net, 1e9, 0.05).beta(10_000, 100) == pytest.approx(0.5 ** (100 / 500))


def test_batch_random_is_a_slice_of_the_global_batch():
    whole = BatchRandom(1, 2, 10, 'cpu').rows(slice(0, 10))
    a, b = whole.randn([10, 3]), whole.randint(5, size=[10])
    parts = BatchRandom(1, 2, 10, 'cpu')
    drawn = []
    for rows in (slice(4, 10), slice(0, 4)):
        rng = parts.rows(rows)
        drawn.append((rng.randn([rows.stop - rows.start, 3]), rng.randint(5, size=[rows.stop - rows.start])))
    assert torch.equal(torch.cat([drawn[1][0], drawn[0][0]]), a)
    assert torch.equal(torch.cat([drawn[1][1], drawn[0][1]]), b)
    with pytest.raises(ValueError, match='draw of 3 rows'):
        parts.rows(slice(0, 4)).rand([3])


def test_batch_loader_gives_rows_of_the_global_batch():
    images = torch.arange(12, dtype=torch.uint8).reshape(6, 2, 1, 1).expand(6, 2, 4, 4)
    loader = BatchLoader(images, None, 4, 3, 'cpu')
    whole, labels = loader(1, slice(0, 4))
    assert labels is None and whole.dtype == torch.float32
    assert torch.equal(loader(1, slice(2, 4))[0], whole[2:])


@pytest.fixture
def compiler(monkeypatch):
    """A torch.compile whose results fail when called, with 'auto' for CPUs too; returns the networks it was given."""
    def broken(*args, **kwargs):
        raise torch._dynamo.exc.TorchDynamoException('Python.h: No such file')

    def compile(net, dynamic):
        asked.append(net)
        net._compiled_call_impl = broken

    asked = []
    monkeypatch.setattr(torch.nn.Module, 'compile', compile)
    monkeypatch.setattr(loop, 'AUTO_COMPILE', ('cpu',))
    monkeypatch.setattr(compiler_lib.shutil, 'which', lambda name: name)
    return asked


@pytest.mark.parametrize(('mode', 'long', 'compiled'), [
    ('on', False, True), ('auto', False, False), ('auto', True, True), ('off', True, False)])
def test_what_is_compiled(monkeypatch, tmp_path, compiler, mode, long, compiled):
    """The module and the frozen networks that the loss calls."""
    monkeypatch.setattr(compiler_lib, 'COMPILE_FLOPS', dict(cpu=0 if long else 1e30))
    run = tiny_run(tmp_path, compile=mode, frozen=(torch.nn.Identity(),))
    refused = pytest.raises(CompilerFailed, match='torch.compile does not work here')
    with refused if mode == 'on' else contextlib.nullcontext():
        Trainer(run, run.batch_size).compile()
    assert compiler == [run.module, *run.frozen] * compiled


def test_measuring_makes_no_graphs(monkeypatch, tmp_path):
    """Other shapes in a hook run uncompiled; training continues compiled, without new graphs."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(len(inputs))
        return graph.forward

    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, 'compile', lambda net, **options: original(net, backend=backend, **options))

    def measure(context):
        before = len(graphs)
        with torch.no_grad():
            context.module(torch.zeros(7, 3, 8, 8))
        return dict(graphs=before)

    torch._dynamo.reset()
    assert train(tiny_run(tmp_path, ema=None, compile='on', on_tick=measure)).reason == 'finished'
    assert graphs and {line['graphs'] for line in outcome(tmp_path)[1]} == {len(graphs)}


def test_the_average_has_the_layout_of_the_network(tmp_path):
    trainer = Trainer(tiny_run(tmp_path), 20)
    pairs = list(zip(trainer.run.ema.module.parameters(), trainer.module.parameters(), strict=True))
    assert all(average.stride() == parameter.stride() for average, parameter in pairs)
    assert any(not parameter.is_contiguous() for _, parameter in pairs)


def test_a_compiler_that_fails(monkeypatch, compiler, capsys, tmp_path, undisturbed):
    """With 'auto' the run continues without it; the evaluations for that leave no trace."""
    monkeypatch.setattr(compiler_lib, 'COMPILE_FLOPS', dict(cpu=0))
    run = tiny_run(tmp_path / 'run', dropout=0.2, compile='auto', frozen=(torch.nn.Identity(),))

    def count(net, *call):
        net.calls += 1

    run.module.register_forward_hook(count)
    assert train(run).reason == 'finished'
    assert compiler == [run.module, *run.frozen] and torch.equal(run.frozen[0](torch.ones(1)), torch.ones(1))
    assert capsys.readouterr().out.count('torch.compile does not work here (TorchDynamoException)') == 1
    state, lines = outcome(tmp_path / 'run')
    assert state['module'].pop('calls') == state['nimg'] / run.batch_size
    expected, expected_lines = outcome(undisturbed)
    del expected['module']['calls']
    torch.testing.assert_close(state['module'], expected['module'], rtol=0, atol=0)
    assert lines == expected_lines


def test_a_compiled_step_that_does_not_fit_is_no_failure_of_the_compiler(monkeypatch, compiler, capsys, tmp_path):
    def full(*args):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(loop, 'select_compile', lambda *args: True)
    run = tiny_run(tmp_path, compile='auto')
    run.step_loss = full
    with pytest.raises(torch.OutOfMemoryError):
        Trainer(run, run.batch_size).compile()
    assert compiler == [run.module] and 'does not work' not in capsys.readouterr().out


def test_defaults_of_the_optimizer():
    optimizer = adam([torch.nn.Parameter(torch.ones(3))])
    assert optimizer.defaults['betas'] == (0.9, 0.999) and TrainRun.__dataclass_fields__['compile'].default == 'off'
