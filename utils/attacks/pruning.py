"""Pruning: channels of least activation, or weights of least magnitude (Fig. 8)."""

import torch
import torch.nn.functional as F
from torch import nn

from utils.system.refusals import Refusal

CRITERIA = ("activation", "magnitude")


def check_weights_to_edit(attack: str, model, criterion: str = "magnitude") -> None:
    """Refuse a model in which pruning by a criterion would prune nothing, or quantisation round nothing.

    attack  the value of -at, for the message
    """
    if criterion == "activation" and not _layers_of_channels(model):
        raise Refusal(f"-at {attack} --criterion activation prunes channels of BatchNorm2d layers, and a {model.name} "
                      "has none with weights: pass --criterion magnitude")
    if criterion == "magnitude":
        found, parameters = dict(layer_weights(model)), dict(model.named_parameters())
        if not found or not found.keys() <= parameters.keys():
            why = "computes or shares some of them" if found else "has none"
            raise Refusal(f"-at {attack} edits weights of convolutions and linear layers, and a {model.name} {why}: "
                          "pass -at finetune")


def _layers_of_channels(model) -> dict:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and m.affine}


def channel_activations(model, images, batch_size: int = 500) -> dict:
    """Mean of relu(output) of each channel of each BatchNorm layer over uint8 images: {layer name: (C,)}.

    Layers without weights are left out: there is nothing that could be pruned.
    """
    sums = {}

    def watch(name):
        def hook(module, inputs, output):
            sums[name] = sums.get(name, 0) + F.relu(output).double().mean(dim=(2, 3)).sum(0)

        return hook

    handles = [m.register_forward_hook(watch(n)) for n, m in _layers_of_channels(model).items()]
    try:
        with torch.no_grad():
            for part in images.split(batch_size):
                parameter = next(model.parameters())
                model.eval()(part.to(parameter.device).to(parameter.dtype).div(255))
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / len(images) for name, total in sums.items()}


def pruning_masks(model, ratio: float, criterion: str, activation: dict | None = None) -> dict:
    """Masks of what pruning keeps, {parameter name: bool tensor of its shape}; ratio in [0, 1] is the pruned share.

    activation  in each BatchNorm layer the round(ratio * C) channels of least `activation`; weight and bias of a
                pruned channel become 0, which removes the channel
    magnitude   of all weights of convolutions and linear layers together the share `ratio` of least |w|
    """
    if criterion == "activation":
        kept = {}
        for name, mean in activation.items():
            mask = torch.ones_like(mean, dtype=torch.bool)
            mask[mean.argsort(stable=True)[: round(ratio * len(mean))]] = False
            kept |= {f"{name}.weight": mask, f"{name}.bias": mask}
        return kept
    weights = dict(layer_weights(model))
    flat = torch.cat([w.detach().abs().flatten() for w in weights.values()])
    mask = torch.ones_like(flat, dtype=torch.bool)
    mask[flat.argsort(stable=True)[: round(ratio * len(flat))]] = False
    parts = mask.split([w.numel() for w in weights.values()])
    return {name: part.view(w.shape) for (name, w), part in zip(weights.items(), parts)}


@torch.no_grad()
def prune(model, kept: dict):
    """Set to zero what the masks leave out; changes `model` and returns it."""
    parameters = dict(model.named_parameters())
    for name, mask in kept.items():
        parameters[name].mul_(mask)
    return model


def keep_pruned(model, kept: dict) -> None:
    """Keep pruned parameters at zero in further training, by masking their gradients."""
    parameters = dict(model.named_parameters())
    for name, mask in kept.items():
        if parameters[name].requires_grad:
            parameters[name].register_hook(lambda gradient, mask=mask: gradient * mask)


def layer_weights(model):
    """(name, weight) of each convolution and linear layer."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            yield f"{name}.weight", module.weight
