"""Dataset Inference (Maini et al., ICLR 2021): `python -m utils.verify di RUN --suspect RUN2` (rival DI of Table 2).

Training images lie farther from a model's decision boundaries than unseen ones, and copies inherit that. The
distances of private and unseen images to the boundaries are measured on every model; a regressor learns on the
source to tell the two kinds apart; a suspect for which it can still tell them apart knows the private images.

Departures from the authors' code, which `--layout official` undoes where it can: a row of the regressor's input is
one image, where their transposition made it 30 images under one metric and class rank; regressor and test so see
disjoint images; scores without variance give p = 1 or near 0 by sign, where theirs gave 1. Unseen images are drawn
from the whole test set, where theirs were its first: a folder's may be sorted by class.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from utils import data as datasets
from utils.args import COUNT, SEED
from utils.checkpoint import find, load, read_model, unpack
from utils.files import check_output, read_json, write_json
from utils.metrics import predict
from utils.pvalues import harmonic_mean, subset_pvalues
from utils.refuse import Refusal
from utils.run import choose_device

METRICS = ("linf", "l2", "l1")
LAYOUTS = ("image", "official")
RESTARTS, CHECKS = 10, 50  # of the Blind Walk
STEPS, TOP = 500, 100  # of MinGD; pixels that its l1 step moves
TARGETS = 10  # with more classes MinGD aims at the classes ranked 2nd to 11th
BATCH = 500
ALPHA, REPEATS = 0.01, 100


# ---- distances ----------------------------------------------------------------------------------------------


def norm(delta, metric: str):
    """delta (N, ...) -> (N,) in `metric`."""
    return torch.linalg.vector_norm(delta.flatten(1), {"linf": float("inf"), "l2": 2, "l1": 1}[metric], dim=1)


def noise(shape, metric: str, generator):
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
    step = scale * noise(x.shape, metric, generator).to(x)
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
        delta[left] = (here + _step(gradient, here, metric)).clamp(0, 1) - x[left]
    return delta


def _step(gradient, x, metric):
    if metric == "linf":
        return 0.001 * gradient.sign()
    if metric == "l2":
        return 0.01 * gradient / norm(gradient, metric).clamp_min(1e-12).view(-1, *[1] * (x.dim() - 1))
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
                columns.append(norm(blind_walk(model, x, y, metric, generator, **more), metric))
                finished(len(y))
        return torch.stack(columns, 1).view(len(y), 3, RESTARTS).transpose(1, 2).cpu()
    order = predict(model, images).argsort(1, descending=True)
    targets = order if order.shape[1] <= TARGETS else order[:, 1:TARGETS + 1]
    for metric in METRICS:
        walks = []
        for part in torch.arange(targets.numel(), device=device).split(BATCH):  # (point, target), point by point
            start = x[part // targets.shape[1]]
            walks.append(norm(mingd(model, start, targets.flatten()[part], metric), metric))
            finished(len(part))
        columns.append(torch.cat(walks).view(targets.shape))
    features = torch.stack(columns, 2).cpu()
    return features.sort(1).values if order.shape[1] <= TARGETS else features


# ---- regressor and test -------------------------------------------------------------------------------------


def di_embed(features, mean, std, layout: str):
    """(features - mean) / std, each (3,), as rows (N, 3 C): of one image each, or as the "official" code lays them out.

    There features (N, C, 3) are transposed to (3, C, N) before they are cut into N rows.
    """
    scaled = (features - mean) / std
    return (scaled if layout == "image" else scaled.permute(2, 1, 0)).reshape(len(features), -1)


def di_regressor(private, unseen, seed: int):
    """Learn scores, near -1 for rows like `private` (N, F) and near 1 like `unseen` (M, F): (K, F) -> (K,).

    F-100-ReLU-1-tanh, SGD at 0.1, 1,000 steps of the whole, loss mean(sign * score) in [-1, 1], as published.
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


def difference(unseen, private, m: int, seed: int) -> dict:
    """Scores (N,) and (M,) -> their mean difference and the harmonic mean of Welch's p over 100 draws of m.

    The draws overlap: under H0 it falls below 0.05 in about 7 % of cases, below 0.01 in 1.2 %. None where either
    holds fewer than m scores.
    """
    n = min(len(unseen), len(private))
    if n < m:
        return {"points": n, "mean_difference": None, "log10_p": None}
    u, v = unseen.double().numpy(), private.double().numpy()
    p = subset_pvalues(u[:n], v[:n], m, REPEATS, np.random.default_rng(seed))
    return {"points": n, "mean_difference": float(u.mean() - v.mean()), "log10_p": harmonic_mean(p)}


class Inference:
    """The source's private and unseen points and the regressor that its own distances taught.

    private, unseen: `Images` of the same, even length. The first halves teach the regressor, the second are tested.
    """

    def __init__(self, source, private, unseen, *, kind="mingd", layout="image", m=10, seed=0, svhn=False, bar=None):
        self.points, self.kind, self.layout, self.m, self.seed = (private, unseen), kind, layout, m, seed
        self.svhn, self.bar, self.half = svhn, bar, len(private.labels) // 2
        features = self.features(source)
        self.mean, self.std = features[0].mean((0, 1)), features[0].std((0, 1)).clamp_min(1e-12)
        rows = [di_embed(f, self.mean, self.std, layout)[:self.half] for f in features]
        self.score = di_regressor(*rows, seed)
        self.source = self.test(source, features)

    def features(self, model) -> list:
        """Distances of the private and of the unseen points; every model gets the same noise."""
        generator = torch.Generator().manual_seed(self.seed)
        return [di_features(model, p.images, p.labels, self.kind, generator, self.svhn, self.bar) for p in self.points]

    def test(self, model, features=None) -> dict:
        """A model's figures, on all points and on those alone that it classifies correctly.

        Where a model is right more often on its training images, a misclassified point's distance (0 or the least)
        shows that alone. Official rows hold many images, so there are no correct ones among them.
        """
        features = features or self.features(model)
        scores = [self.score(di_embed(f, self.mean, self.std, self.layout))[self.half:] for f in features]
        right = [predict(model, p.images).argmax(1).cpu() == p.labels for p in self.points]
        private, unseen = [s[r[self.half:]] for s, r in zip(scores, right)]
        correct = difference(unseen, private, self.m, self.seed) if self.layout == "image" else None
        found = difference(scores[1], scores[0], self.m, self.seed)
        accuracies = {f"{k}_accuracy": float(r.double().mean()) for k, r in zip(("private", "unseen"), right)}
        return found | {"claim": bool(found["log10_p"] < np.log10(ALPHA)), "correct": correct} | accuracies


# ---- the command --------------------------------------------------------------------------------------------


def arguments(parts) -> None:
    """Add `di` to the commands of `utils.verify`."""
    p = parts.add_parser("di", help="Dataset Inference: does a suspect know the source's training images?")
    p.set_defaults(call=di)
    p.add_argument("run", metavar="RUN", help="the source: a run folder of train.py, or its checkpoint")
    p.add_argument("--suspect", nargs="+", required=True, metavar="RUN", help="run folders or checkpoints")
    p.add_argument("--walk", default="mingd", choices=("blind", "mingd"),
                   help="mingd: gradients, targeted (default; the margin paper's wording); blind: answers alone")
    p.add_argument("--layout", default="image", choices=LAYOUTS,
                   help="a regressor's row is one image (default), or mixes images as the official code does")
    p.add_argument("--points", type=COUNT, default=1000, metavar="N",
                   help="private and as many unseen images; half teach, half test (default: 1000)")
    p.add_argument("--m", type=COUNT, default=10, help="points of one test (default: 10)")
    p.add_argument("--data-dir", default="data", help="folder of the source's data set")
    p.add_argument("--skip-bad-images", action="store_true", help="go on without unreadable images")
    p.add_argument("--seed", type=SEED, default=0, help="of points, noise, regressor and draws (default: 0)")
    p.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu", "mps"), help="where to compute")
    p.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")


def di(args) -> int:
    """Print a row for the source and each suspect; 0 where every suspect is claimed, else 1."""
    if args.points % 2 or not 2 <= args.m <= args.points // 2:
        raise Refusal(f"--points {args.points} --m {args.m}: pass an even number of points, and an m from 2 to half "
                      "of it")
    check_output(args.json, "--json")
    device = choose_device(args.device)
    source, own = _source(args, device)
    suspects = [_suspect(run, own, device) for run in args.suspect]
    draw = torch.Generator().manual_seed(args.seed)
    private, unseen = (part.pick(torch.randperm(len(part.labels), generator=draw)[:args.points])
                       for part in (own.train, own.test))
    columns = RESTARTS if args.walk == "blind" else min(TARGETS, len(own.classes))
    total = 2 * args.points * columns * len(METRICS) * (1 + len(suspects))
    with tqdm(total=total, desc="walks to the boundary", unit="walk", disable=None, leave=False) as bar:
        inference = Inference(source, private, unseen, kind=args.walk, layout=args.layout, m=args.m, seed=args.seed,
                              svhn=own.name == "svhn", bar=bar)
        rows = [{"model": args.run} | inference.source]
        rows += [{"model": run} | inference.test(model) for run, model in zip(args.suspect, suspects)]
    for row in rows[1:]:
        row["claim"] = row["claim"] and rows[0]["claim"]  # a regressor that fails the source shows nothing
    print(text(rows, args.walk))
    if args.json:
        settings = {k: getattr(args, k) for k in ("walk", "layout", "points", "m", "seed")} | {"alpha": ALPHA}
        write_json(args.json, {"settings": settings, "source": rows[0], "suspects": rows[1:]}, private=True)
    return 0 if all(row["claim"] for row in rows[1:]) else 1


def _source(args, device):
    """The source, frozen, and its data."""
    path = find(args.run, None)
    checkpoint = load(path)
    model, _ = unpack(checkpoint, path, device)
    about = checkpoint.get("about")
    about = about if isinstance(about, dict) else {}
    size = about.get("train_size")
    if about.get("dataset") not in datasets.NAMES or not isinstance(size, int | None) or "attack" in about:
        raise Refusal(f"{path} does not say on which data it was trained: name a run of train.py as the source")
    own = datasets.load(about["dataset"], args.data_dir, size, args.skip_bad_images)
    settings = (read_json(path.parent.parent / "run.json") or {}).get("settings")
    known = settings.get("data_sha256") if isinstance(settings, dict) else None
    if len(own.classes) != len(model[1].linear.bias) or known not in (None, own.sha256):
        raise Refusal(f"--data-dir {args.data_dir}: these are not the images that {args.run} was trained on")
    if args.points > (most := min(len(own.train.labels), len(own.test.labels))):
        raise Refusal(f"--points {args.points}: {own.name} has {len(own.train.labels)} training and "
                      f"{len(own.test.labels)} test images; pass at most {most - most % 2}")
    return model, own


def _suspect(run, own, device):
    path = find(run, None)
    model = read_model(path, device)
    if (count := len(model[1].linear.bias)) != len(own.classes):
        raise Refusal(f"--suspect {run} has {count} classes and the source {len(own.classes)}: "
                      "distances to other classes cannot be compared")
    return model


def text(rows: list[dict], kind: str) -> str:
    """The table, the source's row first, and what it does not say."""
    title = {"mingd": "MinGD", "blind": "Blind Walk"}[kind]
    show = lambda value: "-" if value is None else f"{value:.2f}"
    wide = max(len(str(row["model"])) for row in rows) + len(" (source)")
    lines = [f"{'model':<{wide}}  {'points':<15}{title + ' mean difference':>26}{'log10 p':>9}  verdict"]
    for i, row in enumerate(rows):
        name = f"{row['model']}{'' if i else ' (source)'}"
        parts = {f"{row['points']}": (row, "claim" if row["claim"] else "inconclusive")}
        if row["correct"]:
            parts[f"{row['correct']['points']} correct"] = row["correct"], ""
        for j, (points, (found, verdict)) in enumerate(parts.items()):
            line = f"{'' if j else name:<{wide}}  {points:<15}{show(found['mean_difference']):>26}"
            lines.append(f"{line}{show(found['log10_p']):>9}  {verdict}".rstrip())
    lines += [f"A claim (p < {ALPHA:g}) says that a model knows the source's training images. Copies do, and so does",
              "any model trained on them: it does not say that this model was stolen. Inconclusive is not innocent."]
    if not rows[0]["claim"]:
        lines.append("The source itself is inconclusive: its regressor has learnt nothing that a suspect could show.")
    return "\n".join(lines)
