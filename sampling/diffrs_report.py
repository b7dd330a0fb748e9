"""What a run of diffusion rejection sampling cost, read from its shards."""

import json
from pathlib import Path

import numpy as np

from dnnlib.files import atomic_write

COSTS = ('nfe', 'discriminator_calls')
REPORT = 'diffrs_report.json'


def collect(outdir) -> dict[str, np.ndarray]:
    """What the samples in a folder cost: nfe, discriminator_calls, cap_hits int32 [N]; tests, rejections int64 [k].

    tests and rejections, by level, are summed shard by shard, so that 50 million samples need 600 MB.
    Raises ValueError where the folder holds no samples of this sampler.
    """
    each, sums = {name: [] for name in (*COSTS, 'cap_hits')}, dict.fromkeys(('tests', 'rejections'), 0)
    for path in sorted(Path(outdir).glob('samples_*.npz')):
        with np.load(path, allow_pickle=False) as file:
            if not {*each, *sums} <= set(file.files):
                raise ValueError(f'{path} holds no counts of diffusion rejection sampling')
            for name, parts in each.items():
                parts.append(file[name].astype(np.int32))
            for name in sums:
                sums[name] = sums[name] + file[name].sum(0)
    if not each['nfe']:
        raise ValueError(f'{outdir} holds no shards samples_*.npz')
    return {name: np.concatenate(parts) for name, parts in each.items()} | sums


def make_report(counts: dict[str, np.ndarray], sigmas, wall_sec: float, precision: str) -> dict:
    """Means and quantiles per image, acceptance and rejections per level (JSON-able); `precision` of the networks.

    A rejection at level 0 draws from the prior again; at the others it goes back (published rule) or to the prior.
    """
    tests, rejections = counts['tests'], counts['rejections']
    report = dict(images=len(counts['nfe']), wall_sec=wall_sec, precision=precision,
                  cap_hits=int(counts['cap_hits'].sum()), samples_at_cap=int((counts['cap_hits'] > 0).sum()))
    for name in COSTS:
        quantiles = np.quantile(counts[name], [0.05, 0.5, 0.95, 1.0])
        report[name] = dict(mean=float(counts[name].mean()), q05=float(quantiles[0]), median=float(quantiles[1]),
                            q95=float(quantiles[2]), max=float(quantiles[3]))
    report['levels'] = [
        dict(level=level, sigma=float(sigma), tests=int(tests[level]), rejections=int(rejections[level]),
             acceptance=None if tests[level] == 0 else float(1 - rejections[level] / tests[level]))
        for level, sigma in enumerate(sigmas)]
    return report


def save_report(outdir, report: dict) -> None:
    """Write diffrs_report.json beside the samples."""
    with atomic_write(Path(outdir) / REPORT) as file:
        file.write((json.dumps(report, indent=1) + '\n').encode())


def format_report(report: dict) -> str:
    """The report as text for the screen."""
    lines = [f'{report["images"]} images; {report["samples_at_cap"]} of them hit the cap, '
             f'{report["cap_hits"]} restarts because of it',
             'per image             mean   median      5%     95%     max']
    for name in COSTS:
        row = report[name]
        lines.append(f'{name:20s} {row["mean"]:6.1f} {row["median"]:8.1f} {row["q05"]:7.1f} {row["q95"]:7.1f} '
                     f'{row["max"]:7.0f}')
    if report['precision'] != 'float32':
        lines.append(f'{report["precision"]} may flip single decisions: such a sample is another one of the same '
                     f'distribution (docs/equations.md)')
    lines.append('level     sigma    tests  rejected  acceptance')
    for row in report['levels']:
        if row['tests']:
            lines.append(f'{row["level"]:5d} {row["sigma"]:9.4g} {row["tests"]:8d} {row["rejections"]:9d} '
                         f'{row["acceptance"]:11.3f}')
    return '\n'.join(lines)
