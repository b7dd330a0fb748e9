"""The slots of diffusion rejection sampling: one sample each, at its own level, refilled when it is finished."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from torch_utils.rng import randn_rows
from torch_utils.transfer import upload

from . import diffrs_rules as rules
from .denoiser import At, Denoiser, per_row
from .diffrs_rules import Rule, Thresholds
from .levels import Levels
from .samples import Progress, Samples, draw_inputs

DECISIONS = 0xD1FF  # separates a seed's stream of uniform draws from its stream of noise
LOOKAHEAD = 64  # batches that may start before the oldest sample under way has ended
HOPELESS = 100_000  # rejections of one sample after which it is given up

FREE, TEST, PREDICT, CORRECT = range(4)  # what a slot waits for


class HopelessSample(ArithmeticError):
    """A sample was rejected too often; the message names its seed."""


@dataclass(frozen=True)
class Rejection:
    """How states are tested and where rejected ones go, see `diffrs_sampler`."""

    rule: Rule
    thresholds: Thresholds
    last_level: int  # the last level that is tested
    backsteps: int = 1
    min_backsteps: int = 0
    max_iter: float = float('inf')


class SlotMachine:
    """Twice `batch_size` slots, each with one sample; every call of a network gets a full batch of them.

    Whole numbers (level, counts, what a slot waits for) and uniform draws live on the host, states and log-ratios
    on the device. A call of the score network needs no answer from the device; a test needs one mask.
    A slot's draws come from its own seed and its events follow its own decisions, so the order in which slots are
    served changes only the rounding of the networks.
    """

    def __init__(self, net, log_ratio, seeds, class_labels, *, levels: Levels, rejection: Rejection, guidance,
                 batch_size: int, device):
        slots = 2 * batch_size
        self.denoise = Denoiser(net, slots)
        if guidance is not None:
            self.denoise = guidance(self.denoise)
        self.net, self.log_ratio, self.rejection, self.num_steps = net, log_ratio, rejection, levels.num_steps
        self.t_steps, self.t_hat, self.noise = levels.sigmas.numpy(), levels.raised.numpy(), levels.noise.numpy()
        self.batch_size, self.device = batch_size, torch.device(device)
        self.class_labels = None if class_labels is None else torch.as_tensor(class_labels).to(device, torch.float32)
        self.waiting = enumerate(seeds)  # (position, seed)
        self.unfinished: dict[int, int] = {}  # position -> slot, in the order of positions
        self.finished: dict[int, Samples] = {}  # position -> sample, until its turn comes

        shape = [slots, net.img_channels, net.img_resolution, net.img_resolution]
        self.x, self.x_hat, self.d_cur = (torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(3))
        self.log_ratio_prev = torch.zeros([slots], dtype=torch.float64, device=device)
        self.labels = torch.zeros([slots, net.label_dim], device=device) if net.label_dim else None
        self.noise_streams: list[torch.Generator | None] = [None] * slots
        self.decision_streams: list[np.random.Generator | None] = [None] * slots
        self.waits_for = np.full(slots, FREE)
        self.level, self.nfe = np.zeros([2, slots], dtype=np.int64)  # nfe: since the last restart
        self.position, self.seed = np.zeros([2, slots], dtype=np.int64)
        self.after_rewind = np.zeros(slots, dtype=bool)  # has not moved since its rejection (or is at the prior)
        self.uniform = np.zeros(slots)  # the draw of the next test
        self.costs = self.denoise.costs
        self.costs['cap_hits'] = np.zeros(slots, dtype=np.int64)
        self.costs['tests'], self.costs['rejections'] = np.zeros([2, slots, self.num_steps + 1], dtype=np.int64)

    @torch.no_grad()
    def results(self, progress: Progress) -> Iterator[Samples]:
        """Run; yields samples in the order of the seeds, as soon as they are finished."""
        due = 0
        self.refill()
        while self.unfinished:
            self.serve()
            progress(0)
            while due in self.finished:
                ready = itertools.takewhile(self.finished.__contains__, range(due, due + self.batch_size))
                samples = [self.finished.pop(position) for position in list(ready)]
                yield Samples.joined(samples)
                due += len(samples)
            self.refill()

    def serve(self) -> None:
        """Serve the oldest samples: those waiting for the score network if they fill its batch, else for a test."""
        slots = np.fromiter(self.unfinished.values(), dtype=np.int64)
        waits = self.waits_for[slots]
        tests, steps = slots[waits == TEST], slots[waits != TEST]
        if len(tests) and (len(tests) >= self.batch_size or len(steps) < self.batch_size):
            self.test(tests[:self.batch_size])
        else:
            self.evaluate(steps[:self.batch_size])

    # Start and end of a sample.

    def refill(self) -> None:
        """Give every free slot the next seed."""
        begun = []
        for slot in np.flatnonzero(self.waits_for == FREE).tolist():
            if len(self.finished) >= LOOKAHEAD * self.batch_size:
                break
            position, seed = next(self.waiting, (None, None))
            if seed is None:
                break
            begun.append(slot)
            self.unfinished[position] = slot
            self.position[slot], self.seed[slot] = position, seed
        if begun:
            self.begin(np.array(begun))

    def begin(self, rows: np.ndarray) -> None:
        """Draw the prior states (and labels) of the slots `rows`, as `draw_inputs` does for every sampler."""
        rnd, latents, labels = draw_inputs(self.net, self.seed[rows].tolist(), self.device)
        index, = self.upload(rows)
        self.x[index] = latents.to(torch.float64) * self.t_steps[0]
        self.log_ratio_prev[index] = 0.0  # not the last sample's, in case the first levels are not tested
        if self.labels is not None:
            if self.class_labels is not None:
                place, = self.upload(self.position[rows] if len(self.class_labels) > 1 else np.zeros(len(rows)))
                labels = self.class_labels[place]
            self.labels[index] = labels
        for row, stream in zip(rows.tolist(), rnd.generators):
            self.noise_streams[row] = stream
            self.decision_streams[row] = np.random.default_rng([DECISIONS, int(self.seed[row])])
        for counts in (self.nfe, *self.costs.values()):
            counts[rows] = 0
        self.begin_path(rows)

    def begin_path(self, rows: np.ndarray) -> None:
        """Set slots with new states from the prior to level 0."""
        self.level[rows] = 0
        if self.rejection.rule.one_draw:
            self.draw_decisions(rows)
        self.settle(rows)

    def finish(self, rows: np.ndarray) -> None:
        """Take finished samples out of their slots."""
        for row in rows.tolist():
            position, one = int(self.position[row]), slice(row, row + 1)
            self.finished[position] = Samples(
                self.x[one].clone(), None if self.labels is None else self.labels[one].clone(),
                {name: counts[one].copy() for name, counts in self.costs.items()})
            del self.unfinished[position]
        self.waits_for[rows] = FREE

    # Draws, from the sample's own streams.

    def draw_decisions(self, rows: np.ndarray) -> None:
        """A new uniform draw for each slot."""
        self.uniform[rows] = [self.decision_streams[row].random() for row in rows.tolist()]

    def normal(self, rows: np.ndarray) -> torch.Tensor:
        """Standard normal noise [n, C, H, W] for the slots `rows`."""
        return randn_rows([self.noise_streams[row] for row in rows.tolist()], self.x.shape[1:], dtype=torch.float64,
                          device=self.device)

    def upload(self, rows: np.ndarray, *values: np.ndarray) -> tuple[torch.Tensor, ...]:
        """Slots as an index and numbers [n] for them, float64, on the device, in one transfer without waiting."""
        packed = upload(torch.from_numpy(np.array([rows, *values], dtype=np.float64)), self.device)
        return packed[0].to(torch.int64), *packed[1:]

    # Events.

    def evaluate(self, rows: np.ndarray) -> None:
        """Call the score network for the next half step of each slot."""
        level, second = self.level[rows], self.waits_for[rows] == CORRECT
        t_hat, t_next = self.t_hat[level], self.t_steps[level + 1]
        sigmas = np.where(second, t_next, t_hat)
        index, sigma, h, on_second = self.upload(rows, sigmas, t_next - t_hat, second)
        self.add_churn(rows[~second])

        x, labels = self.x[index], self.labels_of(index)
        denoised = self.denoise(x, sigma, labels, at=At(torch.from_numpy(sigmas), second, rows=rows))
        on_second = on_second > 0
        x_hat = self.x_hat[index] = torch.where(per_row(on_second, x), self.x_hat[index], x)
        self.x[index], self.d_cur[index] = rules.propose(x, x_hat, self.d_cur[index], sigma, h, denoised, on_second)

        self.nfe[rows] += 1
        first = ~second & (level < self.num_steps - 1)  # no second half in the step to zero noise
        self.waits_for[rows[first]] = CORRECT
        self.arrive(rows[~first])

    def add_churn(self, rows: np.ndarray) -> None:
        """Increase the noise of slots that begin a step, where the schedule says so."""
        std = self.noise[self.level[rows]]
        rows, std = rows[std > 0], std[std > 0]
        if len(rows):
            index, std = self.upload(rows, std)
            self.x[index] += per_row(std, self.x) * self.normal(rows)

    def arrive(self, rows: np.ndarray) -> None:
        """A step has ended."""
        self.level[rows] += 1
        self.after_rewind[rows] = False
        tested = (self.level[rows] > self.rejection.min_backsteps) & (self.level[rows] <= self.rejection.last_level)
        self.waits_for[rows[tested]] = TEST
        self.proceed(rows[~tested])

    def settle(self, rows: np.ndarray) -> None:
        """States have reached their level by noise, not by a step."""
        level = self.level[rows]
        tested = np.where(level == 0, self.rejection.min_backsteps == 0, level > self.rejection.min_backsteps)
        self.after_rewind[rows] = True
        self.waits_for[rows] = np.where(tested, TEST, PREDICT)

    def test(self, rows: np.ndarray) -> None:
        """Accept or reject the state of each slot by its log-ratio."""
        if not self.rejection.rule.one_draw:
            self.draw_decisions(rows)
        level, rewound = self.level[rows], self.after_rewind[rows]
        thresholds = self.rejection.thresholds
        limit = np.where(rewound, thresholds.after_rewind[level], thresholds.after_step[level])
        transition = ~rewound & (not self.rejection.rule.one_draw)
        index, sigma, limit, u, transition = self.upload(rows, self.t_steps[level], limit, self.uniform[rows],
                                                         transition)

        log_ratio = self.log_ratio(self.x[index], sigma, self.labels_of(index)).to(torch.float64)
        before = self.log_ratio_prev[index]
        rejected = rules.rejects(log_ratio, torch.where(transition > 0, before, 0.0), limit, u)
        self.log_ratio_prev[index] = torch.where(rejected, before, log_ratio)
        rejected = rejected.cpu().numpy()  # the one copy that the host waits for

        self.costs.count('discriminator_calls', rows, getattr(self.log_ratio, 'discriminator_calls', 1))
        self.costs['tests'][rows, level] += 1
        self.costs['rejections'][rows, level] += rejected
        self.proceed(rows[~rejected])
        if rejected.any():
            self.reject(rows[rejected])

    def reject(self, rows: np.ndarray) -> None:
        """Take rejected states back: by added noise, or to a new draw of the prior."""
        hopeless = rows[self.costs['rejections'][rows].sum(1) > HOPELESS]
        if len(hopeless):
            raise HopelessSample(f'the sample of seed {self.seed[hopeless[0]]} was rejected {HOPELESS} times; lower '
                                 f'the percentile, or check that thresholds and discriminator belong together')
        from_prior = (self.level[rows] == 0) | (not self.rejection.rule.rewinds)
        self.restart(rows[from_prior])
        back = rows[~from_prior]
        if len(back):
            level = self.level[back]
            target = rules.rewound_level(level, self.rejection.backsteps)
            index, sigma, sigma_back = self.upload(back, self.t_steps[level], self.t_steps[target])
            self.x[index] = rules.rewind(self.x[index], sigma, sigma_back, self.normal(back))
            self.level[back] = target
            self.settle(back)
        # Rewound states above level 0 are checked against the cap once they are accepted, all others now.
        self.keep_cap(rows[(self.waits_for[rows] != TEST) | (self.level[rows] == 0)])

    def restart(self, rows: np.ndarray) -> None:
        """Draw new states from the prior."""
        if len(rows):
            index, = self.upload(rows)
            self.x[index] = self.t_steps[0] * self.normal(rows)
            self.log_ratio_prev[index] = 0.0
            self.begin_path(rows)

    def keep_cap(self, rows: np.ndarray) -> np.ndarray:
        """Restart the samples that cannot end within `max_iter`; returns the rows of those that can."""
        if self.rejection.max_iter == float('inf'):
            return rows
        over = rules.exceeds_cap(self.nfe[rows], self.level[rows], self.num_steps, self.rejection.max_iter)
        self.costs['cap_hits'][rows[over]] += 1
        self.nfe[rows[over]] = 0
        self.restart(rows[over])
        return rows[~over]

    def proceed(self, rows: np.ndarray) -> None:
        """Leave a level whose test, if any, has been passed."""
        rows = self.keep_cap(rows)
        ended = self.level[rows] == self.num_steps
        self.waits_for[rows[~ended]] = PREDICT
        if ended.any():
            self.finish(rows[ended])

    def labels_of(self, index: torch.Tensor) -> torch.Tensor | None:
        return None if self.labels is None else self.labels[index]
