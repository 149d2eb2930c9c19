"""Classifiers of images. A model is `Sequential(Normalize, network)`: it takes pixels in [0, 1].

State-dict names (`0.mu`, `1.conv1.weight`, `1.layer1.0.shortcut.0.weight`, `1.linear.bias`, ...) are those
of the official code, so its checkpoints load without renaming.
"""

import argparse

import torch
from torch import nn

from models.outside import TORCHVISION, build_outside, check_outside_name, is_torchvision, looks_like_function, named
from models.resnet import DEPTHS, ResNet
from models.vgg import VGG11

NAMES = (*DEPTHS, "vgg11")
SIZE = 32  # height and width of the published images, and of others unless --image-size says otherwise, pixels
AVERAGES, COUNTER = ("running_mean", "running_var"), "num_batches_tracked"  # BatchNorm's buffers: names end so


class Normalize(nn.Module):
    """(x - mean) / std per channel, x (N, 3, H, W) in [0, 1]: so eps, clamps and saved triggers stay in pixel units."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mu", torch.tensor(mean, dtype=torch.get_default_dtype()).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.get_default_dtype()).view(3, 1, 1))
        self.memory_format = torch.contiguous_format  # of what leaves this layer; see `place`

    def forward(self, x):
        return ((x - self.mu) / self.std).contiguous(memory_format=self.memory_format)


class Classifier(nn.Sequential):
    """Normalize, then a network; remembers its architecture's name, its number of classes and the images' size."""

    def __init__(self, name: str, num_classes: int, size: int, normalize: Normalize, network: nn.Module):
        super().__init__(normalize, network)
        self.name, self.num_classes, self.size = name, num_classes, size


def build(name: str, num_classes: int, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), width: int = 64,
          size: int = SIZE) -> Classifier:
    """Build a classifier: x (N, 3, size, size) in [0, 1] -> logits (N, num_classes).

    `mean` and `std` (3 numbers each) are those of the training images; `width` is the number of channels of
    the first stage (64 is the published size), for `NAMES` only. Raises KeyError for a name that is neither in `NAMES`
    nor one of `models.outside`, and for a user's function that the command line did not name.
    """
    if name in DEPTHS:
        network = ResNet(name, num_classes, width)
    elif name == "vgg11":
        network = VGG11(num_classes, width)
    elif name in named or is_torchvision(name):
        network = build_outside(name, num_classes, size)
    else:
        raise KeyError(name)
    return Classifier(name, num_classes, size, Normalize(mean, std), network)


def is_own(model) -> bool:
    """Whether a model is one of `NAMES`, which draw no random numbers; one without a name counts as such."""
    return getattr(model, "name", NAMES[0]) in NAMES


def architecture(text: str) -> str:
    """An argparse type: one of `NAMES`, `tv:NAME` of torchvision, or the user's `package.module:function`."""
    if text in NAMES:
        return text
    if text.startswith(TORCHVISION) or looks_like_function(text):
        return check_outside_name(text)
    raise argparse.ArgumentTypeError(
        f"there is no architecture {text[:60]!r}: pass one of {', '.join(NAMES)}, or tv:NAME of torchvision, or "
        "package.module:function of your own")


def trained_tensors(model) -> dict:
    """{name: tensor} of what training changes in a model: parameters and BatchNorm's running averages."""
    averages = {name: b for name, b in model.named_buffers() if name.endswith(AVERAGES)}
    return dict(model.named_parameters()) | averages


def last_linear(model) -> tuple[str, nn.Linear] | None:
    """(name, module) of the last linear layer in the order of definition, or None: it makes the logits of a classifier
    of `NAMES` and of most others."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return layers[-1] if layers else None


def place(model: nn.Module, device) -> nn.Module:
    """Move a model of `build` to a device, in the memory format that is fast and safe there.

    Channels-last is faster wherever it was measured; on a CPU, torch 2.15 corrupts memory in its backward pass with
    fewer than 16 channels and an odd batch, so narrow models keep the contiguous format there. A user's function keeps
    it everywhere: `x.view(len(x), -1)`, which many networks contain, raises on a channels-last activation.
    """
    device = torch.device(device)
    channels = min((p.shape[0] for p in model.parameters() if p.dim() == 4), default=1)
    fast = device.type == "cuda" or (device.type == "cpu" and channels % 16 == 0)
    fast = fast and not looks_like_function(getattr(model, "name", ""))
    model[0].memory_format = torch.channels_last if fast else torch.contiguous_format
    return model.to(device, memory_format=model[0].memory_format)
