"""Samplers, one file each: networks and noise in, tensors out; without files, ranks or command lines."""

from .ablation import ablation_sampler
from .autoguidance import Autoguidance
from .classifier_free import ClassifierFree
from .classifier_guidance import ClassifierGuidance
from .denoiser import At, Denoiser, GuidedDenoiser, nested
from .diffrs import calibrate, diffrs_sampler
from .edm import edm_sampler
from .guidance import Boosting, DiscriminatorGuidance
from .interval import GuidanceInterval
from .levels import Levels, edm_levels
from .multistep import multistep_sampler
from .particles import particle_sampler
from .predictor_corrector import predictor_corrector
from .restart import Restarts, restart_sampler
from .samples import Samples, sample, stream

# What generate.py --sampler runs. Your own sampler needs one line here (docs/extending.md).
SAMPLERS = {
    'edm': edm_sampler,
    'predictor_corrector': predictor_corrector,
    'restart': restart_sampler,
}

__all__ = ['SAMPLERS', 'At', 'Autoguidance', 'Boosting', 'ClassifierFree', 'ClassifierGuidance', 'Denoiser',
           'DiscriminatorGuidance', 'GuidanceInterval', 'GuidedDenoiser', 'Levels', 'Restarts', 'Samples',
           'ablation_sampler', 'calibrate', 'diffrs_sampler', 'edm_levels', 'edm_sampler', 'multistep_sampler',
           'nested', 'particle_sampler', 'predictor_corrector', 'restart_sampler', 'sample', 'stream']
