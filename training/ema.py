"""The exponential moving average of a network's weights, which is what gets saved and used."""

import copy

import torch


class Ema:
    """A copy of `module` whose parameters follow it with a half-life counted in images (EDM, appendix F.2).

    Args:
        module: the network in training.
        halflife_nimg: images after which an old value has half its weight.
        rampup_ratio: the half-life is at most this fraction of the images seen so far; None for no ramp.
    """

    def __init__(self, module: torch.nn.Module, halflife_nimg: float, rampup_ratio: float | None = 0.05):
        self.halflife_nimg = halflife_nimg
        self.rampup_ratio = rampup_ratio
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    def beta(self, nimg: int, batch_size: int) -> float:
        """The weight of the old average in the update after a step that began at `nimg` images."""
        halflife = self.halflife_nimg
        if self.rampup_ratio is not None:
            halflife = min(halflife, nimg * self.rampup_ratio)
        return 0.5 ** (batch_size / max(halflife, 1e-8))

    @torch.no_grad()
    def update(self, module: torch.nn.Module, nimg: int, batch_size: int) -> None:
        """Move the average towards `module`; buffers are copied."""
        averages = list(self.module.parameters())
        if averages:
            torch._foreach_lerp_(averages, list(module.parameters()), 1 - self.beta(nimg, batch_size))
        for average, buffer in zip(self.module.buffers(), module.buffers()):
            average.copy_(buffer)
