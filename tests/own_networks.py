"""Networks of a user's own, as -mt package.module:function names them; tests run commands beside this file."""

import torch
from torch import nn


def plain(classes):
    """Convolution, LayerNorm over channels, dropout: no BatchNorm."""
    return nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.GroupNorm(1, 16), nn.GELU(), nn.Dropout(0.2),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, classes))


def without_linear(classes):
    return nn.Sequential(nn.Conv2d(3, classes, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class _Noisy(nn.Module):
    """Draws random numbers in train mode without a dropout layer."""

    def __init__(self, classes):
        super().__init__()
        self.body = plain(classes)

    def forward(self, x):
        return self.body(x + 0.05 * torch.randn_like(x) if self.training else x)


def noisy(classes):
    return _Noisy(classes)


def two_outputs(classes):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = plain(classes)

        def forward(self, x):
            return self.body(x), x

    return Two()


def too_few_logits(classes):
    return plain(classes - 1)


def no_module(classes):
    return lambda x: x


def fails(classes):
    raise RuntimeError("no such layer")


def weightless(classes):
    class Constant(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :classes]

    return Constant()


not_callable = 3
