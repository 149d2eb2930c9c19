"""TODO (utils.features)"""

import copy

import torch
import torch.nn.functional as F
from tqdm import tqdm

THRESHOLD = 5000  # a weight with more (output, input) pairs is left out of the gradient's signs


def used_weights(model, threshold: int = THRESHOLD) -> list[str]:
    """Names of the weights whose gradients are used: no vectors, no convolution of more than `threshold` (o, i)."""
    return [n for n, p in model.named_parameters()
            if p.dim() == 2 or (p.dim() == 4 and p.shape[0] * p.shape[1] <= threshold)]


def sign_dimension(model, threshold: int = THRESHOLD) -> int:
    """Entries of a gradient's sign vector: 24,778 for a ResNet-34 of the published size with 10 classes."""
    weights = dict(model.named_parameters())
    sizes = [(weights[n].shape[0], weights[n].shape[1]) for n in used_weights(model, threshold)]
    return sum(o * i if o * i <= threshold else o for o, i in sizes)


def grad_sign_vector(model, x, y, threshold: int = THRESHOLD, batch: int = 50):
    """Signs (N, d) in {-1, 0, 1}, int8, of each image's own gradient of the cross-entropy, in eval mode.

    x (N, 3, H, W) uint8, or in [0, 1]; y (N,). A convolution (o, i, k, k) gives the largest of its k * k positions,
    a linear weight (o, i) every entry, or with more than `threshold` its largest over i; the sign comes last, as in
    the official code. The model is left as it was.
    """
    model = copy.deepcopy(model).eval().to(memory_format=torch.contiguous_format)
    for layer in model.modules():
        if hasattr(layer, "memory_format"):
            layer.memory_format = torch.contiguous_format  # the only one that vmap knows
    named = {n: p.detach() for n, p in model.named_parameters()}
    names = used_weights(model, threshold)
    used, rest = {n: named[n] for n in names}, {n: p for n, p in named.items() if n not in names}

    def loss(used, rest, x, y):
        return F.cross_entropy(torch.func.functional_call(model, (used, rest), (x[None],)), y[None])

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, None, 0, 0))
    some, rows = next(iter(named.values())), []
    parts = list(zip(x.split(batch), y.split(batch)))
    for part, labels in tqdm(parts, desc="gradients", unit="batch", disable=None, leave=False):
        part = part.to(some.device).to(some.dtype).div(1 if x.is_floating_point() else 255)
        found = gradients(used, rest, part, labels.to(some.device))
        rows.append(torch.cat([_pool_gradient(found[n], threshold) for n in names], 1).sign().to(torch.int8).cpu())
    return torch.cat(rows)


def _pool_gradient(gradient, threshold):
    """Gradients (B, o, i, ...) of one weight -> its entries of the vector (B, .)."""
    if gradient.dim() == 5:
        gradient = gradient.amax((3, 4))
    elif gradient[0].numel() > threshold:
        gradient = gradient.amax(2)
    return gradient.flatten(1)
