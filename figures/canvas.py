"""Figures to files: whole or not at all, as PNG, SVG or PDF."""

from pathlib import Path

from matplotlib.figure import Figure

from dnnlib.files import atomic_write

DPI = 100
FORMATS = ('png', 'svg', 'pdf')


def save(figure: Figure, path: Path) -> None:
    """Writes a figure in the format of the file's ending (none: PNG). Raises ValueError for another, OSError."""
    kind = path.suffix.removeprefix('.') or 'png'
    if kind not in FORMATS:
        raise ValueError(f'{path.name}: the ending says {kind}; use png, svg or pdf')
    with atomic_write(path) as file:
        figure.savefig(file, format=kind)
