"""Small general helpers that know nothing of PyTorch."""

from . import cli, files
from .easydict import EasyDict

__all__ = ['EasyDict', 'cli', 'files']
