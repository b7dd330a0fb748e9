"""Random numbers that belong to a sample's seed, or to a training step, never to a batch."""

import functools

import numpy as np
import torch


class StackedRandomGenerator:
    """One generator per sample: row k of every draw depends only on `seeds[k]` and earlier draws of row k.

    Seeds are taken modulo 2**32, as EDM does, and a draw on the CPU equals EDM's for the same seeds.
    """

    def __init__(self, device: torch.device | str, seeds):
        self.device = torch.device(device)
        self.generators = [torch.Generator(self.device).manual_seed(int(seed) % (1 << 32)) for seed in seeds]

    def __len__(self) -> int:
        return len(self.generators)

    def states(self) -> torch.Tensor:
        """The generators' states, uint8 [N, bytes] on the host; see `set_states`."""
        return torch.stack([generator.get_state() for generator in self.generators])

    def set_states(self, states) -> None:
        """Continue from what `states` returned for the same number of generators on the same kind of device."""
        for generator, state in zip(self.generators, torch.as_tensor(states), strict=True):
            generator.set_state(state.clone())  # torch crashes on unaligned memory, such as that of a file

    def _check(self, size) -> None:
        if size[0] != len(self.generators):
            raise ValueError(f'a draw of {size[0]} rows from {len(self.generators)} generators')

    def _stack(self, draw, size, **kwargs) -> torch.Tensor:
        self._check(size)
        kwargs = dict(device=self.device) | kwargs
        return torch.stack([draw(size[1:], generator=generator, **kwargs) for generator in self.generators])

    def randn(self, size, **kwargs) -> torch.Tensor:
        """Standard normal [N, ...]."""
        self._check(size)
        return randn_rows(self.generators, size[1:], **dict(device=self.device) | kwargs)

    def randn_like(self, input: torch.Tensor) -> torch.Tensor:
        """Standard normal of the shape, dtype and device of `input` [N, ...]."""
        return self.randn(input.shape, dtype=input.dtype, device=input.device)

    def rand(self, size, **kwargs) -> torch.Tensor:
        """Uniform on [0, 1), [N, ...]."""
        return self._stack(torch.rand, size, **kwargs)

    def randint(self, high: int, *, size, **kwargs) -> torch.Tensor:
        """Integers from 0 to high - 1, [N, ...]."""
        return self._stack(functools.partial(torch.randint, high), size, **kwargs)


def randn_rows(generators, size, **kwargs) -> torch.Tensor:
    """Standard normal [N, *size], row k as `torch.randn` draws it from generators[k]."""
    rows = torch.empty([len(generators), *size], **kwargs)
    for row, generator in zip(rows.unbind(), generators):  # for small rows a third of the time of a stack
        row.normal_(generator=generator)
    return rows


def step_seed(*key: int) -> int:
    """A well-mixed 63-bit seed from integers such as (run seed, step)."""
    words = np.random.SeedSequence([int(k) for k in key]).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def step_generator(*key: int, device: torch.device | str = 'cpu') -> torch.Generator:
    """A generator for one training step, fixed by `key` = (run seed, step, ...), independent of earlier steps."""
    return torch.Generator(device).manual_seed(step_seed(*key))
