"""A run is a folder that explains itself and can go on: settings, log, rows, checkpoints, summary."""

import contextlib
import ctypes
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
from utils import distributed, guard
from utils.refuse import Refusal
from utils.triggers import Trigger

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
        old = there.get("settings", {})
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
            lines = (self.path / "metrics.jsonl").read_text().splitlines()
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


def read_json(path: Path) -> dict | None:
    """The JSON object in a file, None where there is no file; Refusal where it is damaged."""
    try:
        content = json.loads(guard.content(path))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{path} is damaged: restore it, or pass --overwrite to begin anew") from error
    return content if isinstance(content, dict) else {}


def write(path: Path, content: bytes, private: bool = False) -> None:
    """Write a file whole or not at all: temporary name, fsync, rename. Of several processes rank 0 does it.

    `private`: nobody but the owner reads it.
    """
    if not distributed.chief():
        return
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb", opener=_private if private else None) as file:
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


def check_output(path, flag: str) -> None:
    """Refuse, before long work, a file that cannot be written for want of its folder, or because it is one."""
    if path and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
        why = "is a folder" if Path(path).is_dir() else f"there is no folder {Path(path).parent}"
        raise Refusal(f"{flag} {path}: {why}; name a file in a folder that is there")


def write_json(path: Path, content: dict, private: bool = False) -> None:
    """Write JSON whole or not at all."""
    write(path, (json.dumps(content, indent=2) + "\n").encode(), private)


def _private(path, flags):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # the mode counts for new files only
    return os.open(path, flags | os.O_EXCL, 0o600)


def save(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint whole or not at all, and private: it may hold the trigger set."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write(path, buffer.getbuffer(), private=True)


def load(path: Path) -> dict:
    """Read a checkpoint as data (see `guard.tensors`); Refusal where it is missing, damaged or foreign."""
    try:
        checkpoint = guard.tensors(path)
    except FileNotFoundError as error:
        raise Refusal(f"checkpoint {path} does not exist") from error
    except (PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # a damaged or hostile file may raise nearly anything
        why = " ".join(str(error).split())[:100]
        raise Refusal(
            f"{path} is no checkpoint that can be read safely (truncated, damaged or foreign: "
            f"{type(error).__name__}: {why!r}); train the model again or name another run"
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
        classes = len(weights["1.linear.bias"])
        if not all(t.is_floating_point() or name.endswith("num_batches_tracked") for name, t in weights.items()):
            raise ValueError("weights that are whole numbers")
        if classes < 2:
            raise ValueError("fewer than two classes")
        with torch.device("meta"):  # no memory before the file has shown that it holds as much
            model = models.build(model_type, classes, width=first.shape[0])
        model.load_state_dict(weights, assign=True)
        model.float()
        trigger = _trigger(checkpoint["query_model"]["state_dict"], classes) if "query_model" in checkpoint else None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:120]
        raise Refusal(f"{path} does not hold a model of this project ({type(error).__name__}: {why!r})") from error
    model.requires_grad_(False).eval()
    return models.place(model, device), trigger


def read_model(path, device="cpu"):
    """The model alone of a checkpoint file, frozen and in eval mode."""
    return unpack(load(path), path, device)[0]


def read_trigger(path, classes: int) -> Trigger:
    """The trigger set in a run's `triggers.pt`; Refusal where it is damaged or does not fit `classes`."""
    state = load(path)
    try:
        named = {"query": state["images"], "response": state["labels"], "original_response": state["true_labels"]}
        return _trigger(named | {"sources": state["sources"]}, classes)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        raise Refusal(f"{path} does not hold a trigger set ({type(error).__name__}: {str(error)[:80]!r})") from error


def _trigger(state: dict, classes: int) -> Trigger:
    images, labels = state["query"], state["response"]
    m = len(labels)
    true = state.get("original_response", torch.zeros(m, 0))
    sources = state.get("sources", torch.zeros(m, 0))
    if images.shape != (m, 3, 32, 32) or labels.shape != (m,) or m < 1 or len(true) != m or len(sources) != m:
        raise ValueError("trigger images, labels and true labels do not fit together")
    if images.is_floating_point():
        images = images.double().clamp(0, 1).mul(255).round()
    elif images.dtype != torch.uint8:
        raise ValueError("trigger images are neither bytes nor numbers in [0, 1]")
    images, labels, true, sources = images.to(torch.uint8), labels.long(), true.long(), sources.long()
    if not all(((0 <= t) & (t < classes)).all() for t in (labels, true)):
        raise ValueError(f"a label is outside the {classes} classes")
    return Trigger(images, labels, true.reshape(m, -1) if true.numel() else torch.zeros(m, 0, dtype=torch.long),
                   sources.reshape(m, -1) if sources.numel() else torch.zeros(m, 0, dtype=torch.long))


def find(folder, select: str | None = "val", statistics: str = "paper") -> Path:
    """The checkpoint of a run folder that is used: best on validation or last, with which running statistics.

    `select` None takes the one that the run itself reports. A path of a file is that file.
    """
    folder = Path(folder)
    if folder.is_file():
        return folder
    if select is None:
        select = "last" if (read_json(folder / "summary.json") or {}).get("select") == "last" else "val"
    name = {"val": "nat_best", "last": "latest"}[select] + {"paper": "", "clean": "_clean"}[statistics]
    path = folder / "checkpoints" / f"checkpoint_{name}.pt"
    if not folder.is_dir():
        raise Refusal(f"there is no run in {folder}: train it first, or correct the flags that name the folder")
    if not path.is_file():
        hint = "; only runs with --bn-stats paper keep clean statistics beside" if statistics == "clean" else ""
        raise Refusal(f"there is no checkpoint {path}: let the run finish its first epoch{hint}")
    return path
