"""A run is a folder that explains itself and can go on: settings, log, rows, checkpoints, summary."""

import contextlib
import ctypes
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from utils import distributed
from utils.checkpoint import load, save
from utils.files import read_json, write, write_json
from utils.refuse import Refusal

ROOT = Path(__file__).resolve().parent.parent
OWN_FILES = ("run.json", "metrics.jsonl", "output.log", "summary.json", "trigger.png", "triggers.pt", "commitment.json",
             "key.json")
# settings that change where and how a run is computed, not what it computes
NOT_COMPARED = ("dir", "data_dir", "data_dir_source", "device", "overwrite", "benign", "skip_bad_images", "graph")


def run_name(args, model_type: str) -> str:
    """The official folder name: dataset_model[_querytype]_traintype_m[_mixup]_message."""
    if args.query_type:
        parts = [args.dataset, model_type, args.query_type, args.train_type, args.num_query, args.num_mixup]
    else:
        parts = [args.dataset, model_type, args.train_type, args.num_query]
    return "_".join(map(str, [*parts, args.message]))


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU; Refusal for a device that is not there.

    Under torchrun the processes meet here, and each gets a GPU of its own.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise Refusal(f"--device {name}: this machine or this PyTorch has none; pass --device auto or cpu")
    return distributed.join(torch.device(name))


def prepare(seed: int, deterministic: bool, tf32: bool = True) -> None:
    """Seed the initial weights; `deterministic` forbids kernels whose results vary between runs."""
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = tf32
    _keep_memory()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def _keep_memory() -> None:
    """Let glibc keep freed memory: else a step on the CPU maps its activations anew, a tenth of its time."""
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)


class Run:
    """The run folder `path`, held by a lock that dies with the process.

    Nothing is made before `open`. A folder with the same settings is continued, one with others is refused.
    """

    def __init__(self, path, settings: dict, overwrite_hint: str):
        self.path, self.checkpoints = Path(path), Path(path) / "checkpoints"
        self.settings = {k: v for k, v in settings.items() if k not in NOT_COMPARED}
        self.hint = overwrite_hint

    def check(self, overwrite: bool) -> None:
        """Refuse a folder that holds a run with other settings. Makes nothing."""
        if overwrite:
            return
        there = read_json(self.path / "run.json")
        if there is None:
            if any(self.checkpoints.glob("checkpoint_*.pt")):
                raise Refusal(f"{self.path} holds checkpoints of another program: pass {self.hint} or --overwrite")
            return
        old = there.get("settings")
        if not isinstance(old, dict):
            raise Refusal(f"{self.path / 'run.json'} is damaged: restore it, or pass --overwrite to begin anew")
        # a flag that an older version did not know counts as off
        differ = [k for k, v in self.settings.items() if old.get(k) != v and (k in old or v)]
        if differ:
            key = differ[0]
            raise Refusal(
                f"{self.path} holds a run with other settings ({key.replace('_', '-')} was {old.get(key)!r}, "
                f"is {self.settings[key]!r}{', ...' if len(differ) > 1 else ''}): pass {self.hint} or --overwrite"
            )
        self.settings = {k: v for k, v in self.settings.items() if k in old}  # those that it has committed to

    def open(self, device: torch.device, overwrite: bool) -> "Run":
        """Make or take up the folder; with `overwrite` an old run in it is removed first.

        Where torchrun starts the processes anew, a run with the same settings is theirs and goes on.
        """
        if distributed.restarts():
            with contextlib.suppress(Refusal):
                self.check(False)
                overwrite = False
        with distributed.chief_first():
            if distributed.chief():
                self._open(device, overwrite)
        return self

    def _open(self, device, overwrite):
        # closed to others: from the seed, which the settings name, and the data anyone draws the triggers anew
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.checkpoints.mkdir(exist_ok=True)
        self._lock = open(self.path / ".lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Refusal(f"{self.path} is in use by another process; wait for it or pass {self.hint}") from error
        if overwrite:
            # what lets a run end or go on is removed first, its settings last: a kill in between does no harm
            latest = [self.checkpoints / f"checkpoint_{name}.pt" for name in ("previous", "latest")]
            first = [self.path / "summary.json", *latest]
            last = [self.path / name for name in reversed(OWN_FILES)]
            for old in [*first, *self.checkpoints.glob("checkpoint_*.pt"), *last]:
                old.unlink(missing_ok=True)
        for partial in (*self.path.glob(".*.partial"), *self.checkpoints.glob(".*.partial")):
            partial.unlink()
        if not (self.path / "run.json").exists():
            self.write_json("run.json", {"settings": self.settings, **surroundings(device)})
        self.log(" ".join(sys.argv))

    @property
    def finished(self) -> bool:
        """Whether the folder holds the summary of a finished run."""
        return (self.path / "summary.json").exists()

    def log(self, text: str) -> None:
        """One entry on the screen and, with the time, in `output.log`."""
        if not distributed.chief():
            return
        print(text, flush=True)
        with open(self.path / "output.log", "a") as file:
            stamp = time.strftime("%Y/%m/%d %H:%M:%S")
            file.writelines(f"[{stamp}] {line}\n" for line in text.splitlines())

    def rows(self) -> list[dict]:
        """The rows of `metrics.jsonl`, one an epoch."""
        try:
            lines = (self.path / "metrics.jsonl").read_bytes().splitlines()
        except FileNotFoundError:
            return []
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise Refusal(f"{self.path / 'metrics.jsonl'} is damaged: restore it, or pass --overwrite") from error

    def write_rows(self, rows: list[dict]) -> None:
        """Replace `metrics.jsonl`."""
        write(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def write_json(self, name: str, content: dict, private: bool = False) -> None:
        """Write `content` as JSON under `name`."""
        write_json(self.path / name, content, private)

    def save(self, name: str, checkpoint: dict) -> None:
        """Write `checkpoints/checkpoint_<name>.pt`, plain tensors, numbers and strings only.

        The last `latest` but one stays as `previous`, for a disk that damages files.
        """
        path = self.checkpoints / f"checkpoint_{name}.pt"
        if name == "latest" and path.exists() and distributed.chief():
            partial = self.checkpoints / ".checkpoint_previous.pt.partial"
            partial.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a file system without hard links keeps but one
                os.link(path, partial)
                os.replace(partial, self.checkpoints / "checkpoint_previous.pt")
                partial.unlink(missing_ok=True)  # it stays where both names were one file already
        save(path, checkpoint)

    def load(self, name: str) -> dict | None:
        """Read `checkpoints/checkpoint_<name>.pt`; None where there is none. A damaged `latest` yields `previous`."""
        path = self.checkpoints / f"checkpoint_{name}.pt"
        previous = self.checkpoints / "checkpoint_previous.pt"
        if name == "latest" and previous.exists():
            try:
                return load(path)
            except Refusal as refusal:
                self.log(f"{refusal}; going on from {previous}")
                path = previous
        return load(path) if path.exists() else None


def surroundings(device: torch.device) -> dict:
    """Command line, commit, device and versions of this process."""
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
