"""k-NN metrics in chunks and MIND against their definitions by brute force."""

import numpy as np
import pytest
import torch
from toy_features import published_features

from metrics import neighbours as module
from metrics.mind import mind
from metrics.neighbours import neighbours, squared_radii


def brute_force(x, y, k, k_density):
    """The four values, and the share of each image in what no other image reaches, from float64 distances."""
    x, y = x.double().numpy(), y.double().numpy()

    def distances(a, b):
        return np.sqrt(np.square(a[:, None] - b[None]).sum(axis=2))

    x_ball, y_ball, y_dense = (np.sort(distances(a, a), axis=1)[:, i] for a, i in ((x, k), (y, k), (y, k_density)))
    cross = distances(x, y)  # [n, m]
    values = ((cross <= y_ball).any(axis=1).mean(), (cross <= x_ball[:, None]).any(axis=0).mean(),
              (cross <= y_dense).sum(axis=1).mean() / k_density, (cross <= y_dense).any(axis=0).mean())
    alone = [((mask.sum(axis=0) == 1) & mask).sum(axis=1) * len(x) / len(y)
             for mask in (cross <= x_ball[:, None], cross <= y_dense)]
    return values, alone


@pytest.mark.parametrize('elements', [100, 3000, 1 << 24])
def test_chunks_give_the_definition(monkeypatch, elements):
    """Chunks of one row, of several with a smaller last one, and of all rows."""
    monkeypatch.setattr(module, 'ELEMENTS', elements)
    x, y = published_features()
    x, y = x[:77] + 100, y[:60] + 100  # far from 0, where squares are large
    values, (recall, coverage) = brute_force(x, y, 2, 4)
    found = neighbours(x, y, k=2, k_density=4)
    assert [each.value for each in found] == pytest.approx(values, abs=1e-12)
    for each, terms in ((found.recall, recall), (found.coverage, coverage)):
        np.testing.assert_allclose(each.terms, terms - terms.mean(), atol=1e-12)


def test_copies_of_the_reference_are_in_it():
    y = published_features()[1]
    found = neighbours(y, y)
    assert (found.precision.value, found.recall.value, found.coverage.value) == (1, 1, 1)
    assert float(squared_radii(y.repeat(2, 1), [1])[0].max()) < 1e-4  # the neighbour of each is its copy


def test_memory_is_flat():
    """No more than a few chunks: 4,000 x 4,000 distances would be 64 MB each."""
    x = torch.randn(4000, 4)
    seen = []
    for _, _, distances in module._chunks(x, x.repeat(5, 1)):
        seen.append((distances.data_ptr(), distances.numel()))
    assert len({place for place, _ in seen}) == 1 and max(size for _, size in seen) <= module.ELEMENTS
    assert len(seen) > 4


def test_mind_is_the_definition():
    x, y = published_features()
    x = x[:250]
    ways = torch.nn.functional.normalize(torch.randn([70, 12], generator=torch.Generator().manual_seed(5)), dim=1)
    u, v = (np.sort((features @ ways.T).double().numpy(), axis=0) for features in (x, y))
    assert mind(x, y, directions=70, seed=5).value == pytest.approx(np.square(u - v).mean(), rel=1e-5)
    assert mind(x, y[torch.randperm(250)]).value == pytest.approx(mind(x, y).value, rel=1e-6)


def test_mind_of_a_shift_is_known():
    """Along w, a shift by s moves everything by w . s, whose square is on average over directions |s|^2 / D."""
    y = published_features()[1]
    shift = torch.linspace(-1, 1, 12)
    assert mind(y + shift, y).value == pytest.approx(float(shift.square().sum()) / 12, rel=0.15)
    assert mind(y, y).value == 0
    assert mind(torch.cat([y, y]), y).value < 0.02  # different numbers


@pytest.mark.parametrize('metric', [neighbours, mind])
def test_bad_input(metric):
    x, y = published_features()
    with pytest.raises(ValueError, match='cannot be compared'):
        metric(x, y[:, :3])
    with pytest.raises(ValueError, match='NaN'):
        metric(torch.where(x == x.max(), torch.nan, x), y)


def test_too_few_neighbours():
    x, y = published_features()
    with pytest.raises(ValueError, match='more than 5'):
        neighbours(x[:5], y)
