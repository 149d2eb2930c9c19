"""A small ResNet, batches of noise and a watermark objective, for tests of single training steps."""

import torch

import models
from utils.data.batches import Batches
from utils.data.sets import Images
from utils.watermark.objective import WatermarkObjective

B, T, K, M = 8, 4, 3, 10  # images and triggers of a step, steps of the ascent, triggers
NUMBERS = {"weight": 0.1, "step_size": 1 / 255}


def small(width=8, placed=False):
    """A ResNet-18 of 5 classes, the same each time."""
    torch.manual_seed(1)
    model = models.build("res18", 5, (0.5,) * 3, (0.25,) * 3, width)
    return (models.place(model, "cpu") if placed else model).train()


def setting(width=8, placed=False):
    """(model, batches, trigger images, their labels)."""
    model = small(width, placed)
    images = Images(torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 5, (32,)),
                    torch.arange(32))
    return model, Batches(images, B, True), torch.rand(M, 3, 32, 32), torch.randint(0, 5, (M,))


def watermark(model, x_q, y_q, steps, mode="paper", reduction="joint"):
    return WatermarkObjective(model, x_q, y_q, reduction=reduction, batch=T, steps=steps, eps=steps / 255,
                              bn_stats=mode, **NUMBERS)


def rows_of(batches, objective, seed=2):
    """What each step of an epoch draws."""
    generator = torch.Generator().manual_seed(seed)
    return list(zip(*batches.plan(generator), objective.sample(batches.steps, generator)))
