"""Everything that comes from a checkpoint: score networks, classifiers, discriminators and their log-ratio."""

from .io import load_network, read_network_file, save_network
from .log_ratio import LogRatio, load_log_ratio
from .precond import (
    EDMPrecond,
    Precond,
    SubVPPrecond,
    VEDiscretePrecond,
    VEPrecond,
    VPDiscretePrecond,
    VPPrecond,
    construct,
    iDDPMPrecond,
    set_precision,
)

__all__ = ['EDMPrecond', 'LogRatio', 'Precond', 'SubVPPrecond', 'VEDiscretePrecond', 'VEPrecond', 'VPDiscretePrecond',
           'VPPrecond', 'construct', 'iDDPMPrecond', 'load_log_ratio', 'load_network', 'read_network_file',
           'save_network', 'set_precision']
