"""A training run: its description, the argument of its hooks, and its result."""

import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from training.ema import Ema

STATE_FILE = 'training-state.pt'
STATS_FILE = 'stats.jsonl'


def adam(parameters, betas=(0.9, 0.999), weight_decay=0.0) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba, 2015) in its fused form; the loop sets the learning rate."""
    return torch.optim.Adam(parameters, lr=0.0, betas=betas, weight_decay=weight_decay, fused=True)


@dataclasses.dataclass
class TrainRun:
    """All that `train` needs to know about one kind of model.

    Attributes:
        outdir: folder of the run; the same run started there again resumes.
        config: JSON-able description of the run, kept as options.json; another config in the folder is refused.
        module: the network, on its device; its parameters that require gradients are trained.
        batches: `batches(step, rows)` -> tensors of these rows (a slice) of the step's global batch.
        step_loss: `step_loss(*batches(...), rng)` -> (loss [n], stats); draws all randomness from `rng`
            (BatchRandom). stats: name -> tensor (its mean is reported), or name -> (sum, count) as scalar tensors.
        batch_size: images per step over all processes.
        total_nimg: images to train on.
        lr: number of images -> learning rate.
        optimizer: parameters -> optimizer.
        seed: seed of the noise and dropout of every step; `batches` decides the order of the images.
        batch_gpu: images per forward pass; smaller than a process's share means gradient accumulation.
        ema: average to keep and to pass to the hooks; None passes the module itself.
        max_grad_norm: clip the gradient of the whole batch to this norm.
        tick_nimg: images between lines of stats.jsonl and calls of `on_tick`.
        snap_nimg: images between calls of `on_snapshot`.
        on_tick: `on_tick(context)` on every rank; see TickContext.
        on_snapshot: `on_snapshot(module, nimg)` on rank 0; writes the network files.
        draw: `draw(lines)` on rank 0, with the lines of stats.jsonl, each time the state has been written; makes a
            picture. If that fails, the run says so and continues.
        state_sec: seconds between writes of the training state.
        max_minutes: save and stop after this time, counted from `started` (time.monotonic()).
        compile: torch.compile: 'on', 'off', or 'auto' (on CUDA, if it works there and the run is long enough).
        frozen: networks beside the module that `step_loss` calls, to be compiled with it.
        owns: `owns(config, name)` -> whether a run of such a config writes a file of this name, a network or picture;
            such files of unknown origin are refused.
        overwrite: replace an earlier run in `outdir`: what it owns, its state and statistics.
        desc: title of the progress bar.
    """

    outdir: Path
    config: dict[str, Any]
    module: torch.nn.Module
    batches: Callable[[int, slice], tuple]
    step_loss: Callable[..., tuple[torch.Tensor, dict]]
    batch_size: int
    total_nimg: int
    lr: Callable[[int], float]
    optimizer: Callable[..., torch.optim.Optimizer] = adam
    seed: int = 0
    batch_gpu: int | None = None
    ema: Ema | None = None
    max_grad_norm: float | None = None
    tick_nimg: int = 10_000
    snap_nimg: int | None = None
    on_tick: Callable[['TickContext'], dict | None] | None = None
    on_snapshot: Callable[[torch.nn.Module, int], None] | None = None
    draw: Callable[[list[dict]], None] | None = None
    state_sec: float = 300.0
    max_minutes: float | None = None
    started: float = dataclasses.field(default_factory=time.monotonic)
    compile: str = 'off'
    frozen: tuple[torch.nn.Module, ...] = ()
    owns: Callable[[dict, str], bool] = lambda config, name: re.fullmatch(r'network-.*\.safetensors', name) is not None
    overwrite: bool = False
    desc: str = 'training'


@dataclasses.dataclass
class TickContext:
    """Argument of an `on_tick` hook, whose result (name -> number) is added to the line of stats.jsonl.

    `memory` is a dict of plain values that is saved and resumed with the run. After a kill a hook may be called again
    for the same tick, with the memory that it had the first time. `stop()`, called on every rank or on none, saves and
    ends the run after this tick.
    """

    module: torch.nn.Module  # the average if there is one, in eval mode
    nimg: int
    batch_gpu: int  # images per forward pass of this process
    record: dict[str, Any]
    memory: dict[str, Any]
    _stop: Callable[[], None]

    def stop(self) -> None:
        self._stop()


@dataclasses.dataclass
class TrainResult:
    """How a run ended: 'finished', 'stopped' (by a hook), 'time' (max_minutes) or 'signal', and its hooks' memory."""

    nimg: int
    reason: str
    memory: dict[str, Any]

    @property
    def complete(self) -> bool:
        return self.reason in ('finished', 'stopped')


class NonFiniteLoss(ArithmeticError):
    """The loss has become NaN or infinite; no network is saved after that."""
