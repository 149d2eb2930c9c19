"""Classifiers for 32x32 images. A model is `Sequential(Normalize, network)`: it takes pixels in [0, 1].

State-dict names (`0.mu`, `1.conv1.weight`, `1.layer1.0.shortcut.0.weight`, `1.linear.bias`, ...) are those
of the official code, so its checkpoints load without renaming.
"""

import torch
from torch import nn

from models.normalize import Normalize
from models.resnet import DEPTHS, ResNet
from models.vgg import VGG11

NAMES = (*DEPTHS, "vgg11")


def build(name: str, num_classes: int, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), width: int = 64) -> nn.Module:
    """Build a classifier: x (N, 3, 32, 32) in [0, 1] -> logits (N, num_classes).

    `mean` and `std` (3 numbers each) are those of the training images; `width` is the number of channels of
    the first stage (64 is the published size). Raises KeyError for a name that is not in `NAMES`.
    """
    if name not in NAMES:
        raise KeyError(name)
    network = VGG11(num_classes, width) if name == "vgg11" else ResNet(name, num_classes, width)
    return nn.Sequential(Normalize(mean, std), network)


def place(model: nn.Module, device) -> nn.Module:
    """Move a model of `build` to a device, in the memory format that is fast and safe there.

    Channels-last is faster wherever it was measured; on a CPU, torch 2.15 corrupts memory in its backward pass with
    fewer than 16 channels and an odd batch, so narrow models keep the contiguous format there.
    """
    device = torch.device(device)
    channels = min(p.shape[0] for p in model.parameters() if p.dim() == 4)
    fast = device.type == "cuda" or (device.type == "cpu" and channels % 16 == 0)
    model[0].memory_format = torch.channels_last if fast else torch.contiguous_format
    return model.to(device, memory_format=model[0].memory_format)
