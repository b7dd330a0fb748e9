"""Crops and sizes as EDM's published dataset_tool.py makes them, against resampling written out here."""

import numpy as np
import PIL.Image
import pytest

from torch_utils.image_transforms import TRANSFORMS, make_transform, over, parse_color


def lanczos(x):
    """Lanczos with three lobes (Duchon 1979)."""
    x = np.asarray(x, dtype=np.float64)
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


def bicubic(x, a=-0.5):
    """Keys 1981."""
    x = np.abs(np.asarray(x, dtype=np.float64))
    return np.where(x < 1, (a + 2) * x**3 - (a + 3) * x**2 + 1, np.where(x < 2, a * (x**3 - 5 * x**2 + 8 * x - 4), 0))


def box(x):
    x = np.asarray(x, dtype=np.float64)
    return ((x > -0.5) & (x <= 0.5)).astype(float)


def resampled(image, size, kernel):
    """uint8 [H, W, C] -> [size[1], size[0], C]: along each axis by weights that sum to one, rounded to bytes between.

    Which axis is first is pillow's choice, so both results [2, ...] are given.
    """
    def along(values, count):  # the first axis
        scale = len(values) / count
        centers = (np.arange(count)[:, None] + 0.5) * scale
        weights = kernel((np.arange(len(values)) + 0.5 - centers) / max(scale, 1))
        weights /= weights.sum(1, keepdims=True)
        return np.floor(np.tensordot(weights, values.astype(np.float64), 1).clip(0, 255) + 0.5).clip(0, 255)

    def across(values, count):
        return along(values.transpose(1, 0, 2), count).transpose(1, 0, 2)

    return np.stack([along(across(image, size[0]), size[1]), across(along(image, size[1]), size[0])])


def image(height, width, channels=3):
    return np.random.RandomState(0).randint(256, size=[height, width, channels], dtype=np.uint8)


def assert_close(found, expected):
    """Pillow's weights have 22 bits: sometimes a value is on the other side of a half."""
    assert found.dtype == np.uint8 and found.shape == expected.shape[1:]
    errors = np.abs(found - expected)
    better = errors[errors.sum(axis=(1, 2, 3)).argmin()]
    assert better.max() <= 1 and (better > 0).mean() < 0.01


def test_by_hand():
    """A row of four, 0 0 255 255, to two: in target pixels they lie at -1/4, 1/4, 3/4 and 5/4 of the left centre.

    sin(pi x) sin(pi x / 3) 3 / (pi x)^2 gives 0.890067, 0.890067, 0.270190 and -0.132871, the last two 0.071620 of all.
    """
    row = np.array([0, 0, 255, 255], np.uint8)[None, :, None].repeat(4, axis=0)
    assert make_transform(None, (2, 2))(row)[:, :, 0].tolist() == [[18, 237]] * 2  # 255 x 0.0716 = 18.3; a box gives 0


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('shape, size', [((8, 8), (4, 4)), ((13, 7), (5, 6)), ((5, 6), (16, 16)), ((16, 16), (16, 16))])
def test_scaling_is_lanczos(shape, size, channels):
    pixels = image(*shape, channels)
    assert_close(make_transform(None, size)(pixels), resampled(pixels, size, lanczos))


@pytest.mark.parametrize('shape, rows, columns', [((12, 20), slice(0, 12), slice(4, 16)),
                                                  ((21, 9), slice(6, 15), slice(0, 9)),
                                                  ((9, 14), slice(0, 9), slice(2, 11))])
def test_center_crop(shape, rows, columns):
    pixels = image(*shape)
    assert_close(make_transform('center-crop', (6, 6))(pixels), resampled(pixels[rows, columns], (6, 6), lanczos))


def test_center_crop_wide():
    """As published: of 16 rows of 20 pixels the middle round(8 * 16 / 20) = 6 are scaled to 8 x 6, between bars."""
    pixels = image(16, 20)
    expected = np.zeros([2, 8, 8, 3])
    expected[:, 1:7] = resampled(pixels[5:11], (8, 6), lanczos)
    transform = make_transform('center-crop-wide', (8, 6))
    assert_close(transform(pixels), expected)
    assert transform(image(16, 7)) is None and transform(image(4, 20)) is None


def test_center_crop_dhariwal():
    """32 x 21: halved by boxes to 16 x 10, then bicubic to 13 x 8, and its middle."""
    pixels = image(21, 32)
    halved = resampled(pixels, (16, 10), box)
    assert_close(make_transform('center-crop-dhariwal', (10, 10))(pixels), halved[:, :, 3:13])  # nothing left to scale
    halved = np.asarray(PIL.Image.fromarray(pixels).resize((16, 10), PIL.Image.Resampling.BOX))
    scaled = resampled(halved, (13, 8), bicubic)  # round(16 * 0.8) = 13
    assert_close(make_transform('center-crop-dhariwal', (8, 8))(pixels), scaled[:, :, 2:10])


@pytest.mark.parametrize('name', TRANSFORMS)
def test_crops_make_grey_rgb(name):
    size = (8, 6) if name == 'center-crop-wide' else (8, 8)
    grey = image(12, 16, 1)
    found = make_transform(name, size)(grey)
    np.testing.assert_array_equal(found, make_transform(name, size)(grey.repeat(3, axis=2)))
    assert found.shape == (8, 8, 3) and make_transform(None, (8, 8))(grey).shape == (8, 8, 1)


@pytest.mark.parametrize('name, size', [('center-crop', None), ('center-crop-wide', None), ('center-crop', (8, 6)),
                                        ('center-crop-dhariwal', (8, 6)), ('center-crop-wide', (6, 8))])
def test_sizes_that_are_refused(name, size):
    with pytest.raises(ValueError, match='--resolution'):
        make_transform(name, size)


def test_colours():
    """Over a background by alpha: (1 - a) background + a foreground."""
    pixels = np.array([[[200, 100, 0, 255], [200, 100, 0, 0]], [[200, 100, 0, 51], [0, 0, 0, 128]]], np.uint8)
    found = over(pixels, parse_color('#0080ff'))
    np.testing.assert_allclose(found, [[[200, 100, 0], [0, 128, 255]], [[40, 122.4, 204], [0, 63.7, 127]]], atol=1)
    np.testing.assert_array_equal(over(image(2, 2, 1), (0, 0, 0)), image(2, 2, 1).repeat(3, axis=2))
    np.testing.assert_array_equal(over(image(2, 2), (0, 0, 0)), image(2, 2))
    assert parse_color('white') == (255, 255, 255)
    for text in ('#00000000', 'transparent', 'no colour', ''):
        with pytest.raises(ValueError):
            parse_color(text)
