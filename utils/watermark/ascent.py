"""Projected gradient ascent, the inner maximisation of Algorithm 1."""

import torch
import torch.nn.functional as F


def ascend(forward, x, y, *, steps: int, step_size: float, eps: float):
    """Projected gradient ascent on cross-entropy (Algorithm 1): argmax of CE(h(x + delta), y) over |delta|_inf <= eps.

    x (N, 3, H, W) in [0, 1]; y (N,); step_size and eps in pixel units (1/255 is one grey level). delta starts
    at 0; after each sign step it is projected onto the eps ball, and x + delta into [0, 1]. Returns x + delta,
    detached. Gradients are taken with respect to the images alone, so no `.grad` changes. The mode of BatchNorm is
    the caller's business.
    """
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    x_adv = x
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(forward(x_adv), y), x_adv)
        x_adv = torch.minimum(torch.maximum(x_adv.detach() + step_size * gradient.sign(), low), high)
    return x_adv.detach()
