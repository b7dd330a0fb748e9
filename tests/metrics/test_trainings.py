"""Groups of trainings: means, deviations, the error of a difference and Student's t, by hand."""

import math

import pytest
import torch

from metrics.estimate import from_terms
from metrics.trainings import over_trainings

NOISE = torch.randn([400], dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def run(*values, terms=NOISE):
    """The estimates of a run, one block for each value."""
    return [dict(fd=from_terms(value, terms)) for value in values]


def groups(values, base=1.96):
    return dict(unguided=[run(base)], trainings=[run(value) for value in values])


def test_the_numbers_of_the_reproduction():
    """Six trainings of mean 1.8433 and deviation 0.0108: the report's t of -26.42 against 1.96, taken as exact."""
    step = 0.0108 / math.sqrt(1.2)  # of +-: three above, three below
    _, found = over_trainings(groups([1.8433 + step] * 3 + [1.8433 - step] * 3), 'unguided', 'FID', paired=True)
    assert found['value'] == pytest.approx(1.8433) and found['deviation'] == pytest.approx(0.0108)
    assert found['t'] == pytest.approx(-26.42, abs=0.1)
    assert found['error'] == pytest.approx(0.0108 / math.sqrt(6))  # the draw of images cancels: the same terms
    assert (found['label'], found['verdict'], found['trainings']) == ('FID', 'lower', 6)


def test_the_draw_of_images_adds_to_that_of_trainings():
    other = NOISE.roll(1)
    found = over_trainings(dict(a=[run(2.0), run(2.2)], b=[run(1.5, terms=other), run(1.7, terms=other)]), 'a', 'FID',
                           paired=True)
    images = float((other - NOISE).std()) / 20
    trainings = math.sqrt(2) * math.sqrt(0.02) / math.sqrt(2)  # of both groups
    assert found[1]['error'] == pytest.approx(math.hypot(images, trainings)) and found[1]['t'] is None
    assert found[1]['difference'] == pytest.approx(-0.5) and 'difference' not in found[0]


@pytest.mark.parametrize('values, expected', [([1.9, 1.91], 'lower'), ([1.6, 2.2], 'inconclusive'),
                                              ([1.951, 1.952], 'inconclusive'), ([2.1, 2.11], 'higher')])
def test_verdicts(values, expected):
    """Below two deviations, or below 1.3 %, a difference says nothing."""
    assert over_trainings(groups(values), 'unguided', 'FID', paired=True)[1]['verdict'] == expected


def test_one_training_has_no_deviation():
    found = over_trainings(groups([1.83]), 'unguided', 'FID', paired=True)[1]
    assert found['deviation'] is None and found['t'] is None and found['verdict'] == 'lower'
    assert over_trainings(groups([1.83]), 'unguided', 'FD-CIFAR10', paired=False)[1]['error'] == pytest.approx(
        math.sqrt(2) * float(NOISE.std()) / 20)


def test_blocks_are_averaged_within_a_training():
    found = over_trainings(dict(a=[run(2.0, 3.0), run(2.2, 3.2)]), 'a', 'FID', paired=True)[0]
    assert found['values'] == [pytest.approx(2.5), pytest.approx(2.7)]
    assert found['deviation'] == pytest.approx(math.sqrt(0.02))
