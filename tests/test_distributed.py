"""Two processes compute what one does. Run by torchrun this file is the worker, see `ten_steps`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # torchrun starts this file as a script

from test_run import same_runs  # noqa: E402

import models  # noqa: E402
from utils.attacks.losses import soft_loss  # noqa: E402
from utils.attacks.objectives import ExtractionObjective  # noqa: E402
from utils.data.batches import Batches  # noqa: E402
from utils.data.images import Images  # noqa: E402
from utils.system.processes import is_chief, join_torchrun, leave_processes, wait_for_all  # noqa: E402
from utils.training.global_batch import synchronize_batchnorm  # noqa: E402
from utils.training.step import Step, autocast_forward  # noqa: E402
from utils.watermark.objective import WatermarkObjective  # noqa: E402

# name -> objective, --bn-stats, --reduction; 5 triggers a step do not split evenly
CASES = {"margin": ("margin", "paper", "joint"), "shared": ("margin", "shared", "sum"), "soft": ("soft", "paper", "")}


def ten_steps(case):
    """Weights, running statistics and figures after ten steps on global batches of 16 images and 5 triggers.

    In fp64: in fp32 rounding flips ReLUs at zero, and one process is itself 2e-5 from fp64 after these steps.
    """
    (kind, mode, reduction), dtype = CASES[case], torch.float64
    torch.manual_seed(0)
    build = lambda: models.build("res18", 4, (0.5,) * 3, (0.25,) * 3, width=2).to(dtype)
    model, source = synchronize_batchnorm(build()).train(), build().eval().requires_grad_(False)
    images = Images(torch.randint(0, 256, (160, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 4, (160,)), None)
    batches = Batches(images, 16, True, dtype=dtype)
    x_q, y_q = torch.rand(20, 3, 32, 32).to(dtype), torch.randint(0, 4, (20,))
    steps = 3 if kind == "margin" else 0
    if kind == "soft":
        objective = ExtractionObjective(autocast_forward(source, False), soft_loss, False)
    else:
        objective = WatermarkObjective(model, x_q, y_q, weight=0.5, reduction=reduction, batch=5, steps=steps,
                                     step_size=1 / 255, eps=steps / 255, bn_stats=mode)
    step = Step(model, objective, batches, lr=0.01, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(1)
    rows = list(zip(*batches.plan(generator), objective.sample(batches.steps, generator)))
    assert len(rows) == 10
    for row in rows:
        step(row)
    statistics = getattr(objective, "statistics", None)
    return model.state_dict(), statistics.state() if statistics else {}, step.take_sums()


LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def torchrun(*command, status=0):
    launcher = [*LAUNCHER, *map(str, command)]
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


COMMON = ("-dt", "digits", "-tt", "margin", "-nq", 4, "--width", 2, "--batch-size", 16, "--device", "cpu",
          "--train-size", 96)
TRAIN = ("train.py", "-mt", "vgg11", "-ep", 6, "--trigger-batch", 5, "--steps", 1, *COMMON)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A source that two processes trained without a break."""
    folder = tmp_path_factory.mktemp("whole")
    done = torchrun(*TRAIN, "-d", folder)
    assert all(done.stdout.count(f"epoch {i}/6") == 1 for i in range(1, 7))
    return folder / "digits_vgg11_margin_4_"


def test_scripts_under_torchrun(whole):
    """Source and theft with two processes: one writes, and the folder is that of one process."""
    torchrun("extraction.py", "-at", "soft", "-tmt", "vgg11", "-dmt", "vgg11", "-ep", 1, *COMMON, "-d", whole.parent)
    for folder, epochs in ((whole, 6), (whole / "extraction", 1)):
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == epochs
        assert 1 <= json.loads((folder / "summary.json").read_text())["chosen_epoch"] <= epochs


def test_a_killed_worker_is_started_anew_and_sigterm_saves(whole, tmp_path):
    """SIGKILL to rank 0 in an epoch, SIGTERM to torchrun in a later one: the run ends bit-equal.

    With --overwrite, which must remove what was there before and nothing of its own.
    """
    folder, said = tmp_path / whole.name, tmp_path / "said"

    def wait_for(pattern):
        began = time.monotonic()
        while not re.search(pattern, said.read_text(), re.DOTALL):
            assert launcher.poll() is None and time.monotonic() < began + 120, said.read_text()
            time.sleep(0.01)

    folder.mkdir()
    (folder / "run.json").write_text("{}")  # of other settings
    with open(said, "w") as output:
        command = [*LAUNCHER, "--max-restarts", "1", *map(str, TRAIN), "-d", str(tmp_path), "--overwrite"]
        launcher = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_for("epoch 2/6")  # the first epoch is in `latest`
            workers = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout.split()
            os.kill(min(map(int, workers)), signal.SIGKILL)
            wait_for("continuing in epoch.*/6  lr")
            launcher.terminate()
            assert launcher.wait(60) != 0
        finally:
            launcher.kill()
    text = said.read_text()
    assert text.count("continuing in epoch") == 1 and "another process of this run is lost" in text, text
    assert text.count("train.py: ") == 2 and "train.py: SIGTERM: saved in epoch" in text, text
    assert not (folder / "summary.json").exists()
    torchrun(*TRAIN, "-d", tmp_path)
    same_runs(folder, whole)


if __name__ == "__main__":
    torch.set_num_threads(1)
    join_torchrun(torch.device("cpu"))
    results = {case: ten_steps(case) for case in CASES}
    if is_chief():
        torch.save(results, sys.argv[1])
    wait_for_all()
    leave_processes(0)
