"""How far samples are from data: feature networks, moments, distances and metrics with errors.

From a notebook, with samples in memory (here in the features, and against the statistics, that ship with the project):

    from metrics import all_metrics, distance
    print(distance(samples))          # FD-CIFAR10 and KID
    all_metrics(samples)              # each metric's name -> Estimate(value, error, terms)
"""

from .compare import Distance, distance
from .estimate import Estimate
from .evaluate import all_metrics

__all__ = ['Distance', 'Estimate', 'all_metrics', 'distance']
