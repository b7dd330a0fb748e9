"""Differences between runs: their errors and verdicts."""

import math

import pytest
import torch

from metrics.estimate import Estimate, difference, from_terms, verdict
from metrics.inception_score import inception_score


def test_from_terms():
    terms = torch.tensor([1.0, 2.0, 6.0])
    found = from_terms(5, terms)
    assert found.value == 5 and found.terms.tolist() == [-2, -1, 3]
    assert found.error == pytest.approx(math.sqrt(7 / 3))


@pytest.mark.parametrize('change, error, relative, expected', [
    (-1.0, 0.4, -0.1, 'lower'), (1.0, 0.4, 0.1, 'higher'), (1.0, 0.51, 0.1, 'inconclusive'),
    (1.0, 0.0, 0.0129, 'inconclusive'), (1.0, 0.0, 0.0131, 'higher'), (0.0, 0.0, 0.0, 'inconclusive'),
    (9.0, None, 0.9, 'inconclusive'), (9.0, math.nan, 0.9, 'inconclusive')])
def test_verdict(change, error, relative, expected):
    assert verdict(change, error, relative) == expected


def test_what_two_runs_share_cancels():
    """Values of two blocks that differ by 0.1, while each image moves both."""
    shared, own = 3 * torch.randn(2, 400), 0.1 * torch.randn(2, 400)
    a = [from_terms(2.1, block) for block in shared]
    b = [from_terms(2.0, block + more) for block, more in zip(shared, own)]
    paired, plain = difference(a, b, paired=True), difference(a, b, paired=False)
    assert paired.difference == pytest.approx(0.1) and paired.relative == pytest.approx(0.05)
    assert paired.error == pytest.approx(0.1 / math.sqrt(800), rel=0.1) and paired.verdict == 'higher'
    assert plain.error == pytest.approx(3 * math.sqrt(2) / math.sqrt(800), rel=0.1)
    assert plain.verdict == 'inconclusive' and (paired.paired, plain.paired) == (True, False)


def test_without_terms_there_is_no_pairing():
    found = difference([Estimate(3.0, 0.3)], [Estimate(2.0, 0.4)], paired=True)
    assert not found.paired and found.error == pytest.approx(0.5)
    assert difference([Estimate(3.0)], [Estimate(2.0, 0.4)], paired=True).error is None
    with pytest.raises(ValueError, match='1 blocks cannot be compared with 2'):
        difference([Estimate(3.0)], [Estimate(2.0)] * 2, paired=True)


def test_inception_score_of_sure_and_of_clueless_classifiers():
    classes = torch.arange(40) % 8
    assert inception_score(1e4 * torch.nn.functional.one_hot(classes, 8)).value == pytest.approx(8)
    assert inception_score(torch.zeros(40, 8)).value == pytest.approx(1)
    with pytest.raises(ValueError, match='NaN'):
        inception_score(torch.full((4, 2), torch.nan))
    with pytest.raises(ValueError, match='in 10 parts'):
        inception_score(torch.zeros(4, 2), splits=10)
