"""The worker of training/test_distributed.py: four steps of each case, by this process or by several under torchrun.

`torchrun ... tests/few_steps.py FILE` writes what rank 0 has computed to FILE. Two processes cannot share the five
triggers of a step evenly; plain DDP, which averages ranks of 2 and 3 with equal weights, would differ.
"""

import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # torchrun starts this file as a script

import models  # noqa: E402
from utils.attacks.stealing import ExtractionObjective, soft_loss  # noqa: E402
from utils.data.batches import Batches  # noqa: E402
from utils.data.sets import Images  # noqa: E402
from utils.system.machine import is_chief, join_torchrun, leave_processes, wait_for_all  # noqa: E402
from utils.training.loop import Step, autocast_forward  # noqa: E402
from utils.training.ranks import synchronize_batchnorm  # noqa: E402
from utils.watermark.margin import WatermarkObjective, ascend  # noqa: E402

# name -> objective, --bn-stats, --reduction
CASES = {"margin": ("margin", "paper", "joint"), "shared": ("margin", "shared", "sum"), "soft": ("soft", "paper", "")}


def few_steps(case):
    """Weights, running statistics and figures after four steps on global batches of 16 images and 5 triggers.

    In fp64: in fp32 rounding flips ReLUs at zero, and even one process is 2e-5 away from fp64 after these steps.
    """
    (kind, mode, reduction), dtype = CASES[case], torch.float64
    torch.manual_seed(0)
    build = lambda: models.build("res18", 4, (0.5,) * 3, (0.25,) * 3, width=2).to(dtype)
    model, source = synchronize_batchnorm(build()).train(), build().eval().requires_grad_(False)
    images = Images(torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 4, (64,)), None)
    batches = Batches(images, 16, True, dtype=dtype)
    x_q, y_q = torch.rand(20, 3, 32, 32).to(dtype), torch.randint(0, 4, (20,))
    if kind == "soft":
        objective = ExtractionObjective(autocast_forward(source, None), soft_loss, False)
    else:
        objective = WatermarkObjective(model, x_q, y_q, weight=0.5, reduction=reduction, batch=5, bn_stats=mode,
                                       ascent=partial(ascend, steps=3, step_size=1 / 255, eps=3 / 255))
    step = Step(model, objective, batches, lr=0.01, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(1)
    rows = list(zip(*objective.plan(batches, 0, generator)))
    assert len(rows) == 4
    for row in rows:
        step(row)
    statistics = getattr(objective, "statistics", None)
    return model.state_dict(), statistics.state() if statistics else {}, step.take_sums()


if __name__ == "__main__":
    torch.set_num_threads(1)
    join_torchrun(torch.device("cpu"))
    results = {case: few_steps(case) for case in CASES}
    if is_chief():
        torch.save(results, sys.argv[1])
    wait_for_all()
    leave_processes(0)
