"""EEF's features of an image: the signs of a model's gradient on it.

A model trained on styled images answers like any other, but its gradients on such images differ. Departure from the
authors' code: gradients are taken without crop and flip.
"""

import copy

import torch
import torch.nn.functional as F
from tqdm import tqdm

THRESHOLD = 5000  # convolutions with more (output, input) pairs are left out, larger linear weights are pooled


def used_weights(model, threshold: int = THRESHOLD) -> list[str]:
    """Names of the weights whose gradients are used: linear weights, and convolutions of at most `threshold` (o, i)."""
    return [n for n, p in model.named_parameters()
            if p.dim() == 2 or (p.dim() == 4 and p.shape[0] * p.shape[1] <= threshold)]


def sign_dimension(model, threshold: int = THRESHOLD) -> int:
    """Length d of a sign vector: 24,778 for a ResNet-34 of the published size with 10 classes."""
    weights = dict(model.named_parameters())
    sizes = [(weights[n].shape[0], weights[n].shape[1]) for n in used_weights(model, threshold)]
    return sum(o * i if o * i <= threshold else o for o, i in sizes)


def grad_sign_vector(model, x, y, threshold: int = THRESHOLD, batch: int = 50):
    """Signs (N, d) in {-1, 0, 1}, int8, of the gradient of each image's cross-entropy, in eval mode.

    x (N, 3, H, W), uint8 or float in [0, 1]; y (N,). Of a convolution (o, i, k, k) the largest of k * k entries is
    taken, of a linear weight (o, i) every entry, or the largest over i where it has more than `threshold`. Signs are
    taken after that, as in the authors' code. The model is not changed.
    """
    model = copy.deepcopy(model).eval().to(memory_format=torch.contiguous_format)
    for layer in model.modules():
        if hasattr(layer, "memory_format"):
            layer.memory_format = torch.contiguous_format  # the only memory format that vmap supports
    named = {n: p.detach() for n, p in model.named_parameters()}
    names = used_weights(model, threshold)
    used, rest = {n: named[n] for n in names}, {n: p for n, p in named.items() if n not in names}

    def loss(used, rest, x, y):
        return F.cross_entropy(torch.func.functional_call(model, (used, rest), (x[None],)), y[None])

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, None, 0, 0))
    first, rows = next(iter(named.values())), []
    parts = list(zip(x.split(batch), y.split(batch)))
    for part, labels in tqdm(parts, desc="gradients", unit="batch", disable=None, leave=False):
        part = part.to(first.device).to(first.dtype).div(1 if x.is_floating_point() else 255)
        part_gradients = gradients(used, rest, part, labels.to(first.device))
        pooled = [_pool_gradient(part_gradients[n], threshold) for n in names]
        rows.append(torch.cat(pooled, 1).sign().to(torch.int8).cpu())
    return torch.cat(rows)


def _pool_gradient(gradient, threshold):
    """Gradients (B, o, i, ...) of one weight -> its part of the vectors (B, .), before signs are taken."""
    if gradient.dim() == 5:
        gradient = gradient.amax((3, 4))
    elif gradient[0].numel() > threshold:
        gradient = gradient.amax(2)
    return gradient.flatten(1)
