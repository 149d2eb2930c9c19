"""Networks of a user's own, as -mt package.module:function names them; tests run commands beside this file."""

import torch
from torch import nn


def plain(classes):
    """Convolution, LayerNorm over channels, dropout: no BatchNorm; and a buffer that is not finite, as masks are."""
    net = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.GroupNorm(1, 16), nn.GELU(), nn.Dropout(0.2),
                        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, classes))
    net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    return net


def without_linear(classes):
    return nn.Sequential(nn.Conv2d(3, classes, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def lazy(classes):
    return nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes))


def classes_last(pretrained=False, **more):
    return fails(more) if pretrained else plain(more["num_classes"])


def two_momenta(classes):
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 16, 8, 8), nn.BatchNorm2d(16, momentum=0.01), nn.Flatten(),
                         nn.Linear(256, classes))


def two_needed(width, num_classes=10):
    return plain(num_classes)


class Network(nn.Module):
    """`hidden(network, features (N, 16, 8, 8))` and `answer(network, x, logits)` are what a variant changes."""

    def __init__(self, classes, hidden, answer, buffers):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 4, 4), nn.Linear(1024, classes)
        self.hidden, self.answer = hidden, answer
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer.clone())

    def forward(self, x):
        return self.answer(self, x, self.last(self.hidden(self, self.first(x).relu()).flatten(1)))


def variant(hidden=lambda net, h: h, answer=lambda net, x, logits: logits, **buffers):
    """A function of the user's."""
    return lambda classes: Network(classes, hidden, answer, buffers)


def in_place(net, h):
    net.scale.mul_(0.9).add_(h.detach().mean((0, 2, 3)), alpha=0.1)
    return h * net.scale[:, None, None]


Body = variant()
RandomInEvaluation = variant(lambda net, h: nn.functional.dropout(h, training=True))
FrozenBackbone = variant(lambda net, h: h.detach())
Views = variant(lambda net, h: h.view(len(h), -1))  # as many networks do it, and only where the memory format allows it
ChangesInPlace = variant(in_place, scale=torch.ones(16))
WholeNumbers = variant(lambda net, h: h[:, net.order], order=torch.arange(15, -1, -1))
ComplexBuffer = variant(phase=torch.ones(3, dtype=torch.complex64))
OneKindOfFloat = variant(lambda net, h: torch.zeros(len(h), 1024).index_add(0, torch.arange(len(h)), h.flatten(1)))
Probabilities = variant(answer=lambda net, x, logits: logits.softmax(1))
NoGradient = variant(answer=lambda net, x, logits: logits.detach())
FailsLater = variant(answer=lambda net, x, logits: logits if len(x) == 2 else ends_the_process(x))
TwoInTraining = variant(answer=lambda net, x, logits: (logits, x) if net.training else logits)


def OutsideTheStateDict(classes):
    net = variant(lambda net, h: h * net.signs)(classes)
    net.signs = torch.randn(8)
    return net


too_few_logits = lambda classes: Body(classes - 1)
weightless = lambda classes: nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(classes))
not_callable = 3


def fails(classes):
    raise RuntimeError("no such layer")


def ends_the_process(classes):
    raise SystemExit(0)
