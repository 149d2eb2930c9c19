"""train.py is killed or interrupted and started again: the run ends bit-equal."""

import signal
import subprocess
import sys
import time

import pytest
import torch
from commands import ROOT, call, good, run, summary
from comparing import same_runs
from digits_runs import SOURCE, TRAIN

from utils.runs.checkpoints import find_checkpoint, load_checkpoint

LONG = ("-tt", "margin", *TRAIN, "--train-size", 512, "-ep", 6)


def begin(folder):
    command = [str(c) for c in (sys.executable, ROOT / "train.py", "-d", folder, *LONG)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_rows(process, folder, n, delay):
    """Wait until the run has written n rows, and then for `delay` seconds."""
    path, deadline = folder / SOURCE / "metrics.jsonl", time.monotonic() + 300
    while len(path.read_text().splitlines() if path.exists() else []) < n:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    time.sleep(delay)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    run("train.py", "-d", folder, *LONG, timeout=600)
    return folder / SOURCE


def test_a_second_process_is_refused_while_the_first_writes_the_run(tmp_path):
    process = begin(tmp_path)
    wait_for_rows(process, tmp_path, 1, 0)
    locked = call("train", "-d", tmp_path, *LONG)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before the second began"
    assert locked.status == 2 and "in use by another process" in locked.err


def test_a_run_interrupted_inside_an_epoch_ends_bit_equal(unbroken, tmp_path):
    process = begin(tmp_path)
    wait_for_rows(process, tmp_path, 1, 0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and err.count("\n") == 1 and "the same command" in err
    last, clean = (load_checkpoint(find_checkpoint(tmp_path / SOURCE, "last", kind)) for kind in ("paper", "clean"))
    weights, twin = last["model"]["state_dict"], clean["model"]["state_dict"]  # of the same step
    assert all(torch.equal(weights[name], twin[name]) for name in weights if "running" not in name)
    assert not torch.equal(weights["1.bn1.running_mean"], twin["1.bn1.running_mean"])
    assert "continuing in epoch" in good("train", "-d", tmp_path, *LONG)
    same_runs(tmp_path / SOURCE, unbroken)


def test_the_same_seed_twice_is_bit_equal(unbroken, tmp_path):
    good("train", "-d", tmp_path, *LONG)
    same_runs(tmp_path / SOURCE, unbroken)
    good("train", "-d", tmp_path, *LONG, "--seed", 1, "--overwrite", "-ep", 1)
    other = load_checkpoint(tmp_path / SOURCE / "checkpoints" / "checkpoint_init.pt")["model"]["state_dict"]
    own = load_checkpoint(unbroken / "checkpoints" / "checkpoint_init.pt")["model"]["state_dict"]
    assert not torch.equal(other["1.conv1.weight"], own["1.conv1.weight"])
    assert summary(tmp_path / SOURCE)["seed"] == 1
