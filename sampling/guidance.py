"""Discriminator guidance (Kim et al. 2023): a log-ratio's gradient corrects the denoised image."""

import torch

from diffusion.vpsde import VPSDE

BOOST_CHURN_PERIOD = 5  # steps between renewed noise for rows the discriminator dislikes
BOOST_WEIGHT_PERIOD = 2  # steps between doubled guidance for them
BOOST_S_CHURN = 4.0
BOOST_S_NOISE = 1.0


def per_row(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """[] or [N] -> a shape that multiplies x [N, ...] row by row."""
    return values.reshape([-1] + [1] * (x.ndim - 1))


class Unguided:
    """The guidance that corrects nothing; what a sampler uses when it is given none."""

    boosting = False
    calls = 0

    def start(self) -> 'Unguided':
        return self

    def boosted(self, index: int) -> None:
        return None

    def first(self, index, x, sigma, levels, class_labels) -> float:
        return 0.0

    def second(self, x, sigma, levels, class_labels) -> float:
        return 0.0


class DiscriminatorGuidance:
    """How strongly and where a discriminator guides a sampler (Kim et al. 2023, section 3).

    log_ratio(x, sigma, class_labels=None) -> [N], log p_data(x; sigma) - log p_model(x; sigma) of images x with
    noise sigma ([] or [N]), differentiable in x; where it has `value_and_grad` with the same arguments, that is
    used. `weight_1st` scales the guidance of a step's first evaluation, `weight_2nd` that of Heun's second one
    (1 in both is exact). It acts where the VP time of sigma lies in [time_min, time_max], each row on its own.
    `boosting` doubles the first weight every second step for rows with a negative log-ratio, and gives rows
    whose last log-ratio was negative S_churn 4 and S_noise 1 every fifth step.
    Raises ValueError for an empty time range.
    """

    def __init__(self, log_ratio, weight_1st: float = 2.0, weight_2nd: float = 0.0, boosting: bool = False,
                 time_min: float = 0.01, time_max: float = 1.0):
        if not time_min < time_max:
            raise ValueError(f'guidance would never act: time_min {time_min:g} is not below time_max {time_max:g}')
        self.log_ratio, self.boosting = log_ratio, bool(boosting)
        self.weight_1st, self.weight_2nd = float(weight_1st), float(weight_2nd)
        mean, std = VPSDE().marginal(torch.tensor([time_min, time_max], dtype=torch.float64))
        low, high = (std / mean).tolist()
        self.sigma_low, self.sigma_high = low * (1 - 1e-6), high * (1 + 1e-6)  # the limits belong to the range

    def start(self) -> 'GuidedTrajectory':
        """The state of one batch's way through the sampler."""
        return GuidedTrajectory(self)

    def value_and_grad(self, x, sigma, class_labels):
        """The log-ratio [N] and its gradient [N, ...] at x, from one evaluation."""
        if hasattr(self.log_ratio, 'value_and_grad'):
            return self.log_ratio.value_and_grad(x, sigma, class_labels)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = self.log_ratio(x, sigma, class_labels)
            gradient, = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    def acts(self, levels: torch.Tensor) -> torch.Tensor:
        """Which noise levels lie where guidance acts (bool, of the shape of `levels`)."""
        return (levels >= self.sigma_low) & (levels <= self.sigma_high)


class GuidedTrajectory:
    """Guidance along one trajectory: remembers each row's last log-ratio, counts discriminator calls.

    Corrections are added to the denoised image: D + w sigma^2 grad log-ratio. In the drift (x - D) / sigma that is
    -w sigma grad log-ratio, DG's correction. `levels` are, on the host, all noise levels that a row may
    have; they decide without asking the device whether the discriminator is needed.
    """

    def __init__(self, guidance: DiscriminatorGuidance):
        self.guidance = guidance
        self.last_log_ratio: torch.Tensor | None = None  # [N], None: nothing known, no row is boosted
        self.calls = 0

    def boosted(self, index: int) -> torch.Tensor | None:
        """Rows [N] whose noise is renewed in step `index`; None where no row's is."""
        if not self.guidance.boosting or index % BOOST_CHURN_PERIOD or self.last_log_ratio is None:
            return None
        return self.last_log_ratio < 0

    def first(self, index, x, sigma, levels, class_labels) -> torch.Tensor | float:
        """The correction [N, ...] of a step's first denoised image at x with noise sigma ([] or [N])."""
        weight = self.guidance.weight_1st
        value, correction = self._evaluate(weight, x, sigma, levels, class_labels)
        self.last_log_ratio = value
        if value is not None and self.guidance.boosting and index % BOOST_WEIGHT_PERIOD == 0:
            correction = correction * per_row(1 + (value < 0).to(x.dtype), x)
        return correction

    def second(self, x, sigma, levels, class_labels) -> torch.Tensor | float:
        """The correction [N, ...] of the second denoised image of a Heun step."""
        return self._evaluate(self.guidance.weight_2nd, x, sigma, levels, class_labels)[1]

    def _evaluate(self, weight, x, sigma, levels, class_labels):
        inside = self.guidance.acts(levels)
        if weight == 0 or not inside.any():
            return None, 0.0
        self.calls += 1
        value, gradient = self.guidance.value_and_grad(x, sigma, class_labels)
        correction = weight * per_row(sigma ** 2, x) * gradient.to(x.dtype)
        if not inside.all():  # only boosting gives rows unlike levels
            rows = self.guidance.acts(sigma)
            correction = torch.where(per_row(rows, x), correction, 0.0)
            value = torch.where(rows, value, float('inf'))
        return value, correction
