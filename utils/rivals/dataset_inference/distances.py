"""DI's distances: how far points lie from a model's decision boundaries, in three norms, by two kinds of walk.

Training images lie farther from a model's decision boundaries than unseen ones, and copies inherit that (Maini et al.,
2021). Blind Walk uses only top-1 answers (black box), MinGD uses gradients (white box). Pixels are in [0, 1]; step
sizes, numbers of steps and restarts are those of the authors' code.
"""

import torch

from utils.training.metrics import predict

METRICS = ("linf", "l2", "l1")
RESTARTS, CHECKS = 10, 50  # Blind Walk: random directions a point, steps a direction
STEPS, TOP = 500, 100  # MinGD: steps at most; pixels that a step in l1 moves
TARGETS = 10  # MinGD: target classes of a point; with more than 10 classes those ranked 2nd to 11th
BATCH = 500  # points computed at once


def distance_norm(delta, metric: str):
    """Norms (N,) of delta (N, ...); `metric` is one of `METRICS`."""
    return torch.linalg.vector_norm(delta.flatten(1), {"linf": float("inf"), "l2": 2, "l1": 1}[metric], dim=1)


def walk_noise(shape, metric: str, generator):
    """A step of the Blind Walk: U(-.005, .005) for linf, N(0, .005^2) for l2, Laplace of scale .01 for l1."""
    if metric == "linf":
        return 0.01 * torch.rand(shape, generator=generator) - 0.005
    if metric == "l2":
        return 0.005 * torch.randn(shape, generator=generator)
    draw = lambda: torch.empty(shape).exponential_(generator=generator)
    return 0.01 * (draw() - draw())


@torch.no_grad()
def walk(model, x, y, step, checks: int = CHECKS):
    """delta (N, ...) = clip(k step, -x, 1 - x) for the first k = 1, 2, ... at which the answer is not y.

    x (N, ...) in [0, 1], y (N,), step (N, ...). Where none of the first `checks` answers differs, k = checks + 1. Only
    top-1 answers are used, at most `checks` queries a point.
    """
    last = torch.full_like(y, checks + 1)
    left = torch.arange(len(y), device=y.device)
    for k in range(1, checks + 1):
        flipped = model((x[left] + k * step[left]).clamp(0, 1)).argmax(1) != y[left]
        last[left[flipped]] = k
        left = left[~flipped]
        if not len(left):
            break
    return torch.minimum(torch.maximum(last.view(-1, *[1] * (x.dim() - 1)) * step, -x), 1 - x)


def blind_walk(model, x, y, metric: str, generator, *, scale: float = 1.0, checks: int = CHECKS):
    """`walk` in a random direction for each point: x (N, ...) in [0, 1], y (N,) -> delta (N, ...). Black box.

    y are the true labels, so a point that is misclassified from the start stops at the first step. `generator` is on
    the CPU and draws the noise of all points at once, so that it depends on neither the device nor `BATCH`.
    """
    step = scale * walk_noise(x.shape, metric, generator).to(x)
    parts = torch.arange(len(y), device=y.device).split(BATCH)
    return torch.cat([walk(model, x[part], y[part], step[part], checks) for part in parts])


def mingd(model, x, target, metric: str):
    """Steepest ascent of z_target - max_j z_j until the answer is `target` (N,): x (N, ...) -> delta (N, ...).

    x and x + delta are in [0, 1], z are logits; white box. At most `STEPS` steps of size .001 (linf), .01 (l2), or
    .01 in each of the `TOP` pixels with the largest gradients (l1). As in the authors' code, an l1 step does not move
    pixels that are 0 or 1.
    """
    delta, left = torch.zeros_like(x), torch.arange(len(x), device=x.device)
    for _ in range(STEPS):
        moved = (x[left] + delta[left]).requires_grad_()
        logits = model(moved)
        unfinished = logits.argmax(1) != target[left]  # the forward pass of the gradient is also the check
        if not unfinished.any():
            break
        gap = logits.gather(1, target[left, None])[:, 0] - logits.amax(1)
        (gradient,) = torch.autograd.grad(gap.sum(), moved)
        left, here, gradient = left[unfinished], moved.detach()[unfinished], gradient[unfinished]
        delta[left] = (here + _mingd_step(gradient, here, metric)).clamp(0, 1) - x[left]
    return delta


def _mingd_step(gradient, x, metric):
    if metric == "linf":
        return 0.001 * gradient.sign()
    if metric == "l2":
        return 0.01 * gradient / distance_norm(gradient, metric).clamp_min(1e-12).view(-1, *[1] * (x.dim() - 1))
    stuck = (x <= 0) | (x >= 1) | ((x <= 0.001) & (gradient < 0)) | ((x >= 0.999) & (gradient > 0))
    free = gradient.masked_fill(stuck, 0).flatten(1)
    top = free.abs().topk(min(TOP, free.shape[1]), dim=1).indices
    return torch.zeros_like(free).scatter(1, top, 0.01 * free.gather(1, top).sign()).view_as(x)


def di_features(model, images, labels, kind: str, generator, svhn: bool = False, bar=None):
    """Distances (N, C, 3) of images uint8 (N, 3, 32, 32) with labels (N,); the last axis is in the order of `METRICS`.

    kind "blind"  C = `RESTARTS` walks of `blind_walk`; on SVHN with twice the noise and checks, as published
    kind "mingd"  to every class, the smallest distance first; with more than `TARGETS` classes to those that the model
                  ranks 2nd to 11th, in that order (the authors' "topgd")
    bar           a progress bar that counts walks, or None
    """
    device = next(model.parameters()).device
    x, y, columns = images.to(device).float().div(255), labels.to(device), []
    count = (lambda n: None) if bar is None else bar.update
    if kind == "blind":
        settings = {"scale": 1.0 + svhn, "checks": CHECKS * (1 + svhn)}
        for metric in METRICS:
            for _ in range(RESTARTS):
                columns.append(distance_norm(blind_walk(model, x, y, metric, generator, **settings), metric))
                count(len(y))
        return torch.stack(columns, 1).view(len(y), 3, RESTARTS).transpose(1, 2).cpu()
    order = predict(model, images).argsort(1, descending=True)
    targets = order if order.shape[1] <= TARGETS else order[:, 1:TARGETS + 1]
    for metric in METRICS:
        walks = []
        # positions of (point, target) in targets.flatten()
        for part in torch.arange(targets.numel(), device=device).split(BATCH):
            start = x[part // targets.shape[1]]
            walks.append(distance_norm(mingd(model, start, targets.flatten()[part], metric), metric))
            count(len(part))
        columns.append(torch.cat(walks).view(targets.shape))
    features = torch.stack(columns, 2).cpu()
    return features.sort(1).values if order.shape[1] <= TARGETS else features
