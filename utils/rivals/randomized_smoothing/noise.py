"""TODO (utils.smoothing)"""

import torch
import torch.nn.functional as F
from torch.func import functional_call


def noise_levels(sigma_max: float, step: float) -> list[float]:
    """The noise levels 0, step, ..., sigma_max."""
    return [step * j for j in range(round(sigma_max / step) + 1)]


def generator_on(device, generator) -> torch.Generator:
    """A generator on the device, seeded by one of the CPU: drawing 21 million numbers there takes a GPU's patience."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def gaussian_noise(parameters, generator):
    """N(0, 1) noise, a tensor for each of `parameters`, in their shapes."""
    first = parameters[0]
    sizes = [p.numel() for p in parameters]
    noise = torch.randn(sum(sizes), generator=generator, device=first.device, dtype=first.dtype).split(sizes)
    return [part.view(p.shape) for part, p in zip(noise, parameters)]


def noisy_gradient(model, x, y, sigma: float, draws: int, generator, amp: bool = False):
    """Mean gradient of the cross-entropy of (x, y) at `draws` points theta + sigma * N(0, I), a tensor a parameter.

    x (B, 3, 32, 32) in [0, 1], y (B,); sigma in the weights' own units; `generator` on the model's device. Every
    parameter is noisy, scale and shift of BatchNorm too. The parameters themselves are not touched; in train mode
    BatchNorm's running statistics follow the noisy passes, as officially.
    """
    names, clean = zip(*((name, p.detach()) for name, p in model.named_parameters()))
    total = [torch.zeros_like(p) for p in clean]
    for _ in range(draws):
        moved = [torch.add(p, n, alpha=sigma).requires_grad_() for p, n in zip(clean, gaussian_noise(clean, generator))]
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            logits = functional_call(model, dict(zip(names, moved)), (x,))
        loss = F.cross_entropy(logits.float() if amp else logits, y)
        torch._foreach_add_(total, torch.autograd.grad(loss, moved), alpha=1 / draws)
    return total
