"""train.py beside itself, interrupted inside an epoch and started again; killed runs are those of test_kills.py."""

import signal
import subprocess
import sys
import time

import torch
from commands import ROOT, call, good
from comparing import same_runs
from small_runs import SOURCE, TRAIN

from utils.runs.checkpoints import find_checkpoint, load_checkpoint

LONG = ("-tt", "margin", *TRAIN, "--train-size", 512, "-ep", 4)


def test_a_run_in_use_is_refused_and_an_interrupted_one_ends_bit_equal(tmp_path):
    good("train", "-d", tmp_path / "unbroken", *LONG)
    command = [str(c) for c in (sys.executable, ROOT / "train.py", "-d", tmp_path, *LONG)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    rows, deadline = tmp_path / SOURCE / "metrics.jsonl", time.monotonic() + 300
    while not (rows.exists() and rows.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    locked = call("train", "-d", tmp_path, *LONG)
    assert locked.status == 2 and "in use by another process" in locked.err
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and err.count("\n") == 1 and "the same command" in err
    last, clean = (load_checkpoint(find_checkpoint(tmp_path / SOURCE, "last", kind)) for kind in ("paper", "clean"))
    weights, twin = last["model"]["state_dict"], clean["model"]["state_dict"]  # of the same step
    assert all(torch.equal(weights[name], twin[name]) for name in weights if "running" not in name)
    assert not torch.equal(weights["1.layers.1.running_mean"], twin["1.layers.1.running_mean"])
    assert "continuing in epoch" in good("train", "-d", tmp_path, *LONG)
    same_runs(tmp_path / SOURCE, tmp_path / "unbroken" / SOURCE)
