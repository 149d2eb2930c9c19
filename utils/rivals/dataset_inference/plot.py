"""The plot of Dataset Inference: p-value against the number of points, as in the authors' paper."""

import math
from pathlib import Path

from utils.rivals.dataset_inference.regressor import DI_ALPHA
from utils.system.machine import figure_png, new_figure


def draw_di_plot(rows: list[dict]) -> bytes:
    """A PNG with a line for each of `rows`, the source's first: log10 p against the private points of one test."""
    figure, (ax,) = new_figure(6.4, 4, 1, 1)
    for i, row in enumerate(rows):
        points, log10_p = zip(*row["curve"])
        ax.plot(points, log10_p, "o-", ms=3, label=f"{Path(row['model']).name}{'' if i else ' (source)'}")
    ax.axhline(math.log10(DI_ALPHA), color="black", ls="--", lw=1, label=f"claimed below p = {DI_ALPHA:g}")
    ax.set(xlabel="points of one test", ylabel="log10 p, harmonic mean")
    ax.legend(fontsize=8)
    return figure_png(figure)
