"""Reference statistics (stats/*.npz): moments of a data set's features and what made them."""

import datetime
import json
from dataclasses import dataclass

import numpy as np
import torch

from dnnlib.files import atomic_write, file_digest, resolve_path
from torch_utils import archives

from .detectors import Detector

MOMENTS = ('mu', 'sigma')
INCEPTION_DIM = 2048
TEXTS = ('detector', 'fingerprint', 'source', 'provenance')
MAX_DIM = 8192  # features of any detector; 512 MiB of sigma
MAX_FEATURES = 100_000  # whose features are kept for KID
ADM_MOMENTS = 'mu_s'  # of spatial features, which only the evaluations of ADM (guided-diffusion) have


@dataclass(frozen=True)
class Reference:
    """mu [D] and sigma [D, D] float64; `features` [n, D] float16, a sample of them for KID, or None.

    `detector` is '' in published files, which hold only mu and sigma; `count` is then 0. `provenance` is JSON text:
    what made the statistics, from which images and when.
    """

    mu: np.ndarray
    sigma: np.ndarray
    detector: str = ''
    fingerprint: str = ''
    count: int = 0
    source: str = ''
    features: np.ndarray | None = None
    provenance: str = ''

    @property
    def dim(self) -> int:
        return len(self.mu)

    def default_detector(self) -> str:
        """The detector to use with these statistics. Raises ValueError where it cannot be known."""
        if self.detector:
            return self.detector
        if self.dim == INCEPTION_DIM:
            return 'inception'
        raise ValueError(f'the statistics name no detector and have {self.dim} features; say which made them '
                         'with --detector')

    def check(self, detector: Detector) -> str:
        """A note for the user, '' where nothing is to be said. Raises ValueError for another detector's statistics."""
        if self.detector and self.detector != detector.name:
            raise ValueError(f'the statistics were made with the detector {self.detector}, not {detector.name}; '
                             f'use --detector={self.detector} or statistics of {detector.name}')
        if self.dim != detector.feature_dim:
            raise ValueError(f'the statistics have {self.dim} features, the detector {detector.name} '
                             f'{detector.feature_dim}; use statistics made with {detector.name}')
        if self.fingerprint != detector.fingerprint and self.fingerprint and detector.fingerprint:
            raise ValueError(f'the statistics were made with {self.detector} {self.fingerprint}, the weights at hand '
                             f'are {detector.name} {detector.fingerprint}; make the statistics again with '
                             'dataset_tool.py stats')
        if not self.detector and detector.name == 'inception':
            if self.source == 'ADM':
                return ("the statistics are ADM's, made with TensorFlow's Inception-v3 and its resizing; pytorch-fid's "
                        'port gives values near the published ones but not identical')
            return ("the statistics name no detector; if they are NVIDIA's, pytorch-fid's Inception-v3 gives values "
                    "near the published ones but not identical (--detector=nvidia gives those)")
        return ''

    def save(self, path) -> None:
        """Writes the npz, whole or not at all."""
        arrays = dict(mu=self.mu, sigma=self.sigma, detector=self.detector, fingerprint=self.fingerprint,
                      count=self.count, source=self.source, provenance=self.provenance)
        if self.features is not None:
            arrays['features'] = self.features
        with atomic_write(path) as file:
            np.savez(file, **arrays)


def load_reference(path) -> Reference:
    """Statistics from an npz with `mu` and `sigma`: ours, EDM's, DG's, pytorch-fid's or ADM's (VIRTUAL_*.npz).

    Raises FileNotFoundError, and ValueError for a file without these arrays, of other shapes, or with NaN or infinity.
    """
    path = resolve_path(path)
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist')
    if path.is_dir():
        raise ValueError(f'{path} is a folder; make statistics of its images with '
                         f'dataset_tool.py stats --source={path} --dest=stats.npz')
    if path.suffix == '.pkl':
        raise ValueError(f'{path} is a pickle, which would run code; make statistics of the images as an npz with '
                         'dataset_tool.py stats')
    names = archives.list_arrays(path)
    missing = [name for name in MOMENTS if name not in names]
    if missing:
        raise ValueError(f'{path} has no {" and no ".join(missing)}; it holds {", ".join(names) or "nothing"}. '
                         'Reference statistics are made by dataset_tool.py stats')
    found = {name: archives.find_array(path, name, text=name in TEXTS)
             for name in names if name in (*MOMENTS, *Reference.__dataclass_fields__)}
    mu, sigma = (found[name].shape for name in MOMENTS)
    if len(mu) != 1 or sigma != mu * 2 or not 0 < mu[0] <= MAX_DIM:
        raise ValueError(f'{path}: mu {list(mu)} and sigma {list(sigma)} are not [D] and [D, D]')
    if 'features' in found:
        shape = found['features'].shape
        if len(shape) != 2 or shape[1] != mu[0] or shape[0] > MAX_FEATURES:
            raise ValueError(f'{path}: features {list(shape)} are not [n, {mu[0]}]')
    if any(found[name].shape for name in found if name in (*TEXTS, 'count')):
        raise ValueError(f'{path}: detector, fingerprint, count and source are not single values')
    arrays = {name: archives.read_whole(array) for name, array in found.items()}
    for name in (*MOMENTS, 'features'):
        if name in arrays and not np.isfinite(arrays[name]).all():
            raise ValueError(f'{path}: {name} is not finite (NaN or infinity); make the statistics again')
    texts = {name: str(arrays[name]) for name in TEXTS if name in arrays}
    if ADM_MOMENTS in names:
        texts.setdefault('source', 'ADM')
    return Reference(*(arrays[name].astype(np.float64) for name in MOMENTS), count=int(arrays.get('count', 0)),
                     features=arrays.get('features'), **texts)


def make_reference(measured, detector: Detector, source: str, provenance: str = '') -> Reference:
    """Statistics of a `metrics.measure.Measured`; its features are stored in half precision."""
    mu, sigma = measured.moments.finish()
    features = measured.features.to(torch.float16).numpy() if len(measured.features) else None
    return Reference(mu, sigma, detector.name, detector.fingerprint, measured.moments.count, source, features,
                     provenance)


def provenance(source, count: int, precision: str) -> str:
    """JSON text for `Reference.provenance`: images and their digest (of a single file), arithmetic, versions, date."""
    return json.dumps(dict(images=str(source.path.resolve()), sha256=file_digest(source.path), count=count,
                           precision=precision, torch=torch.__version__,
                           date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')))
