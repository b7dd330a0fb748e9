"""Solvers that reuse earlier evaluations: DPM-Solver++(3M), UniPC, DEIS and iPNDM; one evaluation per step.

Each advances x by a weighted sum of the last few network outputs. The weights are known in advance, so a solver is a
function that returns its weights. Two forms of the same equation dx/dsigma = (x - D) / sigma are in use. With the noise
e = (x - D) / sigma, x(t) = x(s) + integral of e dsigma. With lambda = -log sigma (Lu et al. 2022b, proposition 4.1),
x(t) = (t / s) x(s) + t integral of exp(lambda) D dlambda. A polynomial through the last outputs is integrated exactly.
"""

import math
from collections.abc import Callable, Sequence

import torch

from torch_utils.transfer import upload

from .denoiser import At, as_denoiser
from .edm import Step
from .levels import Levels, edm_levels


def polynomial_weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """w with sum_j w_j f(nodes_j) = the integral of f, for all polynomials f with fewer terms than nodes.

    moments: the integrals of 1, u, u^2, ...
    """
    powers = torch.tensor(nodes, dtype=torch.float64) ** torch.arange(len(nodes), dtype=torch.float64)[:, None]
    return torch.linalg.solve(powers, torch.tensor(moments[:len(nodes)], dtype=torch.float64)).tolist()


def exponential_weights(sigma: float, sigma_next: float, nodes: Sequence[float]) -> list[float]:
    """Weights of D at the noise levels `nodes`: the integral of sigma_next exp(lambda) D from sigma to sigma_next.

    In u = (lambda - lambda(sigma)) / h the moments are m_k = h exp(-h) integral of u^k exp(h u) over [0, 1], with
    m_0 = 1 - exp(-h) and m_k = 1 - k m_{k-1} / h.
    """
    h = math.log(sigma / sigma_next)
    return polynomial_weights([math.log(sigma / node) / h for node in nodes], _exponential_moments(h, len(nodes)))


def _exponential_moments(h: float, count: int) -> list[float]:
    """m_0, ..., m_{count-1}; by a series if h is small, where the recursion cancels."""
    if h > 1:
        moments = [-math.expm1(-h)]
        for k in range(1, count):
            moments.append(1 - k * moments[-1] / h)
        return moments
    # The integral of u^k exp(h u) is sum_j h^j / (j! (k + j + 1)).
    return [h * math.exp(-h) * sum(h ** j / (math.factorial(j) * (k + j + 1)) for j in range(20)) for k in range(count)]


def dpmpp_3m(levels: Sequence[float], i: int) -> list[float]:
    """DPM-Solver++(3M) (Lu et al. 2022b): on D at levels i, i - 1, i - 2.

    The published code weighs the second difference by half of its integral, which makes its order 2.
    """
    return exponential_weights(levels[i], levels[i + 1], levels[i::-1][:3])


def unipc(levels: Sequence[float], i: int) -> list[float]:
    """UniPC's corrector UniC-3 (Zhao et al. 2023, section 3): on D at levels i + 1, i, i - 1, i - 2.

    B(h) cancels, since the weights solve its order conditions; the published code uses 1/2 in the first two steps.
    """
    return exponential_weights(levels[i], levels[i + 1], levels[i + 1::-1][:4])


def deis(levels: Sequence[float], i: int) -> list[float]:
    """tAB-DEIS with cubic polynomials (Zhang and Chen 2023): on e at levels i, ..., i - 3."""
    h = levels[i + 1] - levels[i]
    nodes = [(node - levels[i]) / h for node in levels[i::-1][:4]]
    return [h * weight for weight in polynomial_weights(nodes, [1 / (k + 1) for k in range(4)])]


ADAMS_BASHFORTH = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def ipndm(levels: Sequence[float], i: int) -> list[float]:
    """iPNDM (Zhang and Chen 2023; Liu et al. 2022): Adams and Bashforth's weights for equal steps, on e."""
    return [(levels[i + 1] - levels[i]) * weight for weight in ADAMS_BASHFORTH[min(i, 3)]]


# Whether the weights are for D (else for the noise e), and the weights of a step (for UniPC those of its predictor).
MULTISTEP: dict[str, tuple[bool, Callable]] = {
    'dpmpp_3m': (True, dpmpp_3m), 'unipc': (True, dpmpp_3m), 'deis': (False, deis), 'ipndm': (False, ipndm)}


@torch.no_grad()
def multistep_sampler(net, latents, class_labels=None, *, levels: Levels | None = None, solver: str = 'unipc',
                      randn_like=None, callback=None):
    """Images [N, C, H, W], float64, with n evaluations for n steps; arguments as for `edm_sampler`.

    solver: one of `MULTISTEP`. The step to zero noise takes the denoised image, as EDM's does. No noise is drawn.
    Raises ValueError for another solver, for churn (it would invalidate what is reused) and for boosting.
    """
    denoise, levels = as_denoiser(net), levels or edm_levels(net)
    if solver not in MULTISTEP:
        raise ValueError(f'{solver!r} is not a solver; use one of {", ".join(MULTISTEP)}')
    if levels.noise.any():
        raise ValueError(f'{solver} reuses earlier evaluations, which added noise would invalidate; leave out S_churn')
    if denoise.boosting is not None:
        raise ValueError('boosting works only with the EDM sampler and Restart')
    data, weights = MULTISTEP[solver]
    sigmas, num_steps = levels.sigmas.tolist(), levels.num_steps
    on_device = upload(levels.sigmas, latents.device)

    x, start, history = latents.to(torch.float64) * sigmas[0], None, []  # history: the newest output first
    for i in range(num_steps):
        denoised = denoise(x, on_device[i], class_labels, at=At(levels.sigmas[i:i + 1], step=i))
        history.insert(0, denoised if data else (x - denoised) / sigmas[i])
        if solver == 'unipc' and i:  # correct the state with the network's output there
            x = _advance(start, sigmas, i - 1, True, unipc, history)
        start, x = x, denoised if i == num_steps - 1 else _advance(x, sigmas, i, data, weights, history)
        del history[4:]
        if callback is not None:
            callback(Step(i, num_steps, sigmas[i], sigmas[i + 1], x, denoised))
    return x


def _advance(x, sigmas, i: int, data: bool, weights, history):
    """The state at level i + 1 from x at level i."""
    x = x * (sigmas[i + 1] / sigmas[i]) if data else x
    return x + sum(weight * output for weight, output in zip(weights(sigmas, i), history, strict=False))
