"""The device, torch's global switches, and what a run records of the machine."""

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from utils.system.processes import join_torchrun
from utils.system.refusals import Refusal

ROOT = Path(__file__).resolve().parents[2]


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU; Refusal for a device that is not there.

    Under torchrun this call also makes the processes meet; each gets a GPU of its own.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise Refusal(f"--device {name}: this machine or this PyTorch has none; pass --device auto or cpu")
    return join_torchrun(torch.device(name))


def prepare_torch(seed: int, deterministic: bool, tf32: bool = True) -> None:
    """Seed torch and set its global switches; `deterministic` forbids kernels whose results vary between runs."""
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = tf32
    _keep_freed_memory()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory. Otherwise each step on the CPU asks the kernel for it again: a tenth of its time."""
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)


def describe_process(device: torch.device) -> dict:
    """Command line, commit, device and versions of this process, for `run.json`."""
    try:
        git = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
        commit = git.stdout.strip() or None
    except OSError:  # no git on this machine
        commit = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "command": sys.argv,
        "git_commit": commit,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
