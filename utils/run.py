"""A run is a folder that explains itself and can go on: settings, log, rows, checkpoints, summary."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

import models
from utils.refuse import Refusal
from utils.triggers import Trigger

ROOT = Path(__file__).resolve().parent.parent
OWN_FILES = ("run.json", "metrics.jsonl", "output.log", "summary.json", "trigger.png", "triggers.pt")
# settings that change where and how a run is computed, not what it computes
NOT_COMPARED = ("dir", "data_dir", "data_dir_source", "device", "overwrite", "benign", "skip_bad_images")


def run_name(args, model_type: str) -> str:
    """The official folder name: dataset_model[_querytype]_traintype_m[_mixup]_message."""
    if args.query_type:
        parts = [args.dataset, model_type, args.query_type, args.train_type, args.num_query, args.num_mixup]
    else:
        parts = [args.dataset, model_type, args.train_type, args.num_query]
    return "_".join(map(str, [*parts, args.message]))


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU; Refusal for a device that is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[name]:
        raise Refusal(f"--device {name}: this machine or this PyTorch has none; pass --device auto or cpu")
    return torch.device(name)


def prepare(seed: int, deterministic: bool) -> None:
    """Seed the initial weights; `deterministic` forbids kernels whose results vary between runs."""
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


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
        old = there.get("settings", {})
        differ = [k for k in self.settings if old.get(k) != self.settings[k]]
        if differ:
            key = differ[0]
            raise Refusal(
                f"{self.path} holds a run with other settings ({key.replace('_', '-')} was {old.get(key)!r}, "
                f"is {self.settings[key]!r}{', ...' if len(differ) > 1 else ''}): pass {self.hint} or --overwrite"
            )

    def open(self, device: torch.device, overwrite: bool) -> "Run":
        """Make or take up the folder; with `overwrite` an old run in it is removed first."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / ".lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Refusal(f"{self.path} is in use by another process; wait for it or pass {self.hint}") from error
        if overwrite:
            # what lets a run end or go on is removed first, its settings last: a kill in between does no harm
            first = [self.path / "summary.json", self.checkpoints / "checkpoint_latest.pt"]
            last = [self.path / name for name in reversed(OWN_FILES)]
            for old in [*first, *self.checkpoints.glob("checkpoint_*.pt"), *last]:
                old.unlink(missing_ok=True)
        for partial in (*self.path.glob(".*.partial"), *self.checkpoints.glob(".*.partial")):
            partial.unlink()
        if not (self.path / "run.json").exists():
            self.write_json("run.json", {"settings": self.settings, **surroundings(device)})
        self.log(" ".join(sys.argv))
        return self

    @property
    def finished(self) -> bool:
        """Whether the folder holds the summary of a finished run."""
        return (self.path / "summary.json").exists()

    def log(self, text: str) -> None:
        """One entry on the screen and, with the time, in `output.log`."""
        print(text, flush=True)
        with open(self.path / "output.log", "a") as file:
            stamp = time.strftime("%Y/%m/%d %H:%M:%S")
            file.writelines(f"[{stamp}] {line}\n" for line in text.splitlines())

    def rows(self) -> list[dict]:
        """The rows of `metrics.jsonl`, one an epoch."""
        try:
            lines = (self.path / "metrics.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def write_rows(self, rows: list[dict]) -> None:
        """Replace `metrics.jsonl`."""
        write(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def write_json(self, name: str, content: dict) -> None:
        """Write `content` as JSON under `name`."""
        write(self.path / name, (json.dumps(content, indent=2) + "\n").encode())

    def save(self, name: str, checkpoint: dict) -> None:
        """Write `checkpoints/checkpoint_<name>.pt`, plain tensors, numbers and strings only."""
        save(self.checkpoints / f"checkpoint_{name}.pt", checkpoint)

    def load(self, name: str) -> dict | None:
        """Read `checkpoints/checkpoint_<name>.pt`; None where there is none."""
        path = self.checkpoints / f"checkpoint_{name}.pt"
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


def read_json(path: Path) -> dict | None:
    """The JSON object in a file, None where there is no file; Refusal where it is damaged."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} is damaged: restore it, or pass --overwrite to begin anew") from error
    return content if isinstance(content, dict) else {}


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: temporary name, fsync, rename."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint whole or not at all."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write(path, buffer.getbuffer())


def load(path: Path) -> dict:
    """Read a checkpoint as data: `weights_only=True`, numpy's scalars (in official ones) admitted as numbers."""
    core = np._core if hasattr(np, "_core") else np.core
    scalar = core.multiarray.scalar
    numbers = [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        type(np.dtype("float64")),
        type(np.dtype("float32")),
        type(np.dtype("int64")),
    ]
    try:
        with torch.serialization.safe_globals(numbers):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise Refusal(f"checkpoint {path} does not exist") from error
    except (PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # a damaged or hostile file may raise nearly anything
        raise Refusal(
            f"{path} is no checkpoint that can be read safely (truncated, damaged or foreign: "
            f"{type(error).__name__}); train the model again or name another run"
        ) from error
    if not isinstance(checkpoint, dict):
        raise Refusal(f"{path} is no checkpoint of this project or of the official code")
    return checkpoint


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- models in checkpoints ----------------------------------------------------------------------------------


def pack(model, model_type: str, trigger: Trigger | None = None, **more) -> dict:
    """A checkpoint of `model` (and the owner's trigger set) under the official keys."""
    weights = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in model.state_dict().items()}
    checkpoint = {"model": {"state_dict": weights, "type": model_type}, **more}
    if trigger is not None:
        checkpoint["query_model"] = {
            "type": "stochastic",
            "state_dict": {
                "query": trigger.images,
                "response": trigger.labels,
                "original_response": trigger.true_labels,
                "sources": trigger.sources,
            },
        }
    return checkpoint


def unpack(checkpoint: dict, path, device="cpu"):
    """A checkpoint's model, frozen, in eval mode, and its trigger set or None: (model, Trigger | None).

    Shapes decide class count and width. Raises Refusal where the parts do not fit; `path` is named in it.
    """
    try:
        weights, model_type = checkpoint["model"]["state_dict"], checkpoint["model"]["type"]
        first = weights["1.layers.0.weight" if model_type == "vgg11" else "1.conv1.weight"]
        model = models.build(model_type, len(weights["1.linear.bias"]), width=first.shape[0])
        model.load_state_dict(weights)
        trigger = _trigger(checkpoint["query_model"]["state_dict"]) if "query_model" in checkpoint else None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:120]
        raise Refusal(f"{path} does not hold a model of this project ({type(error).__name__}: {why})") from error
    model.requires_grad_(False).eval()
    return models.place(model, device), trigger


def _trigger(state: dict) -> Trigger:
    images, labels = state["query"], state["response"].long()
    if images.is_floating_point():
        images = images.clamp(0, 1).mul(255).round()
    empty = torch.zeros(len(labels), 0, dtype=torch.long)
    true = state.get("original_response", empty).long()
    if images.shape != (len(labels), 3, 32, 32) or len(true) != len(labels):
        raise ValueError("trigger images, labels and true labels do not fit together")
    sources = state.get("sources", empty).long()
    true = true.view(len(labels), -1) if true.numel() else empty
    return Trigger(images.to(torch.uint8), labels, true, sources)


def find(folder, select: str = "val", statistics: str = "paper") -> Path:
    """The checkpoint of a run folder that is used: best on validation or last, with which running statistics."""
    folder = Path(folder)
    if folder.is_file():
        return folder
    name = {"val": "nat_best", "last": "latest"}[select] + {"paper": "", "clean": "_clean"}[statistics]
    path = folder / "checkpoints" / f"checkpoint_{name}.pt"
    if not folder.is_dir():
        raise Refusal(f"there is no run in {folder}: train it first, or correct the flags that name the folder")
    if not path.is_file():
        hint = "; only runs with --bn-stats paper keep clean statistics beside" if statistics == "clean" else ""
        raise Refusal(f"there is no checkpoint {path}: let the run finish its first epoch{hint}")
    return path
