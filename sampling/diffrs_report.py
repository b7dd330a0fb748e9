"""Entries of a run's report that only diffusion rejection sampling has: warm-up, cap, acceptance by level."""

import numpy as np


def details(costs: dict[str, np.ndarray], sigmas: np.ndarray, warmup: int) -> dict:
    """Entries of the report (JSON-able): warmup, cap_hits, samples_at_cap, levels.

    costs: cap_hits [N]; tests and rejections [levels], sums over samples. warmup: trajectories of the warm-up, whose
    evaluations are counted separately from those per image. A rejection at level 0 draws from the prior again, one at
    another level goes back (published rule) or to the prior.
    """
    tests, rejections = costs['tests'], costs['rejections']
    levels = [dict(level=level, sigma=float(sigma), tests=int(tests[level]), rejections=int(rejections[level]),
                   acceptance=None if tests[level] == 0 else float(1 - rejections[level] / tests[level]))
              for level, sigma in enumerate(sigmas)]
    return dict(warmup=dict(trajectories=warmup, nfe=warmup * (2 * len(sigmas) - 3)),
                cap_hits=int(costs['cap_hits'].sum()), samples_at_cap=int((costs['cap_hits'] > 0).sum()), levels=levels)


def describe(report: dict) -> str:
    """These entries as text for the screen."""
    warmup = report['warmup']
    lines = [f'{report["images"]} images; {report["samples_at_cap"]} of them hit the cap, '
             f'{report["cap_hits"]} restarts because of it',
             f'the warm-up of {warmup["trajectories"]} trajectories, {warmup["nfe"]} evaluations, is not counted above']
    if report['precision'] != 'float32':
        lines.append(f'{report["precision"]} may flip single decisions; such a sample differs, but has the same '
                     f'distribution (docs/equations.md)')
    lines.append('level     sigma    tests  rejected  acceptance')
    lines += [f'{row["level"]:5d} {row["sigma"]:9.4g} {row["tests"]:8d} {row["rejections"]:9d} '
              f'{row["acceptance"]:11.3f}' for row in report['levels'] if row['tests']]
    return '\n'.join(lines)
