"""Entries of a run's report that only denoising MCMC has: the correlation of its samples, and their start levels."""

import numpy as np

LAGS = (1, 2, 4, 8, 16)  # in outputs of a chain
BINS = 10  # of the histogram of noise levels


def details(features: np.ndarray, start_level: np.ndarray, sigmas: np.ndarray, chains: int, split: dict) -> dict:
    """JSON-able entries of a report.

    features [n, F] and start_level [n] (index into sigmas [K], the largest first) of the samples, sample k being output
    k div chains of chain k mod chains; split: evaluations of the score network per image and chain by purpose.
    """
    edges = np.geomspace(sigmas.min(), sigmas.max(), BINS + 1)
    starts = sigmas[start_level]
    counts, _ = np.histogram(starts, np.concatenate([[0], edges[1:-1], [np.inf]]))
    report = dict(nfe_split=split, start_sigma=dict(
        median=float(np.median(starts)), edges=[float(edge) for edge in edges], counts=counts.tolist()))
    outputs = len(features) // chains
    if outputs < 4:  # too few for an estimate
        return report | dict(autocorrelation={}, effective_samples=None)
    series = features[:outputs * chains].reshape(outputs, chains, -1).astype(np.float64)
    rho = autocorrelation(series)  # [outputs, F]
    sizes = effective_sizes(rho, outputs * chains)
    return report | dict(
        autocorrelation={str(lag): float(rho[lag].mean()) for lag in LAGS if lag < outputs},
        effective_samples=dict(min=float(sizes.min()), median=float(np.median(sizes)), of=outputs * chains))


def autocorrelation(series: np.ndarray) -> np.ndarray:
    """Autocorrelation [T, F] of series [T, chains, F] at each lag, with the variance within and between chains.

    rho_t = 1 - (W - mean autocovariance at t) / var+ (Gelman et al., Bayesian Data Analysis, 3rd edition, section 11.5;
    Vehtari et al. 2021, eq. 10): chains that stay in different places are as correlated as they look.
    """
    T, chains, _ = series.shape
    centred = series - series.mean(0)
    spectrum = np.fft.rfft(centred, 2 * T, axis=0)
    covariance = np.fft.irfft(spectrum * spectrum.conj(), axis=0)[:T].mean(1) / T  # [T, F]
    within = covariance[0] * T / (T - 1)
    between = series.mean(0).var(0, ddof=1) if chains > 1 else 0.0
    total = np.maximum(covariance[0] + between, 1e-300)
    rho = 1 - (within - covariance) / total
    rho[0] = 1
    return rho


def effective_sizes(rho: np.ndarray, n: int) -> np.ndarray:
    """Effective sample size [F] of n values with autocorrelation rho [T, F], by Geyer's initial positive sequence."""
    pairs = rho[:len(rho) // 2 * 2].reshape(-1, 2, rho.shape[1]).sum(1)  # [T div 2, F]
    positive = np.cumprod(pairs > 0, axis=0)
    falling = np.minimum.accumulate(pairs * positive, axis=0)
    return n / np.maximum(2 * falling.sum(0) - 1, 1 / np.log10(max(n, 10)))


def describe(report: dict) -> str:
    """The same for the screen, with a warning if few of the samples are independent."""
    split, sigma = report['nfe_split'], report['start_sigma']
    lines = ['of which ' + ', '.join(f'{value:g} {name.replace("_", " ")}' for name, value in split.items()),
             f'denoised from a median noise level of {sigma["median"]:.3g}']
    size = report['effective_samples']
    if size is None:
        lines.append('too few outputs of each chain to estimate their correlation')
    else:
        lag, value = next(iter(report['autocorrelation'].items()))
        lines.append(f'effective sample size {size["median"]:.0f} of {size["of"]} (least {size["min"]:.0f}), '
                     f'autocorrelation {value:.2f} at lag {lag}')
        if size['median'] < size['of'] / 2:
            lines.append(f'Warning: a Frechet distance of these samples has the error of one of about '
                         f'{size["median"]:.0f} independent ones; more --chains or a larger --n_skip help')
    return '\n'.join(lines)
