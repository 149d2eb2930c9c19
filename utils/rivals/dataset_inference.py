"""DI, Dataset Inference (Maini et al., ICLR 2021; rival of Table 2): `python -m utils.verify di RUN --suspect RUN2`.

Training images lie farther from a model's decision boundaries than unseen ones, and copies inherit that. A regressor
learns on the source to tell private from unseen images by their distances; a suspect on which it still tells them apart
knows the private images. Pixels are in [0, 1]; step sizes, step counts and restarts are those of the authors' code.

Item 5 of docs/rivals.md lists the departures.
"""

import itertools
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from utils.ownership import pvalues
from utils.rivals.source import add_verification, read_others, read_source
from utils.system.files import write_atomically, write_json
from utils.system.machine import choose_device, figure_png, new_figure
from utils.system.refusals import COUNT, SEED, Refusal
from utils.training.metrics import predict

METRICS = {"linf": math.inf, "l2": 2, "l1": 1}  # order of each norm
RESTARTS, CHECKS = 10, 50  # Blind Walk: random directions a point, steps a direction
STEPS, TOP = 500, 100  # MinGD: steps at most; pixels that a step in l1 moves
TARGETS = 10  # MinGD: target classes of a point; with more than 10 classes those ranked 2nd to 11th
BATCH = 500  # points computed at once
DI_ALPHA, REPEATS = 0.01, 100  # level of a claim; t-tests, whose p-values are aggregated
CURVE = range(2, 45, 3)  # scores of one test, from the fewest to the most in the authors' curves


def distance_norm(delta, metric: str):
    """Norms (N,) of delta (N, ...); `metric` is one of `METRICS`."""
    return torch.linalg.vector_norm(delta.flatten(1), METRICS[metric], dim=1)


def walk_noise(shape, metric: str, generator):
    """A step of the Blind Walk: U(-.005, .005) for linf, N(0, .005^2) for l2, Laplace of scale .01 for l1."""
    if metric == "linf":
        return 0.01 * torch.rand(shape, generator=generator) - 0.005
    if metric == "l2":
        return 0.005 * torch.randn(shape, generator=generator)
    draw = lambda: torch.empty(shape).exponential_(generator=generator)
    return 0.01 * (draw() - draw())


@torch.no_grad()
def blind_walk(model, x, y, step, checks: int = CHECKS):
    """delta (N, ...) = clip(k step, -x, 1 - x) for the first k = 1, 2, ... at which the answer is not y. Black box.

    x (N, ...) in [0, 1], true labels y (N,), step (N, ...). Where none of the first `checks` answers differs,
    k = checks + 1. Only top-1 answers are used, at most `checks` queries a point; one that is misclassified from the
    start stops at k = 1.
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
        left, here, g = left[unfinished], moved.detach()[unfinished], gradient[unfinished]
        if metric == "linf":
            step = 0.001 * g.sign()
        elif metric == "l2":
            step = 0.01 * g / distance_norm(g, metric).clamp_min(1e-12).view(-1, *[1] * (x.dim() - 1))
        else:
            stuck = (here <= 0) | (here >= 1) | ((here <= 0.001) & (g < 0)) | ((here >= 0.999) & (g > 0))
            free = g.masked_fill(stuck, 0).flatten(1)
            top = free.abs().topk(min(TOP, free.shape[1]), dim=1).indices
            step = torch.zeros_like(free).scatter(1, top, 0.01 * free.gather(1, top).sign()).view_as(here)
        delta[left] = (here + step).clamp(0, 1) - x[left]
    return delta


def di_features(model, images, labels, walk: str, generator, svhn: bool = False):
    """Distances (N, C, 3) of images uint8 (N, 3, S, S) with labels (N,); the last axis is in the order of `METRICS`.

    walk "blind"  C = `RESTARTS` walks in random directions; on SVHN with twice the noise and checks, as published
    walk "mingd"  to every class, the smallest distance first; with more than `TARGETS` classes to those that the model
                  ranks 2nd to 11th, in that order (the authors' "topgd")
    generator     on the CPU, draws the noise of all points at once: it depends on neither the device nor `BATCH`
    """
    device = next(model.parameters()).device
    x, y, columns = images[:].to(device).float().div(255), labels.to(device), []  # [:] reads `StoredImages`
    bar = partial(tqdm, desc="walks to the boundary", disable=None, leave=False)
    if walk == "blind":
        for metric, _ in bar([*itertools.product(METRICS, range(RESTARTS))]):
            step = (1.0 + svhn) * walk_noise(x.shape, metric, generator).to(x)
            parts = torch.arange(len(y), device=device).split(BATCH)
            delta = [blind_walk(model, x[part], y[part], step[part], CHECKS * (1 + svhn)) for part in parts]
            columns.append(distance_norm(torch.cat(delta), metric))
        return torch.stack(columns, 1).view(len(y), 3, RESTARTS).transpose(1, 2).cpu()
    order = predict(model, images).argsort(1, descending=True)
    targets = order if order.shape[1] <= TARGETS else order[:, 1:TARGETS + 1]
    parts = torch.arange(targets.numel(), device=device).split(BATCH)  # (point, target) in targets.flatten()
    for metric, part in bar([*itertools.product(METRICS, parts)]):
        start = x[part // targets.shape[1]]
        columns.append(distance_norm(mingd(model, start, targets.flatten()[part], metric), metric))
    features = torch.cat(columns).view(3, *targets.shape).permute(1, 2, 0).contiguous().cpu()
    return features.sort(1).values if order.shape[1] <= TARGETS else features


def di_regressor(private, unseen, seed: int):
    """Train a network, rows (K, F) -> scores (K,): near -1 for rows like `private` (N, F), near 1 like `unseen` (M, F).

    As published: F-100-ReLU-1-tanh, 1,000 full-batch steps of SGD at rate 0.1, loss mean(sign * score) in [-1, 1].
    """
    rows = torch.cat([private, unseen])
    sign = torch.cat([torch.ones(len(private)), -torch.ones(len(unseen))])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(rows.shape[1], 100), nn.ReLU(), nn.Linear(100, 1), nn.Tanh(), nn.Flatten(0))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(1000):
        optimizer.zero_grad()
        (sign * net(rows)).mean().backward()
        optimizer.step()
    return net.requires_grad_(False)


def score_difference(unseen, private, m: int, seed: int) -> dict:
    """{"points", "mean_difference", "log10_p"} of scores `unseen` (N,) and `private` (M,).

    p is the harmonic mean of those of Welch's t-tests on `REPEATS` draws of m scores from each; they overlap, so that
    under H0 it falls below 0.05 in about 7 % of cases. None where either has fewer than m scores.
    """
    n = min(len(unseen), len(private))
    if n < m:
        return {"points": n, "mean_difference": None, "log10_p": None}
    u, v = unseen.double().numpy(), private.double().numpy()
    p = pvalues.subset_pvalues(u[:n], v[:n], m, REPEATS, np.random.default_rng(seed))
    return {"points": n, "mean_difference": float(u.mean() - v.mean()), "log10_p": pvalues.harmonic_mean(p)}


def di_figures(models, private, unseen, *, walk="mingd", m=10, seed=0, svhn=False) -> list[dict]:
    """The figures of each of `models`, of which the first is the source; "claim" is at level `DI_ALPHA`.

    private and unseen are `Images` of the same, even length: training images of the source, and images it has not seen.
    The first halves train the regressor on the source's distances, the second halves test the models. walk, svhn are
    those of `di_features`, m the scores of one t-test. "correct" has the figures on the points that a model classifies
    correctly, because one that is right more often on its training images may show nothing but that. "curve":
    [m, log10 p] for each m of `CURVE` with enough scores.
    """
    points, half, rows = (private, unseen), len(private.labels) // 2, []
    for i, model in enumerate(models):
        generator = torch.Generator().manual_seed(seed)  # the same noise for all models
        features = [di_features(model, p.images, p.labels, walk, generator, svhn) for p in points]
        if i == 0:
            mean, std = features[0].mean((0, 1)), features[0].std((0, 1)).clamp_min(1e-12)
            rows_of = lambda f, mean=mean, std=std: ((f - mean) / std).flatten(1)
            score = di_regressor(*(rows_of(f)[:half] for f in features), seed)
        scores = [score(rows_of(f))[half:] for f in features]
        right = [predict(model, p.images).argmax(1).cpu() == p.labels for p in points]
        difference = lambda scores, m=m: score_difference(scores[1], scores[0], m, seed)
        row = difference(scores)
        row["claim"] = bool(row["log10_p"] < math.log10(DI_ALPHA))
        row["correct"] = difference([s[r[half:]] for s, r in zip(scores, right)])
        row["curve"] = [[n, difference(scores, n)["log10_p"]] for n in CURVE if n <= row["points"]]
        rows.append(row | {f"{k}_accuracy": float(r.double().mean()) for k, r in zip(("private", "unseen"), right)})
    return rows


def add_di(parts) -> None:
    p = add_verification(parts, "di", run_di, "Dataset Inference: does a suspect know the source's training images?",
                         "the source: a run folder of train.py, or its checkpoint")
    p.add_argument("--walk", default="mingd", choices=("blind", "mingd"),
                   help="mingd: gradients, targeted (default; the margin paper's wording); blind: answers alone")
    p.add_argument("--points", type=COUNT, default=1000, metavar="N",
                   help="private and as many unseen images; half teach, half test (default: 1000)")
    p.add_argument("--m", type=COUNT, default=10, help="points of one test (default: 10)")
    p.add_argument("--seed", type=SEED, default=0, help="of points, noise, regressor and draws (default: 0)")
    p.add_argument("--plot", type=Path, metavar="FILE.png", help="log10 p against the points of one test")


def run_di(flags) -> int:
    """Print a row for the source and for each suspect; returns 0 where every suspect is claimed, else 1."""
    if flags.points % 2 or not 2 <= flags.m <= flags.points // 2:
        raise Refusal(f"--points {flags.points} --m {flags.m}: pass an even number, and an m from 2 to half of it")
    device = choose_device(flags.device)
    source, data = read_source(flags.run, flags.data_dir, device)
    if flags.points > (most := min(len(data.train.labels), len(data.test.labels))):
        raise Refusal(f"--points {flags.points}: {data.name} has {len(data.train.labels)} training and "
                      f"{len(data.test.labels)} test images; pass at most {most - most % 2}")
    models = [source, *read_others("--suspect", flags.suspect, source, data.classes, device)]
    draw = torch.Generator().manual_seed(flags.seed)
    private, unseen = (part.pick(torch.randperm(len(part.labels), generator=draw)[:flags.points])
                       for part in (data.train, data.test))
    rows = di_figures(models, private, unseen, walk=flags.walk, m=flags.m, seed=flags.seed, svhn=data.name == "svhn")
    rows = [{"model": run} | row for run, row in zip([flags.run, *flags.suspect], rows)]
    for row in rows[1:]:
        row["claim"] = row["claim"] and rows[0]["claim"]  # a regressor that fails on the source shows nothing
    walk = {"mingd": "MinGD", "blind": "Blind Walk"}[flags.walk]
    wide = max(len(str(row["model"])) for row in rows) + len(" (source)")
    print(f"{'model':<{wide}}  {'points':<15}{walk + ' mean difference':>26}{'log10 p':>9}  verdict")
    for i, row in enumerate(rows):
        said = f"{row['model']}{'' if i else ' (source)'}", "claim" if row["claim"] else "inconclusive"
        for (name, verdict), kind, figures in ((said, "", row), (("", ""), " correct", row["correct"])):
            gap, p = ("-" if figures[k] is None else f"{figures[k]:.2f}" for k in ("mean_difference", "log10_p"))
            print(f"{name:<{wide}}  {str(figures['points']) + kind:<15}{gap:>26}{p:>9}  {verdict}".rstrip())
    print(f"A claim (p < {DI_ALPHA:g}) says that a model knows the source's training images. Copies do, and so does\n"
          "any model trained on them: it does not say that this model was stolen. Inconclusive is not innocent.")
    if not rows[0]["claim"]:
        print("The source itself is inconclusive: its regressor has learnt nothing that a suspect could show.")
    if flags.json:
        settings = {k: getattr(flags, k) for k in ("walk", "points", "m", "seed")}
        settings |= {"alpha": DI_ALPHA, "notes": data.notes}
        write_json(flags.json, {"settings": settings, "source": rows[0], "suspects": rows[1:]}, private=True)
    if flags.plot:
        figure, (ax,) = new_figure(6.4, 4.6, 1, 1)
        for i, row in enumerate(rows):
            points, log10_p = zip(*row["curve"])
            ax.plot(points, log10_p, "o-", ms=3, label=f"{Path(row['model']).name}{'' if i else ' (source)'}")
        ax.axhline(math.log10(DI_ALPHA), color="black", ls="--", lw=1, label=f"claimed below p = {DI_ALPHA:g}")
        ax.set(xlabel="points of one test", ylabel="log10 p, harmonic mean")
        figure.legend(fontsize=8, loc="outside lower center", ncols=2, frameon=False)  # it would cover the lines
        write_atomically(flags.plot, figure_png(figure))
    return 0 if all(row["claim"] for row in rows[1:]) else 1
