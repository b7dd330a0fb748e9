"""Values of a function together with its gradient."""

import torch


def value_and_grad(function, x: torch.Tensor, *args) -> tuple[torch.Tensor, torch.Tensor]:
    """function(x, *args) [N] and its gradient with respect to x [N, ...], from one evaluation, both detached.

    Each value may depend only on its own row of x.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = function(x, *args)
        gradient, = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient
