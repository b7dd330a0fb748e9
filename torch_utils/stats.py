"""Training statistics: sums that stay on the device, and a file of JSON lines."""

import json
import time
from pathlib import Path

import torch

from . import distributed as dist


class Sums:
    """Sums and counts by name, on the device until they are asked for."""

    def __init__(self, device):
        self.device = device
        self.values: dict[str, torch.Tensor] = {}  # [2] float64: sum, count

    def add(self, stats: dict) -> None:
        """Add tensors (the sum and number of their elements), or pairs (sum, count) of scalar tensors."""
        for name, value in stats.items():
            total, count = value if isinstance(value, tuple) else (value.sum(), value.numel())
            pair = torch.zeros(2, dtype=torch.float64, device=self.device)
            pair[0] = total.detach()
            pair[1] = count
            self.values[name] = self.values[name] + pair if name in self.values else pair

    def gather(self) -> dict[str, list[float]]:
        """[sum, count] by name over all ranks, with one read from the device."""
        if not self.values:
            return {}
        names = sorted(self.values)
        table = torch.stack([self.values[name] for name in names])
        return dict(zip(names, dist.all_reduce_(table).tolist()))


class JsonLines:
    """Appends dictionaries to a file, one per line, with a time stamp."""

    def __init__(self, path):
        self.path = Path(path)

    def write(self, **fields) -> None:
        with open(self.path, 'a') as file:
            file.write(json.dumps(fields | dict(timestamp=time.time())) + '\n')

    def read(self) -> list[dict]:
        """All complete lines; a last line cut short by a kill is left out."""
        if not self.path.is_file():
            return []
        lines = []
        for line in self.path.read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return lines
