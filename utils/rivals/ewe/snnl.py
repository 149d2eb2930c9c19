"""TODO (utils.ewe)"""

import torch
from torch import nn

LOWEST_TEMPERATURE = 1e-3  # of a temperature; the official code has no bound, and at 0 the kernel would be 1 everywhere


def snnl(features, w, t, metric="cosine"):
    """Soft nearest neighbour loss, a scalar: how much the two groups of rows are mixed (low: apart).

    features (B, ...), flattened and through ReLU; w (B,) 0 or 1; t the temperature, a number or scalar tensor.
    metric "cosine": d = 1 - cos, or "euclidean": d = |x_i - x_j|^2. K = exp(-d / t), 0 on the diagonal:
    -mean_i log(1e-5 + sum_{j: w_j = w_i} K_ij / (1e-5 + sum_k K_ik)).
    """
    x = features.flatten(1).relu()
    if metric == "cosine":
        x = x * x.square().sum(1, keepdim=True).clamp_min(1e-12).rsqrt()
        d = 1 - x @ x.T
    else:
        squares = x.square().sum(1)
        d = squares[:, None] + squares - 2 * x @ x.T
    k = torch.exp(-d / t).clamp(0, 1).masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0)
    share = (k * (w[:, None] == w)).sum(1) / (1e-5 + k.sum(1))
    return -(1e-5 + share).log().mean()


def temperature_step(temperatures, gradient, lr: float):
    """One step of plain gradient descent; (L,) each. Temperatures stay above `LOWEST`, which is not official."""
    return (temperatures - lr * gradient).clamp_min(LOWEST_TEMPERATURE)


def entanglement(features, w, temperatures):
    """SNNL of each layer, (L,). The stored temperatures are inverse ones: t = 100 / T."""
    return torch.stack([snnl(f, w, 100 / t) for f, t in zip(features, temperatures)])


def observe_features(model, forward, x):
    """Logits of `forward(x)` and three of the model's features in float32, the deepest first.

    Pooled features, then the outputs of the two blocks before the last: on ResNet-34 the second and first of stage 4,
    on ResNet-18 the first of stage 4 and the last of stage 3. VGG-11, which the authors did not use: a block is a
    convolution with BatchNorm and ReLU.
    """
    network, seen = model[1], []
    if hasattr(network, "layer4"):
        blocks = [*network.layer3, *network.layer4]
    else:
        blocks = [m for m in network.layers if isinstance(m, nn.ReLU)]
    handles = [b.register_forward_hook(lambda module, inputs, output: seen.append(output)) for b in blocks[-3:-1]]
    handles.append(network.linear.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])))
    try:
        logits = forward(x)
    finally:
        for handle in handles:
            handle.remove()
    return logits, [f.float() for f in reversed(seen)]
