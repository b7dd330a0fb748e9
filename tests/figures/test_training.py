"""The picture of a training run: values that are not numbers are left out, and any lines can be drawn."""

import numpy as np
import PIL.Image
import pytest

from figures.training import draw_training

NAN = float('nan')


def line(epoch, auc, **fields):
    levels = [dict(sigma_from=0.01 * 3**k, sigma_to=0.01 * 3**(k + 1), auc=value) for k, value in enumerate(auc)]
    return dict(epoch=epoch, loss=0.7 / epoch, accuracy=0.5, held_out_loss=0.7, held_out_accuracy=0.6,
                held_out_levels=levels) | fields


def drawn(tmp_path, lines):
    draw_training(lines, tmp_path / 'training.png')
    return np.asarray(PIL.Image.open(tmp_path / 'training.png'))


@pytest.mark.parametrize('lines', [
    [], [dict(epoch=1)], [line(1, [NAN, NAN])], [line(1, [])], [dict(nimg=3, loss=1.0)],
    [line(1, [0.5], loss=NAN, accuracy=None, held_out_loss=float('inf'))],
])
def test_any_lines_make_a_picture(tmp_path, lines):
    assert drawn(tmp_path, lines).shape == (360, 1300, 4)


def test_levels_without_a_score_are_left_out(tmp_path):
    whole = [line(1, [0.9, NAN, 0.7]), line(2, [0.95, 0.9, NAN])]
    poorer = [line(1, [0.9, NAN, 0.7]), line(2, [0.95, 0.9])]
    poorer[0]['held_out_levels'].pop(1)
    assert np.array_equal(drawn(tmp_path, whole), drawn(tmp_path, poorer))
    assert not np.array_equal(drawn(tmp_path, whole), drawn(tmp_path, whole[:1]))


def test_a_correction_has_its_own_panel(tmp_path):
    """A loss of the correction is not the BCE: it goes into the last panel, and nothing else moves."""
    plain = [line(1, [0.9]), line(2, [0.8])]
    held_out = [each | dict(held_out_correction=-0.1) for each in plain]
    scores = [each | dict(unguided_error=0.2, loss=-0.05) for each in held_out]
    pictures = [drawn(tmp_path, lines) for lines in (held_out, scores)]
    assert all(picture.shape == (360, 1700, 4) for picture in pictures)
    changed = [(part != other).any() for part, other in zip(*(np.split(picture, 4, axis=1) for picture in pictures))]
    assert changed == [True, False, False, True]
