"""The cost of a run, read from its samples: one report for every sampler, in options.json and on the screen."""

import numpy as np

from .folder import read_costs

NAMES = ('nfe', 'discriminator_calls')  # the network calls, in the order of the table


def collect(outdir) -> dict[str, np.ndarray]:
    """Costs of the samples in a folder: int32 [N] by name; counts by level are summed to int64 [levels].

    Files are read one by one, so that 50 million samples need 600 MB. Samples written by an earlier version have no
    costs and are not among the N.
    """
    found: dict[str, list] = {}
    for costs in read_costs(outdir):
        for name, values in costs.items():
            if np.issubdtype(values.dtype, np.integer):
                found.setdefault(name, []).append(values.astype(np.int32) if values.ndim == 1 else values.sum(0))
    return {name: np.concatenate(parts) if parts[0].ndim and parts[0].dtype == np.int32 else np.sum(parts, axis=0)
            for name, parts in found.items()}


def make_report(costs: dict[str, np.ndarray], precision: str, wall_sec: float = 0.0, timed_images: int = 0) -> dict:
    """Means and quantiles per image (JSON-able).

    precision: of the networks; wall_sec, timed_images: the time that completed calls of `run` took, and the images that
    they drew.
    """
    report = dict(images=len(costs['nfe']), wall_sec=wall_sec, timed_images=timed_images, precision=precision)
    for name in _shown(costs):
        q05, median, q95, largest = np.quantile(costs[name], [0.05, 0.5, 0.95, 1.0])
        report[name] = dict(mean=float(costs[name].mean()), q05=float(q05), median=float(median), q95=float(q95),
                            max=float(largest))
    return report


def format_report(report: dict) -> str:
    """The report as text for the screen."""
    rows = {name: row for name, row in report.items() if isinstance(row, dict) and 'q95' in row}
    lines = [f'completed calls drew {report["timed_images"]} images in {report["wall_sec"]:.1f} s']
    if all(row['q05'] == row['max'] for row in rows.values()):
        return '\n'.join(lines + ['per image: ' + ', '.join(
            f'{row["mean"]:g} {TITLES.get(name, name)}' for name, row in rows.items())])
    lines.append('per image             mean   median      5%     95%     max')
    lines += [f'{name:20s} {row["mean"]:6.1f} {row["median"]:8.1f} {row["q05"]:7.1f} {row["q95"]:7.1f} '
              f'{row["max"]:7.0f}' for name, row in rows.items()]
    return '\n'.join(lines)


TITLES = dict(nfe='evaluations of the score network', discriminator_calls='evaluations of the discriminator')


def _shown(costs: dict[str, np.ndarray]) -> list[str]:
    """The costs that a report shows: nfe, discriminator_calls, and other *_calls."""
    return [*NAMES, *sorted(name for name in costs if name.endswith('_calls') and name not in NAMES)]
