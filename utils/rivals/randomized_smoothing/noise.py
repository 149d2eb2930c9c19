"""Gaussian noise on a model's parameters, and gradients at noisy parameters (RS; Bansal et al., 2022).

Departure from the authors' code: noisy parameters are copies, because adding noise to the parameters and subtracting
it again lets them drift.
"""

import torch
import torch.nn.functional as F
from torch.func import functional_call

from utils.system.machine import autocast


def noise_levels(sigma_max: float, step: float) -> list[float]:
    """The standard deviations 0, step, ..., sigma_max of the noise, in the parameters' own units."""
    return [step * j for j in range(round(sigma_max / step) + 1)]


def generator_on(device, generator) -> torch.Generator:
    """A generator on the device, seeded by `generator` on the CPU.

    Noise for 21 million parameters that is drawn on the CPU would keep a GPU waiting.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def gaussian_noise(parameters, generator):
    """N(0, 1) noise: a list of tensors of the shapes of `parameters`; `generator` on their device."""
    first = parameters[0]
    sizes = [p.numel() for p in parameters]
    noise = torch.randn(sum(sizes), generator=generator, device=first.device, dtype=first.dtype).split(sizes)
    return [part.view(p.shape) for part, p in zip(noise, parameters)]


def noisy_gradient(model, x, y, sigma: float, draws: int, generator, amp=None):
    """Mean over `draws` noise draws of the cross-entropy's gradient at theta + sigma * N(0, I); a tensor a parameter.

    x (B, 3, 32, 32) in [0, 1], y (B,); sigma in the parameters' own units; `generator` on the model's device. Noise is
    added to every parameter, scale and shift of BatchNorm included. The model's own parameters are not changed; in
    train mode the noisy passes update BatchNorm's running statistics, as in the authors' code.
    """
    names, clean = zip(*((name, p.detach()) for name, p in model.named_parameters()))
    total = [torch.zeros_like(p) for p in clean]
    for _ in range(draws):
        moved = [torch.add(p, n, alpha=sigma).requires_grad_() for p, n in zip(clean, gaussian_noise(clean, generator))]
        with autocast(x.device.type, amp):
            logits = functional_call(model, dict(zip(names, moved)), (x,))
        loss = F.cross_entropy(logits.float() if amp else logits, y)
        torch._foreach_add_(total, torch.autograd.grad(loss, moved), alpha=1 / draws)
    return total
