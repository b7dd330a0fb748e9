"""The error of each metric is the deviation between draws of images, and paired errors that between paired draws."""

import numpy as np
import pytest
import torch
from toy_features import Toy

from metrics.estimate import from_terms
from metrics.frechet_error import extrapolated_frechet, frechet_estimate
from metrics.inception_score import inception_score
from metrics.kid import kernel_distance, kernel_terms
from metrics.mind import mind
from metrics.neighbours import neighbours


def moments(x):
    return x.double().mean(dim=0).numpy(), torch.cov(x.double().T).numpy()


def metrics_of(toy):
    """name: features [n, D] -> Estimate against the toy's reference."""
    ref = moments(toy.reference)
    return dict(
        fd=lambda x: frechet_estimate(x, *moments(x), *ref, len(x)),
        fd_inf=lambda x: extrapolated_frechet(x, *ref),
        kid=lambda x: from_terms(kernel_distance(x, toy.reference, groups=4).value, kernel_terms(x, toy.reference)),
        inception_score=lambda x: inception_score(2 * x),
        mind=lambda x: mind(x, toy.reference, directions=50),
        density=lambda x: neighbours(x, toy.reference).density)


def check(found, low, high):
    """The mean error is `low` to `high` times the deviation of values, which 50 draws give to 10 %."""
    deviation = np.std([each.value for each in found], ddof=1)
    assert low * deviation < np.mean([each.error for each in found]) < high * deviation


@pytest.mark.parametrize('name', ['fd', 'fd_inf', 'kid', 'inception_score', 'mind'])
def test_error_is_the_deviation_between_draws(name):
    toy = Toy(reference=1000)
    metric = metrics_of(toy)[name]
    check([metric(toy.draw(300)) for _ in range(50)], 0.75, 1.4)


def test_errors_of_neighbours():
    """Those of recall and coverage are too large, see metrics.neighbours."""
    toy = Toy(reference=1000)
    found = [neighbours(toy.draw(300), toy.reference) for _ in range(50)]
    for name, high in (('precision', 1.3), ('recall', 2.2), ('density', 1.3), ('coverage', 2.2)):
        check([getattr(each, name) for each in found], 0.7, high)


@pytest.mark.parametrize('name', ['fd', 'kid', 'mind', 'inception_score', 'density'])
def test_terms_are_derivatives(name):
    """Leaving out one image of n changes the value by its term / (n - 1), up to terms of the order 1 / n^2."""
    toy = Toy(reference=300)
    if name == 'mind':  # with equal numbers of vectors, else another subset of the reference is used
        toy.reference = toy.reference.repeat(2, 1)[:300]
    metric, x = metrics_of(toy)[name], toy.draw(300)
    whole = metric(x)
    left_out = [300 * whole.value - 299 * metric(torch.cat([x[:i], x[i + 1:]])).value for i in range(0, 300, 10)]
    change, terms = np.array(left_out), whole.terms[::10].numpy()
    assert np.corrcoef(change, terms)[0, 1] > (0.9 if name == 'mind' else 0.99)


def test_extrapolation_removes_the_bias_of_few_images():
    toy = Toy(dim=16)
    ref = moments(toy.reference)
    truth = frechet_estimate(torch.zeros(0, 16), *moments(toy.draw(200_000)), *ref, 200_000)
    assert truth.error is None
    few = [toy.draw(200) for _ in range(30)]
    plain = np.array([frechet_estimate(x, *moments(x), *ref, 200).value for x in few]) - truth.value
    far = np.array([extrapolated_frechet(x, *ref).value for x in few]) - truth.value
    assert abs(far.mean()) < 3 * far.std() / np.sqrt(30) and plain.mean() > 3 * plain.std() / np.sqrt(30)
    with pytest.raises(ValueError, match='19 images are too few'):
        extrapolated_frechet(few[0][:19], *ref)


def test_a_sample_of_features_gives_the_error_of_all():
    toy = Toy()
    x, ref = toy.draw(4000), moments(toy.reference)
    whole = frechet_estimate(x, *moments(x), *ref, 4000)
    part = frechet_estimate(x[::4], *moments(x), *ref, 4000)
    assert part.terms is None and part.value == whole.value and part.error == pytest.approx(whole.error, rel=0.15)


def test_singular_covariance_has_an_error():
    """Features that never vary, such as dead ones of a network, change nothing."""
    toy = Toy()
    x, y = toy.draw(300), toy.reference
    dead = [torch.cat([each, torch.zeros(len(each), 3)], dim=1) for each in (x, y)]
    plain = frechet_estimate(x, *moments(x), *moments(y), 300)
    found = frechet_estimate(dead[0], *moments(dead[0]), *moments(dead[1]), 300)
    torch.testing.assert_close(found.terms, plain.terms, rtol=1e-6, atol=1e-8)
