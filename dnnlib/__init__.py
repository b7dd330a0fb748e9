"""Small general helpers that know nothing of PyTorch."""

from . import cli, files

__all__ = ['cli', 'files']
