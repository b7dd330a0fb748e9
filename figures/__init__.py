"""Data to pictures and pages; the only user of matplotlib.

From a notebook: `figures.show(samples)` is a PIL image of all samples.
"""

from .grids import show

__all__ = ['show']
