"""TODO (utils.inference)"""

import torch

from utils.training.metrics import predict

METRICS = ("linf", "l2", "l1")
RESTARTS, CHECKS = 10, 50  # of the Blind Walk
STEPS, TOP = 500, 100  # of MinGD; pixels that its l1 step moves
TARGETS = 10  # with more classes MinGD aims at the classes ranked 2nd to 11th
BATCH = 500


def distance_norm(delta, metric: str):
    """delta (N, ...) -> (N,) in `metric`."""
    return torch.linalg.vector_norm(delta.flatten(1), {"linf": float("inf"), "l2": 2, "l1": 1}[metric], dim=1)


def walk_noise(shape, metric: str, generator):
    """One step of the Blind Walk: U(-.005, .005) for linf, N(0, .005^2) for l2, Laplace of scale .01 for l1."""
    if metric == "linf":
        return 0.01 * torch.rand(shape, generator=generator) - 0.005
    if metric == "l2":
        return 0.005 * torch.randn(shape, generator=generator)
    draw = lambda: torch.empty(shape).exponential_(generator=generator)
    return 0.01 * (draw() - draw())


@torch.no_grad()
def walk(model, x, y, step, checks: int = CHECKS):
    """delta (N, ...) = clip(k step, -x, 1 - x) at the first k = 1, 2, ... whose answer is not y, else at checks + 1.

    x (N, ...) in [0, 1], y (N,), step (N, ...). Only top-1 answers are used: at most `checks` queries a point.
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
    """`walk` along noise of its own for each point: x (N, ...) in [0, 1], y (N,) -> delta (N, ...). Black-box.

    y are the true labels, so a point that is misclassified from the start stops at the first step. The noise comes
    from a CPU generator, all of it at once: neither device nor `BATCH` changes it.
    """
    step = scale * walk_noise(x.shape, metric, generator).to(x)
    parts = torch.arange(len(y), device=y.device).split(BATCH)
    return torch.cat([walk(model, x[part], y[part], step[part], checks) for part in parts])


def mingd(model, x, target, metric: str):
    """Steepest ascent of z_target - max_j z_j until the answer is `target` (N,): x (N, ...) in [0, 1] -> delta.

    At most `STEPS` steps of .001 (linf), .01 (l2) or .01 on each of the `TOP` steepest pixels (l1), within [0, 1]
    and no other bound; white-box. As in the authors' code an l1 step leaves pixels that are 0 or 1 where they are.
    The forward pass of a gradient is also the check whether to stop, and only unfinished points are computed.
    """
    delta, left = torch.zeros_like(x), torch.arange(len(x), device=x.device)
    for _ in range(STEPS):
        moved = (x[left] + delta[left]).requires_grad_()
        logits = model(moved)
        goes_on = logits.argmax(1) != target[left]
        if not goes_on.any():
            break
        gap = logits.gather(1, target[left, None])[:, 0] - logits.amax(1)
        (gradient,) = torch.autograd.grad(gap.sum(), moved)
        left, here, gradient = left[goes_on], moved.detach()[goes_on], gradient[goes_on]
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
    """Distances (N, C, 3), the last axis as `METRICS`: images uint8 (N, 3, 32, 32), labels (N,).

    "blind": C restarts of `blind_walk` (on SVHN with twice the noise and checks, as published). "mingd": to every
    class, nearest first; with more than `TARGETS` classes to those ranked 2nd to 11th, in that order ("topgd").
    `bar` is told of finished walks.
    """
    device = next(model.parameters()).device
    x, y, columns = images.to(device).float().div(255), labels.to(device), []
    finished = (lambda n: None) if bar is None else bar.update
    if kind == "blind":
        more = {"scale": 1.0 + svhn, "checks": CHECKS * (1 + svhn)}
        for metric in METRICS:
            for _ in range(RESTARTS):
                columns.append(distance_norm(blind_walk(model, x, y, metric, generator, **more), metric))
                finished(len(y))
        return torch.stack(columns, 1).view(len(y), 3, RESTARTS).transpose(1, 2).cpu()
    order = predict(model, images).argsort(1, descending=True)
    targets = order if order.shape[1] <= TARGETS else order[:, 1:TARGETS + 1]
    for metric in METRICS:
        walks = []
        for part in torch.arange(targets.numel(), device=device).split(BATCH):  # (point, target), point by point
            start = x[part // targets.shape[1]]
            walks.append(distance_norm(mingd(model, start, targets.flatten()[part], metric), metric))
            finished(len(part))
        columns.append(torch.cat(walks).view(targets.shape))
    features = torch.stack(columns, 2).cpu()
    return features.sort(1).values if order.shape[1] <= TARGETS else features
