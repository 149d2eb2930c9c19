"""The one place where logits meet labels."""

import math

import pytest
import torch
from torch import nn

from utils.training.metrics import accuracy, count_hits, predict


class Brightness(nn.Module):
    """Class 1 for bright pictures; through BatchNorm, the answers differ between eval and train mode."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        level = self.bn(x).mean(dim=(1, 2, 3))
        return torch.stack([0.5 - level, level - 0.5], 1)


def test_accuracy_is_measured_in_eval_mode_and_restores_the_mode():
    model = Brightness().train()
    images = torch.tensor([10, 250, 240, 20, 255], dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    labels = torch.tensor([0, 1, 1, 0, 0])
    assert accuracy(model, images, labels) == 0.8 and model.training
    logits = predict(model, images, batch_size=2)
    assert torch.equal(logits, predict(model.eval(), images)) and not model.training and count_hits(logits, labels) == 4
    assert not logits.requires_grad and logits[1, 1].item() == pytest.approx(250 / 255 / math.sqrt(1 + 1e-5) - 0.5)
