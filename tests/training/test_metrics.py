"""Predictions and accuracies over many images."""

import math

import torch
from torch import nn

from utils.training.metrics import accuracy, count_hits, predict


def test_accuracy_is_measured_in_eval_mode_and_restores_the_mode():
    """The logits are the pixels of the three channels; of a batch that normalises them others are the largest."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3)).train()
    pixels = torch.tensor([[250, 10, 20], [240, 30, 10], [230, 200, 10], [255, 0, 90], [10, 20, 200]])
    images, labels = pixels[:, :, None, None].expand(-1, -1, 4, 4).to(torch.uint8), torch.tensor([0, 0, 0, 0, 1])
    assert accuracy(model, images, labels) == 0.8 and model.training
    logits = predict(model, images, batch_size=2)
    assert torch.allclose(logits, pixels / 255 / math.sqrt(1 + 1e-5)) and count_hits(logits, labels) == 4
    assert torch.equal(logits, predict(model.eval(), images)) and not model.training and not logits.requires_grad
    assert count_hits(model.train()(images / 255), labels) < 4
