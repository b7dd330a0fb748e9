"""The value of a function of images together with its gradient."""

import torch


def value_and_grad(function, x: torch.Tensor, *args) -> tuple[torch.Tensor, torch.Tensor]:
    """function(x, *args) [N] and the gradient of each entry with respect to its row of x [N, ...]."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = function(x, *args)
        gradient, = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient
