"""Checkpoints: a model, and with it the owner's trigger set, in a file of tensors, numbers and strings."""

import io
from pathlib import Path

import torch

import models
from utils import guard
from utils.files import read_json, write
from utils.refuse import Refusal
from utils.triggers import Trigger


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


def read_benign(run, device="cpu"):
    """The model of a run named by --benign, see `check_benign`."""
    path = find(run, None)
    checkpoint = load(path)
    check_benign(checkpoint, run)
    return unpack(checkpoint, path, device)[0]


def check_benign(checkpoint: dict, run) -> None:
    """Refuse, for --benign, a checkpoint of a watermarked model or of an attack's result."""
    about = checkpoint.get("about")
    about = about if isinstance(about, dict) else {}
    if about.get("train_type", "none") != "none" or "attack" in about:
        kind = str(about.get("attack") or about.get("train_type"))[:40]
        raise Refusal(f"--benign {run} is no independent model but the result of {kind!r}; "
                      "name a run of train.py -tt none")


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
