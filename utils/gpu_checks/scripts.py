"""Checks of whole commands on scikit-learn's digits: precision, fallbacks, a run that is interrupted, two processes.

The commands run side by side, since each spends most of its time starting.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

from utils.gpu_checks.result import Check
from utils.gpu_checks.steps import largest_difference
from utils.system.device import ROOT
from utils.system.files import read_json

# the demo's settings (see figures.demo), but with clean statistics, a smaller lambda and more epochs: the demo's own
# source varies by ten points with the last bits of its arithmetic
DIGITS = "-dt digits -nq 50 -nm 2 --width 16 --batch-size 32 -ep 24 --select last"
SOURCE = f"train.py {DIGITS} -mt vgg11 -tt margin --reduction sum -v 0.1 --steps 5 --step-size 4 --bn-stats clean"
THEFT = f"{DIGITS} -tt margin -tmt vgg11 -dmt vgg11"
EXACT = "--deterministic --no-tf32"
# message of a source's run -> its flags
SOURCES = {"fp32": "--no-tf32", "tf32": "", "bf16": "--amp", "ordinary": "--amp --no-graph", "whole": EXACT}
THEFTS = {
    "soft extraction": f"extraction.py {THEFT} -at soft -msg tf32 -admsg _soft",
    "margin extraction": f"extraction.py {THEFT} -at margin -msg tf32 -admsg _margin --amp",
    "distillation": f"distill.py {THEFT} -msg tf32",
}
POINTS = 0.02  # by which the accuracies of the precisions may differ
FALLBACK = "no CUDA graph"  # what a run's log says where it could not record its step, see training.cuda_graph


class Started(NamedTuple):
    """A process in a session of its own, and the file that gets what it says."""

    process: subprocess.Popen
    said: Path


def start(words: str, folder: Path, device: str, launcher=()) -> Started:
    """Start a script with its flags, runs below `folder`."""
    script, *flags = words.split()
    command = [sys.executable, *launcher, str(ROOT / script), *flags, "-d", str(folder), "--device", device]
    number, said = tempfile.mkstemp(".said", dir=folder)
    with open(number, "w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    return Started(process, Path(said))


def finish(started: dict, end: float) -> dict:
    """{name: why it failed, or None} of started processes.

    Those that run at `end`, a value of `time.monotonic`, are killed, with the processes that they have started.
    """
    failures = {}
    try:
        for name, (process, said) in started.items():
            try:
                status = process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                failures[name] = "out of time"
                continue
            last = (said.read_text().strip().splitlines() or ["it said nothing"])[-1][:200]
            failures[name] = None if status == 0 else f"exit status {status}: {last}"
    finally:
        for process, _ in started.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return failures


def run_folder(folder: Path, message: str) -> Path:
    """The folder of a source's run."""
    return folder / f"digits_vgg11_margin_50_{message}"


def check_scripts(folder: Path, end: float, device: str = "cuda") -> list[Check]:
    """Run the commands and check what they wrote below `folder`; at `end`, a value of `time.monotonic`, they fail."""
    cut = f"{SOURCE} {EXACT} -msg cut"
    running = {"cut": start(cut, folder, device)}
    running |= {name: start(f"{SOURCE} {flags} -msg {name}", folder, device) for name, flags in SOURCES.items()}
    _interrupt(running["cut"].process, run_folder(folder, "cut"), end)
    failures = finish(running, end)
    saved = failures.pop("cut")
    running = {name: start(words, folder, device) for name, words in THEFTS.items()}
    thefts = finish(running | {"cut": start(cut, folder, device)}, end)
    failures["cut"] = thefts.pop("cut")
    checks = [_check_accuracies(folder, failures), _check_continued(folder, failures, saved)]
    checks += [Check(f"{name} of the source", why is None, why or "finished") for name, why in thefts.items()]
    return checks + [check_logs(folder)]


def _interrupt(process, folder: Path, end: float) -> None:
    """Send SIGTERM once two epochs are done, or at `end`."""
    rows = folder / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < end:
        if rows.exists() and len(rows.read_bytes().splitlines()) >= 2:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)


def _check_accuracies(folder: Path, failures: dict) -> Check:
    what = "fp32, TF32 and bf16 train digits to the same accuracy"
    broken = [f"{name}: {failures[name]}" for name in SOURCES if failures[name]]
    if broken:
        return Check(what, False, "; ".join(broken))
    rates = {name: read_json(run_folder(folder, name) / "summary.json")["test_accuracy"] for name in SOURCES}
    seen = ", ".join(f"{name} {100 * rate:.2f} %" for name, rate in rates.items())
    return Check(what, max(rates.values()) - min(rates.values()) <= POINTS, seen)


def _check_continued(folder: Path, failures: dict, saved: str | None) -> Check:
    what = "a run stopped by SIGTERM and continued ends as the unbroken one (fp32, deterministic)"
    broken = [failures[name] for name in ("whole", "cut") if failures[name]]
    if broken:
        return Check(what, False, "; ".join(broken))
    if not (saved or "").startswith(f"exit status {128 + signal.SIGTERM}:"):
        return Check(what, False, f"it was not stopped: {saved or 'it ran to its end'}")
    states = []
    for name in ("whole", "cut"):
        path = run_folder(folder, name) / "checkpoints" / "checkpoint_latest.pt"
        states.append(torch.load(path, map_location="cpu", weights_only=True)["model"]["state_dict"])
    difference = largest_difference(*states)
    return Check(what, difference == 0, "bit-equal" if difference == 0 else f"weights differ by {difference:.1e}")


def check_logs(folder: Path) -> Check:
    """Whether no log of a run below `folder` says that a step was not recorded."""
    logs = sorted(folder.rglob("output.log"))
    told = [line for log in logs for line in log.read_text().splitlines() if FALLBACK in line]
    seen = told[0][:200] if told else f"{len(logs)} logs"
    return Check("no run fell back to ordinary steps", bool(logs) and not told, seen)


def check_two_processes(folder: Path, end: float, count: int | None = None, device: str = "cuda") -> Check:
    """Whether two processes, a GPU each, train digits as one does; not run where there is one GPU."""
    what = "two processes under torchrun"
    count = torch.cuda.device_count() if count is None else count
    if count < 2:
        return Check(what, None, f"{count} GPU here")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    failure = finish({"two": start(f"{SOURCE} --no-tf32 -msg two", folder, device, launcher)}, end)["two"]
    if failure:
        return Check(what, False, failure)
    one, two = (json.loads((run_folder(folder, name) / "summary.json").read_text())["test_accuracy"]
                for name in ("fp32", "two"))
    return Check(what, abs(one - two) <= POINTS, f"one {100 * one:.2f} %, two {100 * two:.2f} %")
