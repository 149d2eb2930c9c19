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


class Body(nn.Module):
    """Can be trained and kept; what inherits from it cannot, or only with some flags."""

    def __init__(self, classes):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 4, 4), nn.Linear(1024, classes)

    def hidden(self, x):
        return self.first(x).relu().flatten(1)

    def forward(self, x):
        return self.last(self.hidden(x))


class OutsideTheStateDict(Body):
    def __init__(self, classes):
        super().__init__(classes)
        self.signs = torch.randn(1024)

    def hidden(self, x):
        return super().hidden(x) * self.signs


class RandomInEvaluation(Body):
    def hidden(self, x):
        return nn.functional.dropout(super().hidden(x), training=True)


class ExtraState(Body):
    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        pass


class ComplexBuffer(Body):
    def __init__(self, classes):
        super().__init__(classes)
        self.register_buffer("phase", torch.ones(3, dtype=torch.complex64))


class EndsInTraining(Body):
    def forward(self, x):
        if self.training:
            raise SystemExit("no training")
        return super().forward(x)


class FrozenBackbone(Body):
    def hidden(self, x):
        with torch.no_grad():
            return super().hidden(x)


class NoGradient(Body):
    def forward(self, x):
        return super().forward(x).detach()


class ChangesInPlace(Body):
    def __init__(self, classes):
        super().__init__(classes)
        self.register_buffer("scale", torch.ones(1024))

    def hidden(self, x):
        hidden = super().hidden(x)
        self.scale.mul_(0.9).add_(hidden.detach().mean(0), alpha=0.1)
        return hidden * self.scale


class OneKindOfFloat(Body):
    def hidden(self, x):
        hidden = super().hidden(x)
        return torch.zeros(len(x), 1024).index_add(0, torch.arange(len(x)), hidden)


class Views(Body):
    def hidden(self, x):
        x = self.first(x).relu()
        return x.view(x.size(0), -1)  # as many networks do it, and only where the memory format allows it


class WholeNumbers(Body):
    def __init__(self, classes):
        super().__init__(classes)
        self.register_buffer("order", torch.arange(1023, -1, -1))

    def hidden(self, x):
        return super().hidden(x)[:, self.order]


class TwoInTraining(Body):
    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)


def lazy(classes):
    return nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes))


def two_momenta(classes):
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 16, 8, 8), nn.BatchNorm2d(16, momentum=0.01), nn.Flatten(),
                         nn.Linear(256, classes))


def ends_the_process(classes):
    raise SystemExit(0)
