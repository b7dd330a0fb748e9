"""A folder of samples that are outputs of chains; the states that continue the chains lie beside them."""

from pathlib import Path

import numpy as np

from dnnlib.files import DAMAGED, atomic_write

from .folder import SampleFolder, Shard, read_costs

STATE = 'chains_{:08d}.npz'  # state of the group of chains that begins with this one
PREFIX = 'state_'  # of those `costs` that hold the chains' state after a shard


class ChainFolder(SampleFolder):
    """Sample k is output k div `chains` of chain k mod `chains`; a shard is an output of `batch` chains.

    Such a group of chains belongs to one rank for the whole run. Its state is written after each of its shards, so that
    a run that was killed repeats at most one output. Raises ValueError if batch does not divide chains, or if
    there are more chains than seeds, or if the seeds are not 0 to n - 1.
    """

    def __init__(self, path, seeds, chains: int, batch: int, options: dict, save_type: str = 'npz'):
        if chains % batch:
            raise ValueError(f'{chains} chains cannot be run in groups of {batch}')
        if list(seeds[:1]) != [0] or seeds[-1] != len(seeds) - 1 or chains > len(seeds):
            raise ValueError(f'{chains} chains give samples from 0 on, and at least {chains} of them')
        super().__init__(path, seeds, batch, options | dict(chains=chains), save_type)
        self.groups = chains // batch
        self.chains, self.batch = chains, batch

    def expected(self) -> set[str]:
        return super().expected() | {STATE.format(first) for first in range(0, self.chains, self.batch)}

    def shards_of(self, rank: int, ranks: int) -> list[Shard]:
        return [shard for shard in self.shards if shard.index % self.groups % ranks == rank]

    def write(self, shard: Shard, samples, labels, costs) -> None:
        state = {name.removeprefix(PREFIX): costs[name] for name in costs if name.startswith(PREFIX)}
        super().write(shard, samples, labels, {name: costs[name] for name in costs if not name.startswith(PREFIX)})
        first = shard.seeds[0] % self.chains
        # Not if the last output is incomplete, since a longer run continues before it, nor if only an old one was lost.
        if len(samples) == self.batch and self._rounds(first) < state['rounds'][0]:
            with atomic_write(self.path / STATE.format(first)) as file:
                np.savez(file, **state)

    def _rounds(self, first: int) -> int:
        """How far the saved state of a group is; -1 if there is none."""
        found = self.find_state(first)
        return -1 if found is None else int(found['rounds'][0])

    def find_state(self, first: int) -> dict[str, np.ndarray] | None:
        """The state of the group of chains that begins with `first`, if it exists and is complete."""
        try:
            with np.load(self.path / STATE.format(first), allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (*DAMAGED, ValueError):
            return None


def read_features(outdir) -> np.ndarray:
    """Features [n, F] of the samples in a folder, in their order, for the diagnostics of chains."""
    return np.concatenate([costs['chain_features'] for costs in read_costs(Path(outdir))])
