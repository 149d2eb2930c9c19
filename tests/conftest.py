"""Shared by all tests: small things on the CPU, no network."""

import os
import subprocess
import sys
from pathlib import Path

# before torch is imported, and for every process that a test starts: runs in this process and in others are compared
# bit for bit, which takes the same number of threads, and a forked child of a process with several would hang
os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def run(script, *flags, status=0, cwd=ROOT, timeout=300):
    """Run a script as a user would; returns the finished process after checking its exit status."""
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout)
    assert done.returncode == status, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done
