"""The picture of a noise-level model: predicted against true levels."""

from matplotlib.figure import Figure

from .canvas import DPI


def calibration_curve(rows: list[dict]) -> Figure:
    """Median and 90 % range of the predicted level over the true one; `rows` of `training.noise_level.calibration`."""
    figure = Figure(figsize=(4.5, 4), dpi=1.5 * DPI, layout='constrained')
    axes = figure.subplots()
    true = [row['sigma'] for row in rows]
    axes.plot(true, true, color='grey', linewidth=0.8)
    axes.errorbar(true, [row['median'] for row in rows],
                  [[row['median'] - row['low'] for row in rows], [row['high'] - row['median'] for row in rows]],
                  marker='.', capsize=2)
    axes.set(xscale='log', yscale='log', xlabel='true noise level', ylabel='predicted noise level')
    axes.grid(alpha=0.3)
    return figure
