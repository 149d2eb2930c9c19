"""A small VGG-11, batches of noise and a watermark objective, for tests of single training steps."""

import contextlib
from functools import partial

import torch

import models
from utils.data.batches import Batches
from utils.data.sets import Images
from utils.watermark.margin import WatermarkObjective, ascend

B, T, K, M = 8, 4, 3, 10  # images and triggers of a step, steps of the ascent, triggers


def small(width=4, placed=False):
    """A VGG-11 of 5 classes, the same each time."""
    torch.manual_seed(1)
    model = models.build("vgg11", 5, (0.5,) * 3, (0.25,) * 3, width)
    return (models.place(model, "cpu") if placed else model).train()


def setting(width=4, placed=False):
    """(model, batches, trigger images, their labels)."""
    model = small(width, placed)
    images = Images(torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 5, (32,)),
                    torch.arange(32))
    return model, Batches(images, B, True), torch.rand(M, 3, 32, 32), torch.randint(0, 5, (M,))


def watermark(model, x_q, y_q, steps, mode="paper", reduction="joint", candidates=None):
    ascent = partial(ascend, steps=steps, step_size=1 / 255, eps=steps / 255) if steps else None
    return WatermarkObjective(model, x_q, y_q, weight=0.1, reduction=reduction, batch=T, bn_stats=mode, ascent=ascent,
                              candidates=candidates)


def rows_of(batches, objective, seed=2):
    """What each step of an epoch draws."""
    generator = torch.Generator().manual_seed(seed)
    return list(zip(*objective.plan(batches, 0, generator)))


class AtOnce(contextlib.nullcontext):
    """In place of a side stream or thread: the work is done at once."""

    def start(self, work):
        result = work()
        return lambda: result
