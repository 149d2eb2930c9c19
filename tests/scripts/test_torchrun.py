"""The scripts under torchrun, with two processes."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
from commands import ROOT, TORCHRUN, torchrun
from comparing import same_runs

COMMON = ("-dt", "digits", "-tt", "margin", "-nq", 4, "--width", 2, "--batch-size", 16, "--device", "cpu",
          "--train-size", 96)
TRAIN = ("train.py", "-mt", "vgg11", "-ep", 6, "--trigger-batch", 5, "--steps", 1, *COMMON)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a source that two processes trained without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    done = torchrun(*TRAIN, "-d", folder)
    assert all(done.stdout.count(f"epoch {i}/6") == 1 for i in range(1, 7))
    return folder / "digits_vgg11_margin_4_"


def test_scripts_under_torchrun(whole):
    """Training and extraction: only rank 0 writes, and the folder looks like that of one process."""
    torchrun("extraction.py", "-at", "soft", "-tmt", "vgg11", "-dmt", "vgg11", "-ep", 1, *COMMON, "-d", whole.parent)
    for folder, epochs in ((whole, 6), (whole / "extraction", 1)):
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == epochs
        assert 1 <= json.loads((folder / "summary.json").read_text())["chosen_epoch"] <= epochs


def test_a_killed_worker_is_restarted_and_sigterm_saves(whole, tmp_path):
    """After SIGKILL to rank 0 in one epoch and SIGTERM to torchrun in a later one the run ends bit-equal.

    With --overwrite, which must remove the files of an earlier run and none of its own.
    """
    folder, said = tmp_path / whole.name, tmp_path / "said"

    def wait_for(pattern):
        began = time.monotonic()
        while not re.search(pattern, said.read_text(), re.DOTALL):
            assert launcher.poll() is None and time.monotonic() < began + 120, said.read_text()
            time.sleep(0.01)

    folder.mkdir()
    (folder / "run.json").write_text("{}")  # an earlier run with other settings
    with open(said, "w") as output:
        command = [*TORCHRUN, "--max-restarts", "1", *map(str, TRAIN), "-d", str(tmp_path), "--overwrite"]
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
