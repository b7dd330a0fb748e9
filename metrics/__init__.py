"""How far samples are from data: feature networks, streaming moments, Frechet distance and KID.

From a notebook, with samples in memory (here FD-CIFAR10, against the statistics that ship with this project):

    from metrics import distance
    print(distance(samples))
"""

from .compare import Distance, distance

__all__ = ['Distance', 'distance']
