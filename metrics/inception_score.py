"""Inception score: how sure a classifier is of each image, and how many classes there are."""

import torch

from .estimate import Estimate, from_terms


def inception_score(logits: torch.Tensor, splits: int = 1) -> Estimate:
    """exp of the mean over images of KL(p(y | x) || p(y)); Salimans et al. 2016 (arXiv:1606.03498), equation 1.

    logits: [N, K] of a classifier. splits: the mean over this many parts in order, each with its own p(y); published
    values are of 10. Fewer images per part lower the score. Raises ValueError for fewer images than splits, and NaN.
    """
    if logits.ndim != 2 or len(logits) < splits:
        raise ValueError(f'logits {list(logits.shape)} in {splits} parts; [N, K] with N of at least the parts expected')
    scores, terms = [], []
    for part in logits.tensor_split(splits):
        log_p = part.to(torch.float64).log_softmax(dim=1)  # [n, K]
        p = log_p.exp()
        kl = torch.where(p > 0, p * (log_p - p.mean(dim=0).log()), 0.0).sum(dim=1)  # [n]
        scores.append(float(kl.mean().exp()))
        terms.append(scores[-1] * (kl - kl.mean()))
    if bool(logits.isnan().any()) or not all(torch.isfinite(part).all() for part in terms):
        raise ValueError('the logits hold NaN or infinite values')
    return from_terms(sum(scores) / splits, torch.cat(terms))
