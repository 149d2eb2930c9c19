"""Trigger sets in checkpoints and in a run's `triggers.pt`, and a picture of one."""

import math
import os

import torch

from utils.runs.checkpoints import load_checkpoint, refuse_errors, restore_model
from utils.system.machine import figure_png, new_figure
from utils.system.refusals import Refusal
from utils.watermark.triggers import TriggerSet

TRIGGERS_LIMIT = 1 << 30  # bytes; the most triggers of a claim, 256 x 256, take 0.8 GB
# parts of a `TriggerSet` -> their keys in a checkpoint, the official code's
KEYS = {"images": "query", "labels": "response", "true_labels": "original_response", "sources": "sources",
        "candidates": "candidates", "groups": "groups"}


def pack_triggers(triggers: TriggerSet | None) -> dict:
    """The entry of a checkpoint that holds the owner's trigger set, under the official keys; empty without one."""
    if triggers is None:
        return {}
    state = {KEYS[name]: part for name, part in vars(triggers).items()}
    return {"query_model": {"type": "stochastic", "state_dict": state}}


def unpack_source(checkpoint: dict, path, device="cpu"):
    """(model, TriggerSet or None) of a checkpoint; the model is frozen and in eval mode.

    Raises Refusal, which names `path`, where the parts do not fit.
    """
    model = restore_model(checkpoint, path, device)
    if "query_model" not in checkpoint:
        return model, None
    part = lambda name: checkpoint["query_model"]["state_dict"].get(KEYS[name])
    return model, _checked(part, path, model.num_classes, model.size)


def read_triggers(path, classes: int) -> TriggerSet:
    """The trigger set in a run's `triggers.pt`; Refusal where it is damaged or does not fit `classes`."""
    if os.path.isfile(path) and os.path.getsize(path) > TRIGGERS_LIMIT:
        raise Refusal(f"{path} is larger than {TRIGGERS_LIMIT} bytes, the most that is read of triggers")
    return _checked(load_checkpoint(path).get, path, classes)


def check_groups(triggers: TriggerSet) -> None:
    """ValueError where the groups are not what `TriggerSet` says."""
    groups, m = triggers.groups, len(triggers)
    if groups.shape == (0,):
        return
    if groups.dtype != torch.int64 or groups.shape != (m,) or not ((0 <= groups) & (groups < m)).all():
        raise ValueError("the groups of triggers are no positions of triggers")
    if not triggers.candidates.shape[1] or not all(
            torch.equal(part, part[groups]) for part in (groups, triggers.labels, triggers.candidates)):
        raise ValueError("triggers of a group have other labels or candidates")


def _checked(part, path, classes: int, size: int | None = None) -> TriggerSet:
    """The trigger set whose parts an untrusted file holds; Refusal, which names `path`, where they do not fit.

    part  name of a part -> tensor, None for one that may be absent; may raise whatever a foreign file makes it raise
    """
    with refuse_errors(f"{path} does not hold a trigger set"):
        images, labels = part("images"), part("labels")
        m, size = len(labels), size or images.shape[-1]
        true, sources = (torch.zeros(m, 0) if part(n) is None else part(n) for n in ("true_labels", "sources"))
        if images.shape != (m, 3, size, size) or not 16 <= size <= 256:
            raise ValueError("trigger images are no squares of the size that the model takes")
        if labels.shape != (m,) or m < 1 or len(true) != m or len(sources) != m:
            raise ValueError("trigger images, labels and true labels do not fit together")
        if any(t.numel() and t.dtype != torch.int64 for t in (labels, true, sources)):  # others would grow eightfold
            raise ValueError("labels or sources are no 64-bit whole numbers")
        if images.is_floating_point():
            images = images.float().clamp(0, 1).mul_(255).round_()  # in place, as a hostile file may hold gigabytes
        elif images.dtype != torch.uint8:
            raise ValueError("trigger images are neither bytes nor numbers in [0, 1]")
        images = images.to(torch.uint8)
        true, sources = (t.long().reshape(m, t[0].numel()) for t in (true, sources))
        if not all(((0 <= t) & (t < classes)).all() for t in (labels, true)):
            raise ValueError(f"a label is outside the {classes} classes")
        c, groups = part("candidates"), part("groups")
        if c is None or c.shape == (m, 0):
            c = None
        elif c.dim() != 2 or len(c) != m or not 2 <= c.shape[1] <= classes:
            raise ValueError(f"the candidates of a label are not 2 to {classes} for each trigger")
        elif c.dtype != torch.int64 or not ((0 <= c) & (c < classes)).all():
            raise ValueError(f"a candidate is none of the {classes} classes")
        elif (c.sort(dim=1).values.diff(dim=1) == 0).any():
            raise ValueError("a candidate is named twice")
        elif not (c == labels[:, None]).any(dim=1).all():
            raise ValueError("a label is not among its candidates")
        check_groups(found := TriggerSet(images, labels, true, sources, c, groups))
        return found


def draw_trigger_picture(triggers: TriggerSet, classes: list[str]) -> bytes:
    """A PNG of the trigger set, each image titled `true labels -> assigned label`."""
    shown, size = min(len(triggers), 100), triggers.images.shape[-1]
    columns = min(10, shown)
    rows = math.ceil(shown / columns)
    gap, top = 6 * size // 32, 18 * size // 32  # pixels: the space beside an image, and for two lines above it
    canvas = torch.full((3, rows * (size + top), columns * (size + gap)), 255, dtype=torch.uint8)
    width, height = 1.25 * columns, 1.25 * rows * (size + top) / (size + gap)  # inches, as the canvas is shaped
    figure, _ = new_figure(width, height + 0.25)
    figure.set_layout_engine("none")
    ax = figure.add_axes((0, 0, 1, height / (height + 0.25)))  # one axes, because a hundred axes take seconds
    drawn = f", drawn from {choices} classes" if (choices := triggers.candidates.shape[1]) else ""
    figure.suptitle(f"trigger set: true label → assigned label{drawn} ({shown} of {len(triggers)} shown)",
                    fontsize=9, y=0.995)
    short = [name if len(name) <= 9 else f"{name[:8]}…" for name in classes]
    for i in range(shown):
        row, column = divmod(i, columns)
        y, x = row * (size + top) + top, column * (size + gap) + gap // 2
        canvas[:, y : y + size, x : x + size] = triggers.images[i]
        true = "+".join(short[t] for t in triggers.true_labels[i].tolist()) or "?"
        ax.text(x + size / 2, y - 2, f"{true}\n→ {short[int(triggers.labels[i])]}", fontsize=7, ha="center",
                va="bottom", parse_math=False)
    ax.imshow(canvas.permute(1, 2, 0).numpy(), aspect="equal")
    ax.axis("off")
    return figure_png(figure)
