"""Training statistics: running means that stay on the device, and a file of JSON lines."""

import json
import time
from pathlib import Path

import torch


class Means:
    """Running means by name; values stay on their device until `pop` reads them all at once."""

    def __init__(self):
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, **values) -> None:
        """Add tensors (their mean over all elements) or numbers."""
        for name, value in values.items():
            value = torch.as_tensor(value).detach().to(torch.float64).mean() if not torch.is_tensor(value) \
                else value.detach().to(torch.float32).mean()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def pop(self) -> dict[str, float]:
        """The means since the last call; starts anew."""
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


class JsonLines:
    """Append dictionaries to a file, a line each, with a time stamp."""

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
