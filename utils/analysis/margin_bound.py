"""Upper bound of the margin of each trigger (Table 5): the smallest eps at which projected ascent changes the answer.

Distances are in the maximum norm, in pixel units ([0, 1]).
"""

import torch

from utils.analysis.finished_run import FinishedRun
from utils.watermark.ascent import ascend

GRID, CELLS = 1 / 2550, 512  # margins are resolved to a tenth of a grey level, up to 0.2


def margin_bound(model, x, y, steps: int = 20, grid: float = GRID, cells: int = CELLS):
    """Upper bound of the margin of x (N, 3, H, W) in [0, 1] under labels y (N,): eps (N,) in pixel units.

    Bisection over the multiples of `grid` for the smallest eps at which `steps` steps of ascent change the answer
    from y; 0 where the model does not answer y in the first place, grid * cells where no eps of the grid changes the
    answer. The ascent, like any attack, may fail where another one succeeds: the true margin is at most this.
    """
    shape = (-1, *[1] * (x.dim() - 1))

    def still_y(eps):
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
        holds = still_y(middle * grid)
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    return torch.where(right, high * grid, torch.zeros_like(high * grid))


def report_margin(run: FinishedRun) -> dict:
    """A run's cell of Table 5: the mean over all triggers, and over those that the model answers as assigned."""
    x = run.triggers.images.to(run.device).float().div(255)
    bound = margin_bound(run.model, x, run.triggers.labels.to(run.device)).cpu()
    positive = bound[bound > 0]
    return {
        "mean": round(float(bound.mean()), 6),
        "mean_of_kept": round(float(positive.mean()), 6) if len(positive) else None,
        "kept": len(positive), "triggers": len(bound), "margins": [round(v, 6) for v in bound.tolist()],
    }
