"""On a CUDA GPU whole commands, side by side, keep their promises on digits; `make gpu` runs this."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from commands import ROOT, TORCHRUN, summary
from comparing import same

from utils.runs.checkpoints import load_checkpoint

DEVICE, LIMIT = "cuda", 150
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]

# the demo's settings (see figures.demo), but with clean statistics, a smaller lambda and more epochs: the demo's own
# source varies by ten points with the last bits of its arithmetic
DIGITS = "-dt digits -nq 50 -nm 2 --width 16 --batch-size 32 -ep 24 --select last"
SOURCE = f"train.py {DIGITS} -mt vgg11 -tt margin --reduction sum -v 0.1 --steps 5 --step-size 4 --bn-stats clean"
THEFT = f"{DIGITS} -tt margin -tmt vgg11 -dmt vgg11 -msg tf32"
EXACT = "--deterministic --no-tf32"
SOURCES = {"fp32": "--no-tf32", "tf32": "", "bf16": "--amp", "ordinary": "--amp --no-graph", "whole": EXACT}
THEFTS = {
    "soft": f"extraction.py {THEFT} -at soft -admsg _soft",
    "margin": f"extraction.py {THEFT} -at margin -admsg _margin --amp",
    "distillation": f"distill.py {THEFT}",
}
POINTS = 0.02  # by which the accuracies of the precisions may differ


def run_folder(folder, message):
    return folder / f"digits_vgg11_margin_50_{message}"


@contextlib.contextmanager
def started(folder, commands, end, launcher=(sys.executable,)):
    """{name: process} of commands; when left, those that run at `end` are killed with what they have started."""
    processes = {}
    try:
        for name, words in commands.items():
            with open(folder / f"{name}.said", "w") as said:
                processes[name] = subprocess.Popen(
                    [*launcher, *words.split(), "-d", str(folder), "--device", DEVICE], cwd=ROOT, stdout=said,
                    stderr=subprocess.STDOUT, start_new_session=True)
        yield processes
        for process in processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
    finally:
        for process in processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """(folder, {name: exit status}) of the sources, of one that SIGTERM cut after two epochs, and of the thefts."""
    folder, end, cut = tmp_path_factory.mktemp("runs"), time.monotonic() + LIMIT, f"{SOURCE} {EXACT} -msg cut"
    sources = {name: f"{SOURCE} {flags} -msg {name}" for name, flags in SOURCES.items()}
    with started(folder, sources | {"cut": cut}, end) as first:
        rows = run_folder(folder, "cut") / "metrics.jsonl"
        while first["cut"].poll() is None and time.monotonic() < end:
            if rows.exists() and rows.read_bytes().count(b"\n") >= 2:
                break
            time.sleep(0.02)
        first["cut"].send_signal(signal.SIGTERM)
    with started(folder, THEFTS | {"continued": cut}, end) as second:
        pass
    return folder, {name: process.returncode for name, process in (first | second).items()}


def test_all_commands_finish(ended):
    folder, status = ended
    for name, code in status.items():
        wanted = 128 + signal.SIGTERM if name == "cut" else 0
        assert code == wanted, (folder / f"{name}.said").read_text()[-500:]


def test_all_precisions_train_to_the_same_accuracy(ended):
    rates = {name: summary(run_folder(ended[0], name))["test_accuracy"] for name in SOURCES}
    assert max(rates.values()) - min(rates.values()) <= POINTS and min(rates.values()) > 0.9, rates


def test_a_run_that_was_cut_ends_as_the_unbroken_one(ended):
    whole, cut = (load_checkpoint(run_folder(ended[0], name) / "checkpoints" / "checkpoint_latest.pt")["model"]
                  for name in ("whole", "cut"))
    same(whole["state_dict"], cut["state_dict"])


def test_no_run_fell_back_to_ordinary_steps(ended):
    logs = sorted(ended[0].rglob("output.log"))
    assert len(logs) == len(SOURCES) + 1 + len(THEFTS)
    assert [line for log in logs for line in log.read_text().splitlines() if "no CUDA graph" in line] == []


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs here")
def test_two_processes_train_as_one(ended):
    folder, _ = ended
    with started(folder, {"two": f"{SOURCE} --no-tf32 -msg two"}, time.monotonic() + 60, TORCHRUN) as found:
        pass
    assert found["two"].returncode == 0, (folder / "two.said").read_text()[-500:]
    one, two = (summary(run_folder(folder, name))["test_accuracy"] for name in ("fp32", "two"))
    assert abs(one - two) <= POINTS
