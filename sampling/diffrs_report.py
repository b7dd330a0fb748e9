"""What a run of diffusion rejection sampling cost, read from its samples."""

import numpy as np

from generation.folder import read_counts

COSTS = ('nfe', 'discriminator_calls')


def collect(outdir) -> dict[str, np.ndarray]:
    """What the samples in a folder cost: nfe, discriminator_calls, cap_hits int32 [N]; tests, rejections int64 [k].

    tests and rejections, by level, are summed file by file, so that 50 million samples need 600 MB.
    Raises ValueError where the folder holds no samples of this sampler.
    """
    each, sums = {name: [] for name in (*COSTS, 'cap_hits')}, dict.fromkeys(('tests', 'rejections'), 0)
    for counts in read_counts(outdir):
        if not {*each, *sums} <= set(counts):
            raise ValueError(f'{outdir} holds samples without the counts of diffusion rejection sampling')
        for name, parts in each.items():
            parts.append(counts[name].astype(np.int32))
        for name in sums:
            sums[name] = sums[name] + counts[name].sum(0)
    if not each['nfe']:
        raise ValueError(f'{outdir} holds no samples')
    return {name: np.concatenate(parts) for name, parts in each.items()} | sums


def make_report(counts: dict[str, np.ndarray], sigmas, precision: str, warmup: int, wall_sec: float = 0.0,
                timed_images: int = 0) -> dict:
    """Means and quantiles per image, acceptance and rejections per level (JSON-able).

    precision: of the networks; warmup: trajectories of the warm-up, whose evaluations are counted beside, not in,
    those per image; wall_sec, timed_images: how long the calls that came to their end drew, and how many images.
    A rejection at level 0 draws from the prior again; at the others it goes back (published rule) or to the prior.
    """
    tests, rejections = counts['tests'], counts['rejections']
    report = dict(images=len(counts['nfe']), wall_sec=wall_sec, timed_images=timed_images, precision=precision,
                  warmup=dict(trajectories=warmup, nfe=warmup * (2 * len(sigmas) - 3)),
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


def format_report(report: dict) -> str:
    """The report as text for the screen."""
    warmup, timed = report['warmup'], report['timed_images']
    lines = [f'{report["images"]} images; {report["samples_at_cap"]} of them hit the cap, '
             f'{report["cap_hits"]} restarts because of it',
             f'the calls that came to their end drew {timed} images in {report["wall_sec"]:.1f} s',
             f'the warm-up of {warmup["trajectories"]} trajectories, {warmup["nfe"]} evaluations, is not counted below',
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
