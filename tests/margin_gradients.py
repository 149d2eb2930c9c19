"""The worker of training/test_distributed.py: the gradient of one margin step, by one process, by ours and by DDP.

`torchrun ... tests/margin_gradients.py FILE` writes {"ours" | "ddp": {triggers a step: relative distance of the
gradient of several processes from that of one}} to FILE. In fp64, ResNet-18 of width 4, 128 images, K = 5.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # torchrun starts this file as a script

import models  # noqa: E402
from utils.system.machine import is_chief, join_torchrun, leave_processes, wait_for_all  # noqa: E402
from utils.training.ranks import own_part, split_over_ranks, sum_gradients, synchronize_batchnorm  # noqa: E402
from utils.watermark.margin import WatermarkObjective, ascend  # noqa: E402


class ObjectiveModule(nn.Module):
    """A margin step's loss as the forward pass of a module, which is what DDP wraps."""

    def __init__(self, model, triggers: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        x_q = torch.rand(100, 3, 32, 32, generator=generator, dtype=torch.float64)
        y_q = torch.randint(0, 10, (100,), generator=generator)
        self.model = model
        self.objective = WatermarkObjective(model, x_q, y_q, weight=0.1, reduction="sum", batch=triggers,
                                            bn_stats="paper",
                                            ascent=partial(ascend, steps=5, step_size=1 / 255, eps=5 / 255))

    def forward(self, x, y, picks, through=lambda forward: forward):
        return self.objective(through(lambda pixels: self.model(pixels)), x, y, picks)[0]


def distances(triggers: int) -> tuple[float, float]:
    """Relative distances from one process's gradient: (of this project's several processes, of DDP)."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(128, 3, 32, 32, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 10, (128,), generator=generator)
    picks = torch.randint(0, 100, (triggers,), generator=generator)

    def module(several: bool):
        torch.manual_seed(2)
        model = models.build("res18", 10, (0.5,) * 3, (0.25,) * 3, width=4).double().train()
        return ObjectiveModule(synchronize_batchnorm(model) if several else model, triggers)

    def gradient(of):
        return torch.cat([p.grad.flatten() for p in of.parameters()])

    one, ours, ddp = module(False), module(True), DistributedDataParallel(module(True), broadcast_buffers=False)
    one(x, y, picks).backward()
    ours(x, y, picks, split_over_ranks).backward()
    sum_gradients(list(ours.parameters()))
    ddp(own_part(x), own_part(y), own_part(picks)).backward()
    exact = gradient(one)
    return tuple(float((gradient(of) - exact).norm() / exact.norm()) for of in (ours, ddp))


if __name__ == "__main__":
    torch.set_num_threads(1)
    join_torchrun(torch.device("cpu"))
    pairs = {triggers: distances(triggers) for triggers in (24, 25)}
    if is_chief():
        found = {"ours": {m: pair[0] for m, pair in pairs.items()}, "ddp": {m: pair[1] for m, pair in pairs.items()}}
        Path(sys.argv[1]).write_text(json.dumps(found))
        print(found)
    wait_for_all()
    leave_processes(0)
