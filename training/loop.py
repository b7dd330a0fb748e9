"""The training loop, the same for every kind of model: resumable, reproducible, on one process or many."""

import contextlib
import itertools
import json
import math
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch

from dnnlib.files import atomic_write, only_a_picture
from dnnlib.run_folder import RunFolder
from torch_utils import distributed as dist
from torch_utils.checkpoint import load_state, save_state
from torch_utils.compiler import prepare_compiler, report_failure, select_compile
from torch_utils.device import is_out_of_memory
from torch_utils.progress import progress
from torch_utils.rng import step_seed
from torch_utils.stats import JsonLines, Sums
from training.randomness import BatchRandom
from training.run import STATE_FILE, STATS_FILE, NonFiniteLoss, TickContext, TrainResult, TrainRun

AUTO_COMPILE = ('cuda',)  # on a CPU compiling takes minutes and saves 10 to 20%, as convolutions take most of the time


def train(run: TrainRun) -> TrainResult:
    """Run or resume `run` until its end, its time budget, or SIGTERM or Ctrl-C; the state is saved in each case.

    Raises ValueError if the batch cannot be divided, NonFiniteLoss, and ValueError or OSError as `RunFolder.claim`
    does; errors of the folder are raised on rank 0, and the other ranks exit silently.
    """
    share = share_of_batch(run.batch_size)
    folder = RunFolder(run.outdir, run.config,
                       lambda config, name: name in (STATE_FILE, STATS_FILE) or run.owns(config, name))
    with contextlib.ExitStack() as stack:
        dist.on_rank0(lambda: stack.enter_context(folder.claim(run.overwrite)))
        trainer = Trainer(run, share)
        trainer.resume()
        with _Signals() as signals:
            reason = trainer.loop(signals)
        dist.barrier()
    return TrainResult(trainer.nimg, reason, trainer.memory)


def share_of_batch(batch_size: int) -> int:
    """Images per process. Raises ValueError if the batch cannot be divided."""
    share, remainder = divmod(batch_size, dist.get_world_size())
    if remainder or not share:
        raise ValueError(f'{batch_size} images cannot be divided among {dist.get_world_size()} processes; '
                         f'use a multiple of {dist.get_world_size()}')
    return share


class _Signals:
    """Remembers SIGTERM and SIGINT instead of ending the process; a second SIGINT acts at once."""

    def __init__(self):
        self.caught = False
        self._previous = {}

    def _catch(self, number, frame):
        if self.caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught = True

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.signal(n, self._catch) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exc):
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _aligned(count: int) -> int:
    """`count` float32 numbers rounded up to a multiple of 16 bytes; fused optimizers are slow on unaligned tensors."""
    return -(-count // 4) * 4


class Trainer:
    """One process's part in a run: its share of every batch, one `train_step` after the other."""

    def __init__(self, run: TrainRun, share: int):
        self.run = run
        self.module = run.module.train().to(memory_format=torch.channels_last)
        if run.ema is not None:  # in the same layout; otherwise its update takes a kernel per parameter
            run.ema.module.to(memory_format=torch.channels_last)
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.optimizer = run.optimizer(self.parameters)
        self.gradient = self._flat_gradient()
        self.share, first = share, dist.get_rank() * share
        self.batch_gpu = min(run.batch_gpu or share, share)
        self.slices = [slice(begin, min(begin + self.batch_gpu, first + share))
                       for begin in range(first, first + share, self.batch_gpu)]
        self.sums = Sums(self.device)
        self.memory: dict[str, Any] = {}
        self.nimg = self.step = self.next_poll = 0
        self.elapsed_before = 0.0
        self.stop_asked = False
        self.start = self.last_save = time.monotonic()
        self.outdir = Path(run.outdir)
        self.stats_file = JsonLines(self.outdir / STATS_FILE)

    def _flat_gradient(self):
        """One buffer for all gradients, each in its parameter's layout, to be zeroed, summed and measured at once.

        As with DistributedDataParallel there is one sum over all ranks per step, but gradient accumulation and compiled
        modules need no special case. DDP would overlap that sum with the backward pass; our
        networks' gradients (up to 220 MB) cross NVLink in a millisecond.
        """
        ends = list(itertools.accumulate(_aligned(p.numel()) for p in self.parameters))
        flat = torch.zeros(ends[-1], device=self.device)  # the padding between gradients stays 0
        for p, offset in zip(self.parameters, [0, *ends]):
            p.grad = torch.as_strided(flat, p.shape, p.stride(), offset)
        return flat

    #--------------------------------------------------------------------
    # One step.

    def forward_backward(self):
        rng = BatchRandom(self.run.seed, self.step, self.run.batch_size, self.device)
        for rows in self.slices:
            # For random numbers inside networks (dropout); these depend on how the batch is divided.
            torch.manual_seed(step_seed(self.run.seed, self.step, rows.start, 1))
            loss, stats = self.run.step_loss(*self.run.batches(self.step, rows), rng.rows(rows))
            if loss.shape != (rows.stop - rows.start,):
                raise TypeError(f'step_loss gave {list(loss.shape)} for a batch of {rows.stop - rows.start}')
            (loss.sum() / self.run.batch_size).backward()
            self.sums.add({'loss': loss} | stats)

    def train_step(self):
        self.gradient.zero_()
        self.forward_backward()
        dist.all_reduce_(self.gradient)
        # As in EDM, an overflow in one backward pass does not spoil the weights. A loss of NaN still ends the run.
        torch.nan_to_num(self.gradient, nan=0, posinf=1e5, neginf=-1e5, out=self.gradient)
        if self.run.max_grad_norm is not None:
            norm = self.gradient.norm()
            self.gradient.mul_((self.run.max_grad_norm / (norm + 1e-6)).clamp(max=1))
        for group in self.optimizer.param_groups:
            group['lr'] = self.run.lr(self.nimg)
        self.optimizer.step()
        if self.run.ema is not None:
            self.run.ema.update(self.module, self.nimg, self.run.batch_size)
        self.nimg += self.run.batch_size
        self.step += 1

    def compile(self):
        """Compile the networks if asked to; with 'auto' the run continues uncompiled after a failure.

        The evaluations that this takes leave no trace in the run.
        """
        run, networks = self.run, (self.module, *self.run.frozen)
        if run.compile == 'off' or run.compile == 'auto' and self.device.type not in AUTO_COMPILE:
            return
        sums, buffers = dict(self.sums.values), [buffer.clone() for buffer in self.module.buffers()]
        if self._compiling_pays():
            prepare_compiler()
            for network in networks:
                network.compile(dynamic=False)
            try:
                self.forward_backward()
            except Exception as error:  # compilers fail in many ways; the uncompiled network always works
                if is_out_of_memory(error):  # not the compiler's fault; the uncompiled network needs no less
                    raise
                report_failure(run.compile, error)
                for network in networks:
                    network._compiled_call_impl = None
        self.sums.values = sums
        for buffer, value in zip(self.module.buffers(), buffers, strict=True):
            buffer.copy_(value)

    def _compiling_pays(self) -> bool:
        """The answer of `select_compile`, the same on all ranks."""
        try:
            pays = select_compile(self.run.compile, self.device, self.forward_backward,
                                  self.run.total_nimg // self.run.batch_size)
        except torch.OutOfMemoryError:  # a compiled step may fit
            pays = True
        return dist.broadcast_object(pays)

    #--------------------------------------------------------------------
    # The loop, and what happens between steps.

    def loop(self, signals) -> str:
        run = self.run
        if self.nimg >= run.total_nimg or self.memory.get('stopped'):
            dist.print0(f'{self.outdir}: complete, nothing to do')
            self.draw()  # a run that was killed at its end may lack its last picture
            return 'finished'
        self.compile()
        self.tick_start, self.tick_start_nimg = time.monotonic(), self.nimg
        self.last_poll, self.last_poll_step = self.tick_start, self.step
        with progress(total=run.total_nimg, initial=self.nimg, desc=run.desc) as self.bar:
            while True:
                self.train_step()
                self.bar.update(min(run.batch_size, run.total_nimg - self.bar.n))
                done = self.nimg >= run.total_nimg
                if done or self._crossed(run.tick_nimg):
                    self.tick()
                done = done or self.stop_asked
                reason, save = self.poll(signals)
                if done or reason or self._crossed(run.snap_nimg):
                    self._checked_sums()  # before a network of NaN replaces a good one
                    self.snapshot()
                if done or reason or save:
                    self.memory['stopped'] = self.stop_asked
                    self.save()
                    self.draw()
                if done or reason:
                    return reason if not done else 'stopped' if self.stop_asked else 'finished'

    def _crossed(self, interval):
        return interval is not None and self.nimg // interval > (self.nimg - self.run.batch_size) // interval

    def network(self):
        return self.module if self.run.ema is None else self.run.ema.module

    def poll(self, signals) -> tuple[str, bool]:
        """Agree among all ranks whether to stop ('signal', 'time' or '') and whether to save."""
        if self.step < self.next_poll:
            return '', False
        now = time.monotonic()
        votes = torch.zeros(4, dtype=torch.float64)
        votes[0] = signals.caught or dist.is_orphaned()
        if dist.get_rank() == 0:
            votes[1] = self.run.max_minutes is not None and now - self.run.started > self.run.max_minutes * 60
            votes[2] = now - self.last_save > self.run.state_sec
            rate = (self.step - self.last_poll_step) / max(now - self.last_poll, 1e-3)  # steps per second
            votes[3] = min(max(2 * rate, 1), 64)  # next time in about two seconds
        self.last_poll, self.last_poll_step = now, self.step
        dist.all_reduce_(votes)
        self.next_poll = self.step + (int(votes[3]) if dist.get_world_size() > 1 else 1)
        return 'signal' if votes[0] else 'time' if votes[1] else '', bool(votes[2])

    def average_statistics(self):
        """Make the running statistics of batch norm their mean over all ranks, each of which sees its own images.

        They are linear in the images seen, so the time of the call changes only rounding.
        """
        if dist.get_world_size() == 1:
            return
        for network in [self.module] if self.run.ema is None else [self.module, self.run.ema.module]:
            for layer in network.modules():
                if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) and layer.track_running_stats:
                    for buffer in (layer.running_mean, layer.running_var):
                        dist.all_reduce_(buffer).div_(dist.get_world_size())

    def tick(self):
        self.average_statistics()
        means = {name: total / max(count, 1e-9) for name, (total, count) in self._checked_sums().items()}
        self.sums.values.clear()
        now = time.monotonic()
        record = dict(nimg=self.nimg, step=self.step, **means, lr=self.run.lr(self.nimg - self.run.batch_size),
                      elapsed_sec=round(self.elapsed_before + now - self.start, 2),
                      img_per_sec=round((self.nimg - self.tick_start_nimg) / max(now - self.tick_start, 1e-9), 2))
        if self.run.on_tick is not None:
            context = TickContext(self.network(), self.nimg, self.batch_gpu, record, self.memory, self._stop)
            training = context.module.training
            context.module.eval()
            with torch.compiler.set_stance('eager_on_recompile'):  # no graphs for other shapes, without gradients
                record |= self.run.on_tick(context) or {}
            context.module.train(training)
        if dist.get_rank() == 0:
            self.stats_file.write(**record)
            shown = {k: v for k, v in record.items() if k not in ('nimg', 'step', 'elapsed_sec')}
            self.bar.write(f'{self.nimg / 1000:9.3f} kimg  ' + '  '.join(f'{k} {v:.5g}' for k, v in shown.items()
                                                                    if isinstance(v, (int, float))))
        self.tick_start, self.tick_start_nimg = time.monotonic(), self.nimg

    def _stop(self):
        self.stop_asked = True

    def _checked_sums(self):
        sums = self.sums.gather()
        if 'loss' in sums and not math.isfinite(sums['loss'][0]):
            raise NonFiniteLoss(f'the loss is not a finite number before {self.nimg / 1000:g} kimg; lower the rate, '
                                f'or use --precision=fp32 (the last saved state is unharmed)')
        return sums

    def snapshot(self):
        self.average_statistics()
        if self.run.on_snapshot is not None and dist.get_rank() == 0:
            module = self.network()
            training = module.training
            self.run.on_snapshot(module.eval(), self.nimg)
            module.train(training)

    def save(self):
        self.average_statistics()
        sums = self._checked_sums()
        if dist.get_rank() == 0:
            save_state(self.outdir / STATE_FILE, dict(
                nimg=self.nimg, step=self.step, elapsed_sec=self.elapsed_before + time.monotonic() - self.start,
                module=self.module.state_dict(), ema=self.run.ema and self.run.ema.module.state_dict(),
                optimizer=self.optimizer.state_dict(), sums=sums, memory=self.memory))
        self.last_save = time.monotonic()

    def draw(self):
        """Draw the run's picture; a failure is only reported, since training does not depend on it."""
        if self.run.draw is None or dist.get_rank() != 0:
            return
        with only_a_picture(self.outdir):
            self.run.draw(self.stats_file.read())

    def resume(self):
        """Continue from the saved state, if there is one; statistics written after it was saved are dropped."""
        path = self.outdir / STATE_FILE
        if not dist.broadcast_object(path.is_file()):
            self.stats_file.path.unlink(missing_ok=True)
            return
        state = load_state(path)
        self.nimg, self.step, self.elapsed_before = state['nimg'], state['step'], state['elapsed_sec']
        self.module.load_state_dict(state['module'])
        if self.run.ema is not None:
            self.run.ema.module.load_state_dict(state['ema'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.memory.update(state['memory'])
        if dist.get_rank() == 0:  # sums over all ranks, kept by one of them
            self.sums.values = {name: torch.tensor(pair, dtype=torch.float64, device=self.device)
                                for name, pair in state['sums'].items()}
            _truncate_stats(self.stats_file, self.nimg)
            print(f'resuming {self.outdir} at {self.nimg / 1000:g} kimg', flush=True)


def _truncate_stats(stats_file, nimg):
    lines = [line for line in stats_file.read() if line.get('nimg', 0) <= nimg]
    with atomic_write(stats_file.path) as file:
        file.write(''.join(json.dumps(line) + '\n' for line in lines).encode())
