"""The likelihood of images under a reflected diffusion model, by its probability flow."""

import math

import torch

from torch_utils.transfer import upload

from .denoiser import At, as_denoiser
from .reflected import ProbabilityFlow
from .rk45 import rk45


def log_likelihood(net, x: torch.Tensor, probe: torch.Tensor, class_labels=None, *, moll: float = 0,
                   rtol: float = 1e-5, atol: float = 1e-5) -> torch.Tensor:
    """log p(x) [N] in nats, float64: the density on the cube to which the flow takes the uniform prior.

    The prior has density 1, so log p(x) is the integral over time of the flow's divergence along the trajectory
    through x (Chen et al., Neural ODEs, NeurIPS 2018), estimated without bias by probe^T (d drift / dx) probe
    (Hutchinson 1990; Grathwohl et al., FFJORD, ICLR 2019).

    Args:
        net: reflected score network or denoiser, differentiable; p is the density at its sigma_min.
        x: [N, C, H, W] in [0, 1].
        probe: [N, C, H, W], of independent entries +1 and -1, the same along each trajectory.
        moll: see `mollifier`. With 0 the flow of an imperfect network may cross a wall, which adds to its error; with
            the sampler's value the density is that of the images which `reflected_ode` draws.
    """
    if not ((x >= 0) & (x <= 1)).all():
        raise ValueError(f'images range from {x.min():g} to {x.max():g}, not within [0, 1]')
    denoise, flow, shape = as_denoiser(net), ProbabilityFlow(net, moll), x.shape[1:]
    probe = probe.flatten(1).to(torch.float64)

    def slopes(t, state, rows):
        """d/dt of (x, log p) [n, dims + 1]."""
        index, sigmas = upload(torch.from_numpy(rows), state.device), flow.sde.sigma(t)
        labels = None if class_labels is None else class_labels[index]
        with torch.enable_grad():
            x = state[:, :-1].detach().requires_grad_()
            images = x.unflatten(1, shape)
            denoised = denoise(images, upload(sigmas, x.device), labels, at=At(sigmas, rows=rows))
            drift = flow.drift(images, denoised).flatten(1)
            pulled, = torch.autograd.grad((drift * probe[index]).sum(), x)
        return torch.cat([drift.detach(), (pulled * probe[index]).sum(1, keepdim=True)], dim=1)

    state = torch.cat([x.flatten(1).to(torch.float64), probe.new_zeros([len(x), 1])], dim=1)
    return rk45(slopes, state, 0.0, 1.0, rtol=rtol, atol=atol)[:, -1]


def bits_per_dim(nats: torch.Tensor, dims: int, values: int = 256) -> torch.Tensor:
    """Bits per dimension of uint8 images k from the log-density of (k + u) / 256, u uniform: on average over
    u an upper bound for the discrete likelihood (Theis et al., ICLR 2016). The uniform density has log2(values) = 8."""
    return math.log2(values) - nats / (dims * math.log(2))
