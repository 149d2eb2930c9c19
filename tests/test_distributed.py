"""Two processes compute what one does. Run by torchrun this file is the worker, see `ten_steps`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import models  # noqa: E402
from utils import attacks, distributed, losses  # noqa: E402
from utils.data import Batches, Images  # noqa: E402
from utils.fit import precise  # noqa: E402
from utils.step import Step  # noqa: E402

# name -> objective, --bn-stats, --reduction; 5 triggers a step do not split evenly
CASES = {"margin": ("margin", "paper", "joint"), "shared": ("margin", "shared", "sum"), "soft": ("soft", "paper", "")}


def ten_steps(case):
    """Weights, running statistics and figures after ten steps on global batches of 16 images and 5 triggers.

    In fp64: in fp32 rounding flips ReLUs at zero, and one process is itself 2e-5 from fp64 after these steps.
    """
    (kind, mode, reduction), dtype = CASES[case], torch.float64
    torch.manual_seed(0)
    build = lambda: models.build("res18", 4, (0.5,) * 3, (0.25,) * 3, width=2).to(dtype)
    model, source = distributed.share(build()).train(), build().eval().requires_grad_(False)
    images = Images(torch.randint(0, 256, (160, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 4, (160,)), None)
    batches = Batches(images, 16, True, dtype=dtype)
    x_q, y_q = torch.rand(20, 3, 32, 32).to(dtype), torch.randint(0, 4, (20,))
    steps = 3 if kind == "margin" else 0
    if kind == "soft":
        objective = attacks.Copy(precise(source, False), attacks.soft, False)
    else:
        objective = losses.Watermark(model, x_q, y_q, weight=0.5, reduction=reduction, batch=5, steps=steps,
                                     step_size=1 / 255, eps=steps / 255, bn_stats=mode)
    step = Step(model, objective, precise(model, False), batches, lr=0.01, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(1)
    rows = list(zip(*batches.plan(generator), objective.sample(batches.steps, generator)))
    assert len(rows) == 10
    for row in rows:
        step(row)
    statistics = getattr(objective, "statistics", None)
    return model.state_dict(), statistics.state() if statistics else {}, step.take_sums()


def torchrun(*command, status=0):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                *map(str, command)]
    done = subprocess.run(launcher, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == status, f"{launcher} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def test_two_processes_equal_one(tmp_path):
    torchrun(__file__, tmp_path / "two.pt")
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    for case in CASES:
        one = ten_steps(case)
        assert one[0].keys() == two[case][0].keys()
        for mine, theirs in zip((one[0], one[1]), two[case][:2]):
            for name, value in mine.items():
                assert float((value - theirs[name]).abs().max()) <= 1e-9, (case, name)
        assert two[case][2] == pytest.approx(one[2], abs=1e-9), case


def test_scripts_under_torchrun(tmp_path):
    """Source and theft with two processes: one writes, and the folder is that of one process."""
    common = ["-dt", "digits", "-tt", "margin", "-nq", 4, "-ep", 1, "--width", 2, "--batch-size", 16, "--train-size",
              64, "--device", "cpu", "-d", tmp_path]
    done = torchrun("train.py", "-mt", "res18", "--trigger-batch", 5, "--steps", 1, *common)
    assert done.stdout.count("epoch 1/1") == 1
    torchrun("extraction.py", "-at", "soft", "-tmt", "res18", "-dmt", "res18", *common)
    source = tmp_path / "digits_res18_margin_4_"
    for folder in (source, source / "extraction"):
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
        assert json.loads((folder / "summary.json").read_text())["chosen_epoch"] == 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.join(torch.device("cpu"))
    results = {case: ten_steps(case) for case in CASES}
    if distributed.chief():
        torch.save(results, sys.argv[1])
    distributed.barrier()
    distributed.leave(0)
