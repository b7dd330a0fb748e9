"""A dictionary whose keys are also attributes."""

from typing import Any


class EasyDict(dict):
    """`d.key` reads and writes `d['key']`; a missing key raises AttributeError."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self[name]
