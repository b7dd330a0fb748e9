"""Reference statistics: which files are read, and the messages about others."""

import numpy as np
import pytest

from metrics.reference import load_reference


def save(path, **arrays):
    np.savez(path, **(dict(mu=np.arange(3.0), sigma=np.eye(3)) | arrays))
    return path


@pytest.mark.parametrize('change', [dict(), dict(sigma=np.asfortranarray(np.arange(9.0).reshape(3, 3))),
                                    dict(mu=np.arange(3, dtype=np.float32), detector='cifar10', count=5),
                                    dict(features=np.zeros([2, 3], np.float16), source='x')])
def test_what_is_read(tmp_path, change):
    found = load_reference(save(tmp_path / 'a.npz', **change))
    np.testing.assert_array_equal(found.sigma, change.get('sigma', np.eye(3)))
    assert found.mu.tolist() == [0, 1, 2] and found.mu.dtype == found.sigma.dtype == np.float64
    assert (found.detector, found.count, found.source) == (
        change.get('detector', ''), change.get('count', 0), change.get('source', ''))
    assert (found.features is None) == ('features' not in change)


@pytest.mark.parametrize('change, message', [
    (dict(mu=np.array([0, np.nan, 1])), 'mu is not finite'),
    (dict(sigma=np.full([3, 3], np.inf)), 'sigma is not finite'),
    (dict(mu=np.zeros(2)), r'mu \[2\] and sigma \[3, 3\]'), (dict(mu=np.zeros([3, 1])), r'mu \[3, 1\]'),
    (dict(mu=np.array(['a', 'b', 'c'])), 'not numbers'), (dict(mu=np.array([None] * 3)), 'holds objects'),
    (dict(features=np.zeros([2, 2])), r'features \[2, 2\] are not \[n, 3\]'),
    (dict(detector=np.array(['a'])), 'single')])
def test_what_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_reference(save(tmp_path / 'a.npz', **change))
    assert 'a.npz' in str(caught.value) and 'allow_pickle' not in str(caught.value)


def test_what_is_no_npz(tmp_path):
    with pytest.raises(ValueError, match='is a folder; make statistics of .*dataset_tool.py stats --source='):
        load_reference(tmp_path)
    (tmp_path / 'ref.pkl').write_bytes(b'\x80\x04N.')
    with pytest.raises(ValueError, match='is a pickle, which would run code; .*dataset_tool.py stats'):
        load_reference(tmp_path / 'ref.pkl')
    np.savez(tmp_path / 'other.npz', samples=np.zeros(3))
    with pytest.raises(ValueError, match='has no mu and no sigma; it holds samples'):
        load_reference(tmp_path / 'other.npz')
