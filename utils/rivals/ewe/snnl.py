"""EWE's soft nearest neighbour loss (SNNL): how much the features of triggers and of clean images are mixed.

Constants and conventions are those of the official code, except for a lower bound on the temperatures. A stored
temperature T is an inverse one: the loss uses t = 100 / T.
"""

import torch
from torch import nn

LOWEST_TEMPERATURE = 1e-3  # of T; not in the official code. At T = 0 the kernel would be 1 everywhere


def snnl(features, w, t, metric="cosine"):
    """Soft nearest neighbour loss, a scalar: the higher, the more the two groups of rows are mixed.

    features  (B, ...), flattened and passed through ReLU before distances are taken
    w         (B,) 0 or 1, the group of a row
    t         the temperature, a number or a scalar tensor
    metric    "cosine": d_ij = 1 - cos(x_i, x_j), or "euclidean": d_ij = |x_i - x_j|^2

    With K_ij = exp(-d_ij / t), K_ii = 0: -mean_i log(1e-5 + sum_{j: w_j = w_i} K_ij / (1e-5 + sum_k K_ik)).
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
    """Temperatures (L,) after a step of plain gradient descent; `LOWEST_TEMPERATURE` bounds them from below."""
    return (temperatures - lr * gradient).clamp_min(LOWEST_TEMPERATURE)


def entanglement(features, w, temperatures):
    """SNNL of each of L layers, (L,): features [(B, ...)], w (B,), temperatures T (L,); the loss uses t = 100 / T."""
    return torch.stack([snnl(f, w, 100 / t) for f, t in zip(features, temperatures)])


def observe_features(model, forward, x):
    """(logits of `forward(x)`, the outputs of three layers of `model` in float32, the deepest first).

    The layers are the pooled features and the two blocks before the last one: on ResNet-34 the second and the first
    block of stage 4, on ResNet-18 the first block of stage 4 and the last of stage 3. The authors did not use VGG-11;
    here its blocks are convolution, BatchNorm and ReLU.
    """
    network, outputs = model[1], []
    if hasattr(network, "layer4"):
        blocks = [*network.layer3, *network.layer4]
    else:
        blocks = [m for m in network.layers if isinstance(m, nn.ReLU)]
    handles = [b.register_forward_hook(lambda module, inputs, output: outputs.append(output)) for b in blocks[-3:-1]]
    handles.append(network.linear.register_forward_pre_hook(lambda module, inputs: outputs.append(inputs[0])))
    try:
        logits = forward(x)
    finally:
        for handle in handles:
            handle.remove()
    return logits, [f.float() for f in reversed(outputs)]
