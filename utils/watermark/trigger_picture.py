"""The picture of a trigger set."""

import math

import torch

from utils.watermark.triggers import TriggerSet


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
