"""Checkpoints: a model under the official code's keys, in a file of tensors, numbers and strings as its own are."""

import contextlib
import io
import os
from pathlib import Path

import torch

import models
from models.outside import describe_error
from utils.system.files import read_json, refuse_links, write_atomically, wrong_kind
from utils.system.refusals import Refusal
from utils.system.tensors import read_tensors

STATISTICS = ("paper", "clean")  # with which running statistics a run keeps its checkpoints


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint whole or not at all. It is private, because it may hold the trigger set."""
    torch.save(checkpoint, buffer := io.BytesIO())
    write_atomically(path, buffer.getbuffer(), private=True)


@contextlib.contextmanager
def refuse_errors(what: str, way: str = "", but=()):
    """Context in which errors of somebody's file or network become the Refusal "`what` (the error); `way`".

    but  kinds of errors that stay what they are
    """
    try:
        yield
    except (Refusal, *but):
        raise
    except (Exception, SystemExit) as error:
        raise Refusal(f"{what} ({describe_error(error)}){way and f'; {way}'}") from error


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint as data (see `read_tensors`); Refusal where it is missing, damaged or foreign."""
    if not Path(path).exists():
        raise Refusal(f"checkpoint {path} does not exist")
    if why := wrong_kind(path, [(rb".{8}\{", "a safetensors file: give it the ending .safetensors"),
                                (rb"$", "it is empty: restore it, name another, or train it again with --overwrite")]):
        raise Refusal(f"{path} is no checkpoint that can be read safely: {why}")
    with refuse_errors(f"{path} is no checkpoint that can be read safely: truncated, damaged, or more than tensors, "
                       "numbers and texts", "train your own again with --overwrite, name another, or write the weights "
                       "of a whole model alone, torch.save(model.state_dict(), FILE), or export it to ONNX",
                       (PermissionError, IsADirectoryError)):
        checkpoint = read_tensors(path)
    if not isinstance(checkpoint, dict):
        raise Refusal(f"{path} is no checkpoint of this project or of the official code")
    if not isinstance(checkpoint.get("about", {}), dict):
        checkpoint["about"] = {}
    return checkpoint


def pack_checkpoint(model, **more) -> dict:
    """A checkpoint of `model` under the official keys; `more` are further entries."""
    weights = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in model.state_dict().items()}
    entry = {"state_dict": weights, "type": model.name}
    if not (models.is_own(model) and model.size == models.SIZE):
        entry |= {"classes": model.num_classes, "size": model.size}
    return {"model": entry, **more}


def restore_model(checkpoint: dict, path, device="cpu"):
    """The model of a checkpoint, frozen and in eval mode; the shapes of the weights give class count and width.

    Raises Refusal, which names `path`, where the weights are not those of an architecture of `models.NAMES` or of
    torchvision, or where a user's function is named that the command line did not name.
    """
    with refuse_errors(f"{path} does not hold a model of this project"):
        entry, width = checkpoint["model"], 64
        weights, model_type, size = entry["state_dict"], entry["type"], int(entry.get("size", models.SIZE))
        own = model_type in models.NAMES
        if own:
            classes = len(weights["1.linear.bias"])
            width = len(weights["1.layers.0.weight" if model_type == "vgg11" else "1.conv1.weight"])
        else:
            _check_outside(entry, path)
            classes = int(entry["classes"])
        if classes < 2:
            raise ValueError("fewer than two classes")

        # first without memory, until the file has shown that it holds as much, which a user's maker does not allow;
        # one from outside then on the CPU, as it may keep tensors that are in no state dict
        devices = ([] if model_type in models.named else ["meta"]) + ([] if own else ["cpu"])
        for where in devices:
            with torch.device(where):
                model = models.build(model_type, classes, width=width, size=size)
            _check_kinds(weights, model)
            model.load_state_dict(weights, assign=where == "meta")
        model.float()
        if not all(bool(t.isfinite().all()) for t in models.trained_tensors(model).values()):
            raise ValueError("its weights are not finite")
    model.requires_grad_(False).eval()
    return models.place(model, device)


def _check_kinds(weights: dict, model) -> None:
    """ValueError where a weight is a whole number and the model's of that name a float, or the reverse.

    Counters are taken as they are: some programs write them as floats.
    """
    wanted = model.state_dict()
    for name, tensor in weights.items():
        if name in wanted and tensor.is_floating_point() != wanted[name].is_floating_point():
            if not name.endswith(models.COUNTER):
                raise ValueError(f"{name[:60]} is {tensor.dtype}, the model's is {wanted[name].dtype}")


def _check_outside(entry: dict, path) -> None:
    """Refuse a file whose architecture is no classifier of torchvision and no function that the command line named."""
    name, classes, size = entry["type"], entry["classes"], entry["size"]
    if not (isinstance(name, str) and isinstance(classes, int) and isinstance(size, int)):
        raise TypeError("an architecture without name, number of classes and size of images")
    if not (2 <= classes <= 100_000 and 16 <= size <= 256):
        raise ValueError(f"{classes} classes of {size} pixels")
    if models.looks_like_function(name) and name not in models.named:
        name = name[:80]
        raise Refusal(f"{path} holds a model of {name}, which is code of somebody's own: add -mt {name} if you trust "
                      "it, or, in extraction.py and distill.py, -tmt for the source and -dmt for --on; --benign and "
                      "--label-model of the scripts import no code: name another model there")


def model_width(model) -> int:
    """Channels of a model's first stage."""
    return next((p.shape[0] for p in model.parameters() if p.dim() == 4), 0)


def read_model(run, device="cpu"):
    """The model of a run, its own choice, or of a checkpoint file; frozen, in eval mode, without a look at triggers."""
    path = find_checkpoint(run)
    return restore_model(load_checkpoint(path), path, device)


def load_typed(path: Path) -> dict:
    """The checkpoint in a file, {} for plain weights, which do not say of which architecture they are."""
    checkpoint = {} if path.suffix in (".safetensors", ".onnx") else load_checkpoint(path)
    entry = checkpoint.get("model")
    return checkpoint if isinstance(entry, dict) and "type" in entry else {}


def read_other(flag: str, run, task: tuple[int, int], device="cpu", classes: list[str] | None = None, checkpoint=None):
    """The model of the run that `flag` (--benign, --suspect, ...) names, frozen and in eval mode.

    task        (number of classes, pixels of an image's side) that it must have
    classes     names that its classes must have, where it says them; None: any
    checkpoint  its checkpoint, where the caller has read it

    Raises Refusal for another task or other classes, for plain weights, and as `check_benign` does.
    """
    path = find_checkpoint(run)
    if not (checkpoint := checkpoint or load_typed(path)):
        raise Refusal(f"{flag} {run} does not say what it is of, as plain weights do not: name a run or a checkpoint")
    if flag == "--benign":
        check_benign(checkpoint, run)
    if classes is not None and checkpoint.get("about", {}).get("classes") not in (None, classes):
        raise Refusal(f"{flag} {run} was trained on other classes, or on these in another order, so that answers "
                      "cannot be compared: name a model of the same classes, or, if the names are wrong, a file of its "
                      "'model'")
    model = restore_model(checkpoint, path, device)
    if (found := (model.num_classes, model.size)) != task:
        raise Refusal(f"{flag} {run} tells {found[0]} classes of {found[1]} pixels apart, wanted are {task[0]} classes "
                      f"of {task[1]} pixels: name another model")
    return model


def check_benign(checkpoint: dict, run) -> None:
    """Refuse, for --benign, a checkpoint of a watermarked model or of an attack's result."""
    about = checkpoint.get("about", {})
    if about.get("train_type", "none") != "none" or "attack" in about:
        kind = str(about.get("attack") or about.get("train_type"))[:40]
        raise Refusal(f"--benign {run} is no independent model but the result of {kind!r}; "
                      "name a run of train.py -tt none")


def find_checkpoint(folder, select: str | None = None, statistics: str = "paper") -> Path:
    """The checkpoint of a run folder that is used: best on validation or last, with which running statistics.

    `select` None takes the one that the run itself reports. A path of a file is that file. Raises Refusal where there
    is none, or where the folder holds symbolic links: whoever reads a model of a run asks here first.
    """
    if not str(folder):
        raise Refusal("a run's name is empty: is a variable of the shell not set?")
    folder = Path(folder)
    if folder.is_file():
        return folder
    refuse_links(folder)
    if select is None:
        select = "last" if (read_json(folder / "summary.json") or {}).get("select") == "last" else "val"
    name = {"val": "nat_best", "last": "latest"}[select] + {"paper": "", "clean": "_clean"}[statistics]
    path = folder / "checkpoints" / f"checkpoint_{name}.pt"
    if not folder.is_dir():
        if folder.suffix.lower() in (".onnx", ".pt", ".pth", ".bin", ".safetensors"):
            raise Refusal(f"there is no file {folder}: correct the flag that names it")
        raise Refusal(f"there is no run in {folder}: train it first, or correct the flags that name the folder"
                      f"{_runs_beside(folder)}")
    if not path.is_file():
        hint = "; only runs with --bn-stats paper or eval of a network with BatchNorm keep clean statistics beside"
        why = f"{folder} is no run's folder; name one, or a checkpoint's file"
        if (folder / "run.json").exists():
            why = "let the run finish its first epoch"
            if (folder / "summary.json").exists():
                why = "restore it, or train the run again with --overwrite"
            why = f"runs of -at prune and quantize keep none; of others {why}"
        raise Refusal(f"there is no checkpoint {path}: {why}{hint if statistics == 'clean' else ''}")
    return path


def run_settings(run) -> dict:
    """The settings of the run to which a folder or one of its checkpoints belongs; {} where there are none."""
    folder = find_checkpoint(run).resolve().parent.parent
    settings = (read_json(folder / "run.json") or {}).get("settings")
    return settings if isinstance(settings, dict) else {}


def _runs_beside(folder: Path) -> str:
    """Which runs lie where one is missed, those of the most similar names first: "; there are ..."; "" if none."""
    names = sorted((path.parent.name for path in folder.parent.glob("*/run.json")),
                   key=lambda name: (-len(os.path.commonprefix([name, folder.name])), name))[:5]
    tags = [name.removeprefix(folder.name) for name in names if name.startswith(folder.name)]
    if tags and folder.name.endswith("_"):
        return f"; the run is there with a tag: pass -msg {' or '.join(tags)}"
    return f"; there are {', '.join(names)}" if names else ""
