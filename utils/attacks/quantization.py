"""Quantisation of weights, without training."""

import torch

from utils.attacks.pruning import layer_weights


@torch.no_grad()
def quantize(model, bits: int):
    """Round weights of convolutions and linear layers to 2^bits - 1 even levels; changes `model` and returns it.

    Symmetric, one scale for each output channel: 2 bits leave -s, 0 and s. Biases and BatchNorm stay as they are.
    """
    levels = 2 ** (bits - 1) - 1
    for _, weight in layer_weights(model):
        scale = weight.abs().flatten(1).amax(1).clamp_min(1e-12).view(-1, *[1] * (weight.dim() - 1)) / levels
        weight.copy_((weight / scale).round() * scale)
    return model
