"""Data to pictures and pages; the only user of matplotlib.

From a notebook: `figures.show(samples)` is a PIL image of all samples.
"""

from .notebook import show

__all__ = ['show']
