"""Formats of score networks: one module each.

`recognises(head, path)` says whether a file is of the format, by its first HEAD bytes rather than its name;
`read(path)` returns its `NetworkFile`: tensors, constructor, arguments, metadata. Neither runs anything in the file.
If NEEDS_PRESET, files do not describe themselves, and `read(path, preset)` takes the name of a configuration.
A new format is a module here and a line in FORMATS.
"""

from . import edm_pickle, safetensors, score_sde

HEAD = 32
# safetensors first: such a file begins with a length, whose bytes may look like any signature; score_sde before
# pickles, since files of old torch are pickles
FORMATS = (safetensors, score_sde, edm_pickle)

__all__ = ['FORMATS', 'HEAD']
