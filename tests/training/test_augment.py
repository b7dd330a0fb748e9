"""Augmentations: the labels describe what was done, and nothing was done if they are zero."""

import math

import pytest
import torch

from training.augment import AugmentPipe, mirror, rotation, warp
from training.randomness import BatchRandom

N = 64


def waves(points):
    """Smooth functions (waves of 16 pixels and more) at points [..., 2] = (x, y) from the centre: [N, 3, ...]."""
    g = torch.Generator().manual_seed(3)
    shape = [N, 3] + [1] * (points.ndim - 1)
    direction, phase = (2 * math.pi * torch.rand(shape, generator=g) for _ in range(2))
    frequency = 2 * math.pi / (16 + 16 * torch.rand(shape, generator=g))
    return (frequency * (points[..., 0] * direction.cos() + points[..., 1] * direction.sin()) + phase).sin()


def positions(size=32):
    """Pixel positions [size, size, 2] from the centre."""
    x = torch.arange(size) - (size - 1) / 2
    return torch.stack([x.expand(size, size), x[:, None].expand(size, size)], dim=2)


@pytest.fixture
def images():
    """[N, 3, 32, 32] in [-1, 1]"""
    return waves(positions())


def rng(n=N, step=0):
    return BatchRandom(0, step, n, 'cpu')


def eye(n=N):
    return torch.eye(2).expand(n, 2, 2)


def inner(x, margin=6):
    return x[:, :, margin:-margin, margin:-margin]


def test_zero_probability_leaves_only_x_flips(images):
    out, labels = AugmentPipe(p=0)(images, rng())
    assert labels.shape == (N, 9) and labels.dtype == torch.float32
    assert not labels[:, 1:].any() and 0 < labels[:, 0].sum() < N
    flipped = labels[:, 0] == 1
    assert torch.equal(out[flipped], images[flipped].flip(3))
    assert torch.equal(out[~flipped], images[~flipped])


def test_rows_of_zeros_are_untouched(images):
    out, labels = AugmentPipe(p=0.12)(images, rng())
    untouched = ~labels.any(1)
    assert untouched.any() and not untouched.all()
    assert torch.equal(out[untouched], images[untouched])
    assert (out[~untouched] != images[~untouched]).flatten(1).any(1).all()


def test_pure_flips_follow_their_labels(images):
    out, labels = AugmentPipe(p=0.2)(images, rng())
    pure = ~labels[:, 2:].any(1)
    assert labels[pure, 1].any()
    for image, result, (x, y) in zip(images[pure], out[pure], labels[pure, :2]):
        assert torch.equal(result, image.flip([axis for axis, on in ((2, x), (1, y)) if on]))


def test_frequencies():
    n, p = 4000, 0.12
    _, labels = AugmentPipe(p)(torch.zeros(n, 1, 8, 8), rng(n))
    used = (labels != 0).float().mean(0)
    deviation = 4 * math.sqrt(p / n)
    assert used[0].item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(n))
    assert used[1].item() == pytest.approx(p / 2, abs=deviation)
    for column in (2, 3, 4, 5, 7, 8):
        assert used[column].item() == pytest.approx(p, abs=deviation), column
    assert used[6].item() == pytest.approx(p / 2, abs=deviation)  # the axis is oblique half of the time
    assert labels[:, 2][labels[:, 2] != 0].std().item() == pytest.approx(1, abs=0.2)
    assert torch.equal(labels[:, 7] != 0, labels[:, 8] != 0)  # both shifts together
    angle = torch.atan2(labels[:, 4], labels[:, 3] + 1)
    torch.testing.assert_close(angle.cos() - 1, labels[:, 3], rtol=0, atol=1e-5)


def test_the_identity_gives_the_image_back(images):
    torch.testing.assert_close(warp(images, eye(), torch.zeros(N, 2)), images, rtol=0, atol=1e-5)


def test_a_whole_shift_moves_pixels(images):
    out = warp(images, eye(), torch.tensor([[3.0, -2.0]]).expand(N, 2))  # result(x, y) = source(x + 3, y - 2)
    torch.testing.assert_close(inner(out), inner(images.roll([2, -3], dims=[2, 3])), rtol=0, atol=1e-4)


def test_outside_the_image_it_goes_on_mirrored(images):
    out = warp(images, eye(), torch.tensor([[20.0, 0.0]]).expand(N, 2))
    source = torch.cat([images, images.flip(3)[..., 1:]], dim=3)  # mirrored at the centre of the last column
    torch.testing.assert_close(out[..., 6:26], source[..., 26:46], rtol=0, atol=0.04)


MATRICES = [rotation(torch.tensor([0.7]))[0], rotation(torch.tensor([math.pi / 2]))[0], torch.eye(2) * 0.8,
            torch.eye(2) * 1.2, torch.tensor([[0.9, 0.2], [-0.1, 1.1]])]


@pytest.mark.parametrize('matrix', MATRICES, ids=['rotation', 'quarter turn', 'larger', 'smaller', 'any'])
def test_warping_reads_the_function_elsewhere(images, matrix):
    offset = torch.tensor([1.3, -0.6])
    out = warp(images, matrix.expand(N, 2, 2), offset.expand(N, 2))
    points = positions() @ matrix.T + offset
    inside = (points.abs() < 13).all(2)
    torch.testing.assert_close(out[..., inside], waves(points)[..., inside], rtol=0, atol=0.04)


def test_labels_say_what_was_done(images):
    """Undo what the pipe did from its labels, as far as they are unambiguous (no anisotropy)."""
    pipe = AugmentPipe(0.5)
    out, labels = pipe(images, rng())
    plain = (labels[:, 5] == 0) & (labels[:, 6] == 0)
    flip_x, flip_y, scale, cos, sin, _, _, x, y = labels.T
    points = positions().reshape(1, -1, 2) - torch.stack([x, y], dim=1)[:, None] * 32 * pipe.translate_std
    turn = torch.stack([cos + 1, -sin, sin, cos + 1], dim=1).reshape(-1, 2, 2)
    points = points @ turn.transpose(1, 2) * (2 ** -(scale * pipe.scale_std))[:, None, None]
    # the shift acts first on the way from the result to the source; then rotation and scale
    points = points * torch.stack([1 - 2 * flip_x, 1 - 2 * flip_y], dim=1)[:, None]
    for i in plain.nonzero().flatten().tolist():
        inside = (points[i].abs() < 13).all(1)
        expected = waves(points[i])[i]
        torch.testing.assert_close(out[i].flatten(1)[:, inside], expected[:, inside], rtol=0, atol=0.04)


def test_constant_images_stay_constant():
    out, _ = AugmentPipe(p=1)(torch.full([N, 1, 16, 16], 0.7), rng())
    torch.testing.assert_close(out, torch.full_like(out, 0.7), rtol=0, atol=1e-3)


def test_parts_of_a_batch_are_augmented_as_in_the_whole(images):
    whole, labels = AugmentPipe(0.5)(images, rng())
    part, part_labels = AugmentPipe(0.5)(images[16:32], rng().rows(slice(16, 32)))
    assert torch.equal(labels[16:32], part_labels)
    torch.testing.assert_close(whole[16:32], part, rtol=0, atol=1e-5)


def test_small_images_are_refused():
    with pytest.raises(ValueError, match='larger than 6 pixels'):
        AugmentPipe()(torch.zeros(2, 3, 4, 4), rng(2))


def test_mirror(images):
    out = mirror(images, rng())
    flipped = (out == images.flip(3)).flatten(1).all(1)
    assert 0.25 * N < flipped.sum() < 0.75 * N
    assert torch.equal(out[~flipped], images[~flipped])
