"""The picture of a study: what stands where, and which marks are hollow."""

import pytest

from figures.canvas import save
from figures.study import study_figure


def summary(kind, rows, values, verdicts, against, groups=()):
    """One of study.json, of rows (name, x, group); differences are those of the values."""
    rows = [dict(name=name, x=x, group=group) for name, x, group in rows]
    results = [dict(name=row['name'], metrics=dict(fd=dict(label='FD', scale=1, value=value, error=0.01,
                                                           deviation=None)))
               for row, value in zip(rows, values, strict=True)]
    base = dict(zip([row['name'] for row in rows], values, strict=True))[against]
    differences = [dict(name=row['name'], metric='fd', difference=value - base, relative=(value - base) / base,
                        error=0.01, verdict=verdict)
                   for row, value, verdict in zip(rows, values, verdicts, strict=True) if row['name'] != against]
    return dict(results=results, differences=differences, blocks=1, num_samples=60, deviations=2, share=0.013,
                study=dict(kind=kind, label='x', against=against, rows=rows, groups=list(groups)))


def group(name, trainings, value, deviation, **difference):
    return dict(name=name, metric='fd', trainings=trainings, value=value, deviation=deviation) | difference


def marks(axes):
    """(x, y, whether hollow) of single marks."""
    return [(line.get_xdata()[0], pytest.approx(line.get_ydata()[0]), line.get_markerfacecolor() == 'white')
            for line in axes.lines if line.get_marker() == 'o' and len(line.get_xdata()) == 1]


def test_values_and_verdicts():
    figure = study_figure([summary('epochs', [('unguided', None, None), ('1', 1, None), ('9', 9, None)],
                                   [2.0, 1.0, 1.99], ['', 'lower', 'inconclusive'], 'unguided')])
    left, right = figure.axes
    across, curve = left.lines[:2]
    assert list(across.get_ydata()) == [2, 2] and left.texts[0].get_text() == 'unguided'
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([1, 9], [1.0, 1.99])
    assert marks(right) == [(1, -50, False), (9, -0.5, True)]
    assert left.get_ylabel() == 'FD (60 images)' and right.get_ylabel() == 'difference from\nunguided (%)'


def test_trainings_are_compared_by_their_means(tmp_path):
    rows = [('a', 0, 'rank 0'), ('b', 0, 'rank 0'), ('c', 8, 'rank 8'), ('d', 8, 'rank 8')]
    groups = [group('rank 0', 2, 1.1, 0.14), group('rank 8', 2, 0.9, 0.1, against='rank 0', difference=-0.2,
                                                   relative=-0.18, error=0.1, verdict='inconclusive')]
    figure = study_figure([summary('ranks', rows, [1.0, 1.2, 0.8, 1.0], ['', 'higher', 'lower', 'lower'], 'a', groups)])
    left, right = figure.axes
    assert [text.get_text() for text in left.get_xticklabels()] == ['0', '8']
    assert list(left.lines[0].get_xdata()) == pytest.approx([-0.06, 0.06, 0.94, 1.06])
    assert marks(right) == [(1, -18, True)]  # not each against the single training `a`
    assert right.get_ylabel() == 'difference from\nrank 0 (%)'
    save(figure, tmp_path / 'study.png')
    assert (tmp_path / 'study.png').read_bytes().startswith(b'\x89PNG')


def test_repeats_beside_their_mean():
    rows = [('unguided', None, None), ('a', 1, 'trainings'), ('b', 2, 'trainings')]
    groups = [group('unguided', 1, 2.0, None), group('trainings', 2, 1.5, 0.1, against='unguided', difference=-0.5,
                                                     relative=-0.25, error=0.1, verdict='lower')]
    _, right = study_figure([summary('repeats', rows, [2.0, 1.4, 1.6], ['', 'lower', 'lower'], 'unguided',
                                     groups)]).axes
    assert [text.get_text() for text in right.get_xticklabels()] == ['1', '2', 'mean']
    assert marks(right) == [(0, -30, False), (1, -20, False), (2, -25, False)]
