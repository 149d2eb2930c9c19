"""What two processes under torchrun do for scripts/test_torchrun.py, in one launch: a start takes seconds."""

import contextlib
import importlib
import itertools
import os
import signal
import sys
from pathlib import Path

import torch
from every_objective import build
from small_runs import skip_fsync_git_and_pictures
from small_steps import rows_of, setting, small

from utils.system.machine import is_rank_0, join_torchrun, restart_count
from utils.system.refusals import exit_hooks, rank
from utils.training.loop import Step
from utils.training.ranks import synchronize_batchnorm
from utils.training.speed import autocast_forward

COMMON = ("-dt", "digits", "-tt", "margin", "-nq", 4, "--width", 2, "--batch-size", 16, "--device", "cpu",
          "--train-size", 48)
TRAIN = (*COMMON, "-mt", "vgg11", "-ep", 2, "--trigger-batch", 5, "--steps", 1)
STEAL = (*COMMON, "-tmt", "vgg11", "-dmt", "vgg11", "-ep", 1, "-at", "soft")
CASES = ("margin, paper, joint", "margin, shared, sum", "soft")


def few_steps(case):
    """Weights, running statistics and figures after two steps in fp64 on global batches of 8 images and 5 triggers.

    Plain DDP, which averages ranks of 2 and 3 triggers with equal weights, would differ.
    """
    torch.manual_seed(0)
    model, batches, x_q, y_q = setting(width=2)
    model, batches.dtype = synchronize_batchnorm(model.double()), torch.float64
    source = autocast_forward(small(width=2).double().eval().requires_grad_(False), None)
    objective = build(case, model, source, batches, x_q.double(), y_q)
    objective.batch = 5  # triggers, where there are some
    step = Step(model, objective, batches, lr=0.01, weight_decay=1e-4)
    for row in rows_of(batches, objective)[:2]:
        step(row)
    statistics = objective.statistics
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
