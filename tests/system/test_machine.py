"""What a run records about the machine."""

import json
import os
import subprocess
import sys

import pytest
from commands import ROOT
from tiny_fit import tiny_fit


@pytest.mark.slow
def test_training_needs_no_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    tiny_fit(tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["git_commit"] is None
    assert about["command"] and about["device"] == "cpu" and about["torch"] and about["python"] and about["started"]


@pytest.mark.parametrize("others, set_by_user, policy", [
    (0, "", "None"), (os.cpu_count(), "", "passive"), (os.cpu_count(), "GOMP_SPINCOUNT=9", "None")])
def test_threads_sleep_beside_busy_programs_unless_the_user_says_otherwise(others, set_by_user, policy):
    """In a process of its own, that has not imported torch; `others` threads of other programs run."""
    code = ("import os, utils; os.environ.pop('OMP_WAIT_POLICY', None); utils._running = lambda: 1 + {}; "
            "utils.wait_quietly_beside_others(); print(os.environ.get('OMP_WAIT_POLICY'))")
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | {"OMP_NUM_THREADS": "2"}
    env |= dict([set_by_user.split("=")] if set_by_user else [])
    done = subprocess.run([sys.executable, "-c", code.format(others)], capture_output=True, text=True,
                          env=env, cwd=ROOT)
    assert done.stdout.strip() == policy, done.stderr
