"""Random numbers of a training step, drawn for the global batch, so that the number of processes changes nothing."""

import torch

from torch_utils.rng import step_generator


class BatchRandom:
    """Draws for a slice of the global batch: every process draws for the whole batch and keeps its own rows.

    Row k of the n-th draw depends only on (seed, step, n), not on the ranks or gradient accumulation. Draws are made on
    `device` by one generator per step: the same on all CPUs, and on GPUs of one kind. The methods are those of
    torch_utils.rng.StackedRandomGenerator.
    """

    def __init__(self, seed: int, step: int, batch_size: int, device: torch.device):
        self.device = torch.device(device)
        self.batch_size = batch_size
        self._generator = step_generator(seed, step, device=self.device)
        self._draws: list[torch.Tensor] = []  # kept for the other slices of this step
        self._rows, self._next = slice(0, batch_size), 0

    def rows(self, rows: slice) -> 'BatchRandom':
        """Start over with the first draw, for these rows of the global batch."""
        self._rows, self._next = rows, 0
        return self

    def _draw(self, draw, size, **kwargs) -> torch.Tensor:
        if size[0] != self._rows.stop - self._rows.start:
            raise ValueError(f'a draw of {size[0]} rows for a slice of {self._rows.stop - self._rows.start}')
        if self._next == len(self._draws):
            shape = [self.batch_size, *size[1:]]
            self._draws.append(draw(shape, generator=self._generator, device=self.device, **kwargs))
        self._next += 1
        return self._draws[self._next - 1][self._rows]

    def randn(self, size, **kwargs) -> torch.Tensor:
        """Standard normal [n, ...]."""
        return self._draw(torch.randn, size, **kwargs)

    def randn_like(self, input: torch.Tensor) -> torch.Tensor:
        """Standard normal of the shape and dtype of `input` [n, ...]."""
        return self.randn(input.shape, dtype=input.dtype)

    def rand(self, size, **kwargs) -> torch.Tensor:
        """Uniform on [0, 1), [n, ...]."""
        return self._draw(torch.rand, size, **kwargs)

    def randint(self, high: int, *, size, **kwargs) -> torch.Tensor:
        """Integers from 0 to high - 1, [n, ...]."""
        return self._draw(lambda shape, **kw: torch.randint(high, shape, **kw), size, **kwargs)
