"""Discriminator guidance (Kim et al. 2023): the gradient of a log-ratio corrects the denoised image."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from diffusion.gradients import value_and_grad
from diffusion.vpsde import VPSDE
from torch_utils.transfer import upload

from .denoiser import UNKNOWN, At, Denoiser, GuidedDenoiser, as_denoiser, per_row
from .levels import Churn


@dataclass(frozen=True)
class Boosting:
    """More guidance of rows with a negative log-ratio: twice the first weight in some steps, more churn in others.

    The defaults are those of DG's code; docs/equations.md has the schedules of BOOSTINGS side by side.
    """

    weight_period: int = 2  # steps between doubled guidance
    churn_period: int = 5  # steps between renewed noise
    first: int = 0  # the first step of both, from 0; less than the periods
    S_churn: float = 4.0
    S_noise: float = 1.0

    def doubles(self, step: int) -> bool:
        """Whether boosted rows get twice the weight in a step."""
        return step % self.weight_period == self.first

    def renews(self, step: int) -> bool:
        """Whether boosted rows get more churn in a step."""
        return step % self.churn_period == self.first

    def churn(self, churn: Churn) -> Churn:
        """The churn of boosted rows; it acts between the levels S_min and S_max of `churn`."""
        return replace(churn, S_churn=self.S_churn, S_noise=self.S_noise)


BOOSTINGS = dict(dg=Boosting(), reproduction=Boosting(churn_period=2), paper=Boosting(churn_period=2, first=1))


class DiscriminatorGuidance:
    """How strongly and where a discriminator guides a sampler (Kim et al. 2023, section 3).

    Called with a score network or a denoiser, it returns the guided denoiser of one batch.

    log_ratio(x, sigma, class_labels=None) -> [N], log p_data(x; sigma) - log p_model(x; sigma) of images x with
    noise sigma ([] or [N]), differentiable in x; if it has `value_and_grad` with the same arguments, that is
    used; if it has `discriminator_calls`, an evaluation counts as that many calls; its `sigma_unit`, if any, is noise
    level 1 in units of images in [-1, 1]. `weight_1st` scales the guidance of a step's first evaluation, `weight_2nd`
    that of Heun's second one (1 in both is exact). `boosting`: a Boosting, or True for DG's. Guidance acts if the VP
    time of sigma lies in [time_min, time_max], separately for each row. Raises ValueError for an empty time range.
    """

    def __init__(self, log_ratio, weight_1st: float = 2.0, weight_2nd: float = 0.0,
                 boosting: Boosting | bool | None = None, time_min: float = 0.01, time_max: float = 1.0):
        if not time_min < time_max:
            raise ValueError(f'guidance would never act: time_min {time_min:g} is not below time_max {time_max:g}')
        self.log_ratio, self.boosting = log_ratio, Boosting() if boosting is True else boosting or None
        self.calls = getattr(log_ratio, 'discriminator_calls', 1)  # discriminators that an evaluation calls
        self.weight_1st, self.weight_2nd = float(weight_1st), float(weight_2nd)
        mean, std = VPSDE().marginal(torch.tensor([time_min, time_max], dtype=torch.float64))
        low, high = (std / mean / getattr(log_ratio, 'sigma_unit', 1)).tolist()
        self.sigma_low, self.sigma_high = low * (1 - 1e-6), high * (1 + 1e-6)  # the limits are inside the range

    def __call__(self, net) -> 'DiscriminatorGuided':
        return DiscriminatorGuided(self, as_denoiser(net))

    def value_and_grad(self, x, sigma, class_labels):
        """The log-ratio [N] and its gradient [N, ...] at x, from one evaluation."""
        if hasattr(self.log_ratio, 'value_and_grad'):
            return self.log_ratio.value_and_grad(x, sigma, class_labels)
        return value_and_grad(self.log_ratio, x, sigma, class_labels)

    def acts(self, sigmas: torch.Tensor) -> torch.Tensor:
        """Which noise levels lie in the time range (bool, of the shape of `sigmas`)."""
        return (sigmas >= self.sigma_low) & (sigmas <= self.sigma_high)


class DiscriminatorGuided(GuidedDenoiser):
    """A batch's guided denoiser D + w sigma^2 grad log-ratio; remembers the last log-ratios of first evaluations.

    In the drift (x - D) / sigma the correction is -w sigma grad log-ratio, as in DG. Which rows the discriminator sees
    follows from the noise levels that the host knows, without waiting for the device.
    """

    def __init__(self, guidance: DiscriminatorGuidance, inner: Denoiser):
        super().__init__(inner)
        self.guidance = guidance
        self.last_log_ratio: torch.Tensor | None = None  # [N]; None: not known, no row is boosted

    @property
    def boosting(self):
        return self.guidance.boosting or self.inner.boosting

    def boosted(self, step):
        boosting = self.guidance.boosting
        if boosting is None or not boosting.renews(step) or self.last_log_ratio is None:
            return super().boosted(step)
        return self.last_log_ratio < 0

    def __call__(self, x, sigma, class_labels=None, at: At = UNKNOWN):
        sigma, at = sigma.to(x.device), at.known(sigma)
        denoised = self.inner(x, sigma, class_labels, at)
        weights, value = self._weights(at, len(x)), None  # [N] on the host

        def correction(rows, x, sigma, class_labels, at):
            nonlocal value
            value, correction = self._correction(weights[rows], x, sigma, class_labels, at)
            return correction

        denoised = self.add(correction, denoised, np.flatnonzero(weights), x, sigma, class_labels, at)
        if not np.any(at.second):
            self.last_log_ratio = value if weights.all() else None
        return denoised

    def _weights(self, at: At, size: int) -> np.ndarray:
        """The weight of each row's correction [N]; 0 if the host knows that it is not needed."""
        weights = np.where(at.second, self.guidance.weight_2nd, self.guidance.weight_1st)
        acts = self.guidance.acts(at.sigmas).numpy()
        weights = weights * (acts.any() if at.either else acts)
        return np.broadcast_to(weights, [size]).copy()

    def _correction(self, weights, x, sigma, class_labels, at: At):
        """The log-ratios [N], infinite outside the time range, and the weighted corrections [N, ...], float64."""
        self.costs.count('discriminator_calls', at.rows, self.guidance.calls)
        value, gradient = self.guidance.value_and_grad(x, sigma, class_labels)
        alike = (weights == weights[0]).all()
        weight = weights[0].item() if alike else per_row(upload(torch.from_numpy(weights), x.device), x)
        correction = weight * per_row(sigma ** 2, x) * gradient.to(x.dtype)
        if at.either and not self.guidance.acts(at.sigmas).all():
            inside = self.guidance.acts(sigma).expand(len(x))
            correction = torch.where(per_row(inside, x), correction, 0.0)
            value = torch.where(inside, value, float('inf'))
        boosting = self.guidance.boosting
        if boosting is not None and at.step is not None and not at.second and boosting.doubles(at.step):
            correction = correction * per_row(1 + (value < 0).to(x.dtype), x)
        return value, correction.to(torch.float64)
