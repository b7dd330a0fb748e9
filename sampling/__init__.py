"""Samplers, one file each: networks and noise in, tensors out; they know no file, no rank and no command line."""

from .ablation import ablation_sampler
from .denoiser import At, Denoiser, GuidedDenoiser
from .diffrs import calibrate, diffrs_sampler
from .edm import edm_sampler
from .guidance import Boosting, DiscriminatorGuidance
from .levels import Levels, edm_levels
from .predictor_corrector import predictor_corrector
from .samples import Samples, sample, stream

# What generate.py --sampler runs. A sampler of your own becomes one line here (docs/extending.md).
SAMPLERS = {
    'edm': edm_sampler,
    'predictor_corrector': predictor_corrector,
}

__all__ = ['SAMPLERS', 'At', 'Boosting', 'Denoiser', 'DiscriminatorGuidance', 'GuidedDenoiser', 'Levels', 'Samples',
           'ablation_sampler', 'calibrate', 'diffrs_sampler', 'edm_levels', 'edm_sampler', 'predictor_corrector', 'sample', 'stream']
