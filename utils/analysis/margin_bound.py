"""TODO (utils.analyze)"""

import torch

from utils.analysis.finished_run import FinishedRun
from utils.watermark.ascent import ascend

GRID, CELLS = 1 / 2550, 512  # margins are resolved to a tenth of a grey level, up to 0.2


def margin_bound(model, x, y, steps: int = 20, grid: float = GRID, cells: int = CELLS):
    """Upper bound of the margin of x (N, 3, H, W) in [0, 1] under labels y (N,): eps (N,) in pixel units.

    Bisection on the grid of eps for the smallest at which `steps` steps of ascent change the answer from y; 0 where
    the model does not answer y to begin with, grid * cells where nothing on the grid changes it. Like any attack,
    the ascent may fail where another succeeds: the true margin is at most this.
    """
    shape = (-1, *[1] * (x.dim() - 1))

    def kept(eps):
        radius = eps.to(x.dtype).view(shape)
        moved = ascend(model, x, y, steps=steps, step_size=radius * 2.5 / steps, eps=radius)
        with torch.no_grad():
            return model(moved).argmax(1) == y

    low = torch.zeros(len(x), dtype=torch.long, device=x.device)
    high = torch.full_like(low, cells)
    with torch.no_grad():
        right = model(x).argmax(1) == y
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        holds = kept(middle * grid)
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    return torch.where(right, high * grid, torch.zeros_like(high * grid))


def report_margin(run: FinishedRun) -> dict:
    """Table 5's cell of a run."""
    x = run.trigger.images.to(run.device).float().div(255)
    bound = margin_bound(run.model, x, run.trigger.labels.to(run.device)).cpu()
    kept = bound[bound > 0]
    return {
        "mean": round(float(bound.mean()), 6), "mean_of_kept": round(float(kept.mean()), 6) if len(kept) else None,
        "kept": len(kept), "triggers": len(bound), "margins": [round(v, 6) for v in bound.tolist()],
    }
