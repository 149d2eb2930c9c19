"""The training loop in a real run folder, with a model of a few weights."""

from functools import partial

import torch
from torch import nn

from utils.data.batches import Batches
from utils.data.sets import Images
from utils.runs.folder import RunFolder
from utils.training.loop import fit
from utils.watermark.margin import WatermarkObjective, ascend

CPU = torch.device("cpu")
EPOCHS, STEPS = 3, 4


def tiny_fit(path, hook=None, lr=0.1, batch=4, bn_stats="paper", overwrite=False, epochs=EPOCHS, with_model=False,
             seed=0):
    """Train a margin watermark on noise; `hook(step number)` is called before each step. Returns the `RunFolder`."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(8),
                          nn.Flatten(), nn.Linear(4, 3))
    g = torch.Generator().manual_seed(0)
    images = Images(torch.randint(0, 256, (16, 3, 32, 32), generator=g, dtype=torch.uint8), torch.arange(16) % 3,
                    torch.arange(16))
    counter = iter(range(10**6))

    class Hooked(WatermarkObjective):
        def __call__(self, *inputs):
            if hook:
                hook(next(counter), *([model] if with_model else []))
            return super().__call__(*inputs)

    def evaluate(m):
        m.eval()
        value = float(m(images.images.float() / 255).sum().detach())
        m.train()
        return {"val_accuracy": abs(value) % 1, "trigger_accuracy": 0.5}

    def snapshot(m, epoch, row):
        return {"model": {"state_dict": m.state_dict()}, "epoch": epoch, "figures": row}

    run = RunFolder(path, {"seed": 0, "lr": lr}, "another -msg")
    run.check(overwrite)
    run.open(CPU, overwrite)
    objective = Hooked(model, torch.rand(5, 3, 32, 32, generator=g), torch.arange(5) % 3, weight=1.0, reduction="sum",
                       batch=3, bn_stats=bn_stats, ascent=partial(ascend, steps=2, step_size=0.02, eps=0.03))
    fit(run, model, objective, Batches(images, batch, True), evaluate, snapshot, epochs=epochs, lr=lr, seed=seed)
    return run


class Death(BaseException):
    """Stands for SIGKILL: nothing catches it, but a test survives it."""
