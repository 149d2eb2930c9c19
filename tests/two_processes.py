"""What two processes under torchrun do for scripts/test_torchrun.py, in one launch: a start takes seconds."""

import contextlib
import importlib
import itertools
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from small_runs import skip_fsync_git_and_pictures

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # torchrun starts this file as a script

import models  # noqa: E402
from utils.attacks.stealing import ExtractionObjective, soft_loss  # noqa: E402
from utils.data.batches import Batches  # noqa: E402
from utils.data.sets import Images  # noqa: E402
from utils.system.machine import is_rank_0, join_torchrun, restart_count  # noqa: E402
from utils.system.refusals import exit_hooks, rank  # noqa: E402
from utils.training.loop import Step  # noqa: E402
from utils.training.ranks import synchronize_batchnorm  # noqa: E402
from utils.training.speed import autocast_forward  # noqa: E402
from utils.watermark.margin import WatermarkObjective, ascend  # noqa: E402

COMMON = ("-dt", "digits", "-tt", "margin", "-nq", 4, "--width", 2, "--batch-size", 16, "--device", "cpu",
          "--train-size", 48)
TRAIN = (*COMMON, "-mt", "vgg11", "-ep", 2, "--trigger-batch", 5, "--steps", 1)
STEAL = (*COMMON, "-tmt", "vgg11", "-dmt", "vgg11", "-ep", 1, "-at", "soft")
# name -> objective, --bn-stats, --reduction
CASES = {"margin": ("margin", "paper", "joint"), "shared": ("margin", "shared", "sum"), "soft": ("soft", "paper", "")}


def few_steps(case):
    """Weights, running statistics and figures after two steps in fp64 on global batches of 16 images and 5 triggers.

    Plain DDP, which averages ranks of 2 and 3 triggers with equal weights, would differ.
    """
    (kind, mode, reduction), dtype = CASES[case], torch.float64
    torch.manual_seed(0)
    build = lambda: models.build("vgg11", 4, (0.5,) * 3, (0.25,) * 3, width=2).to(dtype)
    model, source = synchronize_batchnorm(build()).train(), build().eval().requires_grad_(False)
    images = Images(torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 4, (32,)), None)
    batches = Batches(images, 16, True, dtype=dtype)
    x_q, y_q = torch.rand(20, 3, 32, 32).to(dtype), torch.randint(0, 4, (20,))
    if kind == "soft":
        objective = ExtractionObjective(autocast_forward(source, None), soft_loss, False)
    else:
        objective = WatermarkObjective(model, x_q, y_q, weight=0.5, reduction=reduction, batch=5, bn_stats=mode,
                                       ascent=partial(ascend, steps=2, step_size=1 / 255, eps=2 / 255))
    step = Step(model, objective, batches, lr=0.01, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(1)
    rows = list(zip(*objective.plan(batches, 0, generator)))
    assert len(rows) == 2
    for row in rows:
        step(row)
    statistics = getattr(objective, "statistics", None)
    return model.state_dict(), statistics.state() if statistics else {}, step.take_sums()


def scripts(folder):
    """SIGTERM in rank 1, then SIGKILL of rank 0 in `broken`, which is restarted; then `whole`, steps, an extraction."""
    hooks, exit_hooks[:] = exit_hooks[:], []  # which end the process after each script
    broken, whole = folder / "broken", folder / "whole"
    if not restart_count():
        counter, step = itertools.count(1), Step.__call__

        def stepping(self, row):
            at = next(counter)
            if (at, rank()) == (2, 1):
                signal.raise_signal(signal.SIGTERM)
            if (at, rank()) == (5, 0):
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, row)

        Step.__call__ = stepping
        with contextlib.suppress(SystemExit):
            script("train", *TRAIN, "-d", broken, "--overwrite")
        exit_hooks[:] = hooks
        script("train", *TRAIN, "-d", broken)
    script("train", *TRAIN, "-d", broken, "--overwrite")  # of an earlier run's files, and of none of its own
    script("train", *TRAIN, "-d", whole)
    results = {case: few_steps(case) for case in CASES}
    if is_rank_0():
        torch.save(results, folder / "two.pt")
    exit_hooks[:] = hooks
    script("extraction", *STEAL, "-d", whole)


def script(name, *flags):
    sys.argv = [f"{name}.py", *map(str, flags)]
    importlib.import_module(name).main()


if __name__ == "__main__":
    join_torchrun(torch.device("cpu"))
    with skip_fsync_git_and_pictures():
        scripts(Path(sys.argv[1]))
    raise AssertionError("not ended by the exit hook")
