"""Reference statistics (stats/*.npz): moments of a data set's features and what made them."""

import datetime
import json
import zipfile
from dataclasses import dataclass

import numpy as np
import torch

from dnnlib.files import atomic_write, file_digest, resolve_path

from .detectors import Detector

MOMENTS = ('mu', 'sigma')
INCEPTION_DIM = 2048
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

    Raises FileNotFoundError, and ValueError for a file without these arrays or of other shapes.
    """
    path = resolve_path(path)
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist')
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key in (*MOMENTS, *Reference.__dataclass_fields__)}
            names = file.files
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path} is not a complete npz file of plain arrays ({error})') from None
    missing = [name for name in MOMENTS if name not in arrays]
    if missing:
        raise ValueError(f'{path} has no {" and no ".join(missing)}; it holds {", ".join(names) or "nothing"}. '
                         'Reference statistics are made by dataset_tool.py stats')
    mu, sigma = (np.asarray(arrays[name], dtype=np.float64) for name in MOMENTS)
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f'{path}: mu {list(mu.shape)} and sigma {list(sigma.shape)} are not [D] and [D, D]')
    features = arrays.get('features')
    if features is not None and (features.ndim != 2 or features.shape[1] != len(mu)):
        raise ValueError(f'{path}: features {list(features.shape)} are not [n, {len(mu)}]')
    texts = {name: str(arrays[name]) for name in ('detector', 'fingerprint', 'source', 'provenance')
             if name in arrays}
    if ADM_MOMENTS in names:
        texts.setdefault('source', 'ADM')
    return Reference(mu, sigma, count=int(arrays.get('count', 0)), features=features, **texts)


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
