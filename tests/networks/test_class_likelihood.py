"""networks/class_likelihood.py against the class logits of tests/goldens/dg/networks.npz, rtol 1e-4, atol 2e-4."""

import pytest
import torch
from dg_goldens import classifier, write_files
from goldens import load

from diffusion.mixtures import GaussianMixture, MixtureNet
from diffusion.vpsde import VPSDE
from networks.class_likelihood import ClassLikelihood, load_class_likelihood


def test_log_likelihood_is_that_of_the_golden_logits():
    """The golden's state is x at VP time t; ours is x / mean at noise level std / mean."""
    golden = load('dg/networks.npz')
    x, t = torch.as_tensor(golden['x']).double(), torch.as_tensor(golden['t']).double()
    mean, std = VPSDE().marginal(t)
    labels = torch.eye(1000)[[3, 900, 17, 555]]
    found = ClassLikelihood(classifier())(x / mean[:, None, None, None], std / mean, labels)
    expected = (torch.as_tensor(golden['class_logits']).log_softmax(1) * labels).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize('shape, label_dim, words', [
    ((3, 32, 32), 10, '1000 classes'), ((1, 32, 32), 1000, '32x32x3 images')])
def test_a_classifier_of_other_labels_or_images_is_refused(tmp_path, shape, label_dim, words):
    path, _ = write_files(tmp_path)
    net = MixtureNet(GaussianMixture([[0.0]]), shape)
    net.label_dim = label_dim
    with pytest.raises(ValueError, match=words):
        load_class_likelihood(net, path)


def test_a_classifier_of_the_labels_loads(tmp_path):
    path, _ = write_files(tmp_path)
    net = MixtureNet(GaussianMixture([[0.0]]), (3, 32, 32))
    net.label_dim = 1000
    x = torch.zeros([2, 3, 32, 32], dtype=torch.float64)
    found = load_class_likelihood(net, path)(x, torch.tensor(1.0), torch.eye(1000)[:2])
    assert found.shape == (2,) and (found < 0).all()
