"""Score networks, their preconditioning, and files of them."""

from .io import load_network, read_network_file, save_network
from .precond import EDMPrecond, Precond, VEPrecond, VPPrecond, construct, iDDPMPrecond, set_precision

__all__ = ['EDMPrecond', 'Precond', 'VEPrecond', 'VPPrecond', 'construct', 'iDDPMPrecond', 'load_network',
           'read_network_file', 'save_network', 'set_precision']
