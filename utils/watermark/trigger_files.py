"""Trigger sets in checkpoints and in a run's `triggers.pt`, the bytes that a commitment hashes, and a picture."""

import math

import torch

from utils.runs.checkpoints import load_checkpoint, restore_model
from utils.system.refusals import Refusal
from utils.watermark.triggers import TriggerSet

# what reading a part that is missing or of another kind may raise
ERRORS = (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError)


def pack_triggers(triggers: TriggerSet | None) -> dict:
    """The entry of a checkpoint that holds the owner's trigger set, under the official keys; empty without one."""
    if triggers is None:
        return {}
    state = {
        "query": triggers.images,
        "response": triggers.labels,
        "original_response": triggers.true_labels,
        "sources": triggers.sources,
    }
    if triggers.candidates.shape[1]:
        state["candidates"] = triggers.candidates
    return {"query_model": {"type": "stochastic", "state_dict": state}}


def unpack_source(checkpoint: dict, path, device="cpu"):
    """(model, TriggerSet or None) of a checkpoint; the model is frozen and in eval mode.

    Raises Refusal, which names `path`, where the parts do not fit.
    """
    model = restore_model(checkpoint, path, device)
    if "query_model" not in checkpoint:
        return model, None
    try:
        return model, _triggers_of_state(checkpoint["query_model"]["state_dict"], model.num_classes, model.size)
    except ERRORS as error:
        why = " ".join(str(error).split())[:120]
        raise Refusal(f"{path} does not hold a trigger set ({type(error).__name__}: {why!r})") from error


def read_triggers(path, classes: int) -> TriggerSet:
    """The trigger set in a run's `triggers.pt`; Refusal where it is damaged or does not fit `classes`."""
    state = load_checkpoint(path)
    try:
        named = {"query": state["images"], "response": state["labels"], "original_response": state["true_labels"]}
        named |= {"sources": state["sources"], "candidates": state.get("candidates")}
        return _triggers_of_state(named, classes)
    except ERRORS as error:
        raise Refusal(f"{path} does not hold a trigger set ({type(error).__name__}: {str(error)[:80]!r})") from error


def _triggers_of_state(state: dict, classes: int, size: int | None = None) -> TriggerSet:
    images, labels = state["query"], state["response"]
    m = len(labels)
    true = state.get("original_response", torch.zeros(m, 0))
    sources = state.get("sources", torch.zeros(m, 0))
    size = size or images.shape[-1]
    if images.shape != (m, 3, size, size) or not 16 <= size <= 256:
        raise ValueError("trigger images are no squares of the size that the model takes")
    if labels.shape != (m,) or m < 1 or len(true) != m or len(sources) != m:
        raise ValueError("trigger images, labels and true labels do not fit together")
    if images.is_floating_point():
        images = images.double().clamp(0, 1).mul(255).round()
    elif images.dtype != torch.uint8:
        raise ValueError("trigger images are neither bytes nor numbers in [0, 1]")
    images, labels, true, sources = images.to(torch.uint8), labels.long(), true.long(), sources.long()
    if not all(((0 <= t) & (t < classes)).all() for t in (labels, true)):
        raise ValueError(f"a label is outside the {classes} classes")
    none = torch.zeros(m, 0, dtype=torch.long)
    true, sources = (part.reshape(m, -1) if part.numel() else none for part in (true, sources))
    return TriggerSet(images, labels, true, sources, _checked_candidates(state.get("candidates"), labels, classes))


def _checked_candidates(candidates, labels, classes: int):
    """Candidates int64 (m, c) of an untrusted file, None where it has none; ValueError where they do not fit."""
    if candidates is None or candidates.shape == (len(labels), 0):
        return None
    if candidates.dim() != 2 or len(candidates) != len(labels) or not 2 <= candidates.shape[1] <= classes:
        raise ValueError(f"the candidates of a label are not 2 to {classes} for each trigger")
    if candidates.dtype != torch.int64 or not ((0 <= candidates) & (candidates < classes)).all():
        raise ValueError(f"a candidate is none of the {classes} classes")
    ordered = candidates.sort(dim=1).values
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise ValueError("a candidate is named twice")
    if not (candidates == labels[:, None]).any(dim=1).all():
        raise ValueError("a label is not among its candidates")
    return candidates


def draw_trigger_picture(triggers: TriggerSet, classes: list[str], path) -> None:
    """Draw the trigger set as a PNG to a path or open file, each image titled `true labels -> assigned label`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = min(len(triggers), 100)
    columns = min(10, shown)
    rows = math.ceil(shown / columns)
    size = triggers.images.shape[-1]
    gap, top = 6 * size // 32, 18 * size // 32  # pixels: the space beside an image, and for two lines above it
    canvas = torch.full((3, rows * (size + top), columns * (size + gap)), 255, dtype=torch.uint8)
    width, height = 1.25 * columns, 1.25 * rows * (size + top) / (size + gap)  # inches, as the canvas is shaped
    figure = Figure(figsize=(width, height + 0.25))
    ax = figure.add_axes((0, 0, 1, height / (height + 0.25)))  # one axes, because a hundred axes take seconds
    choices = triggers.candidates.shape[1]  # of which the true label may be one, so that it may be the assigned one
    drawn = f", drawn from {choices} plausible ones" if choices else ""
    title = f"trigger set: true label → assigned label{drawn} ({shown} of {len(triggers)} shown)"
    figure.suptitle(title, fontsize=9, y=0.995)
    short = [name if len(name) <= 9 else f"{name[:8]}…" for name in classes]
    for i in range(shown):
        row, column = divmod(i, columns)
        y, x = row * (size + top) + top, column * (size + gap) + gap // 2
        canvas[:, y : y + size, x : x + size] = triggers.images[i]
        true = "+".join(short[t] for t in triggers.true_labels[i].tolist()) or "?"
        title = f"{true}\n→ {short[int(triggers.labels[i])]}"
        ax.text(x + size / 2, y - 2, title, fontsize=7, ha="center", va="bottom", parse_math=False)
    ax.imshow(canvas.permute(1, 2, 0).numpy(), aspect="equal")
    ax.axis("off")
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, format="png")
