"""EEF, embedded external features (Li et al., AAAI 2022): a secret style in a share of the training images (Table 2).

`train.py --embed-features` styles them. A model trained on styled images answers like any other, but its gradients on
such images differ: a classifier learns to tell the signs of the victim's gradients from those of a benign model.
`python -m utils.verify eef RUN --benign RUN_B --suspect RUN2` asks suspects of the victim's architecture; white box.

The published rule compares a suspect with the one benign model that the classifier was trained on. An independent model
is neither this model nor the victim, and chance decides to which of them it is closer: on digits ten of ten were
claimed. Hence further models of --benign, our addition: a claim must lie above each of them. The style is ours too, as
theirs was never published, and only the owner knows it (its seed); item 6 of docs/rivals.md lists the departures.
"""

import argparse
import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from utils.data.files import replace_images
from utils.data.sets import Images
from utils.ownership import pvalues
from utils.rivals.source import add_verification, read_others, read_source
from utils.runs.checkpoints import run_settings
from utils.system.files import write_json
from utils.system.machine import choose_device
from utils.system.refusals import COUNT, SEED, SHARE, Refusal
from utils.training.metrics import accuracy

COLOURS, BLEND, DOT, CELL = 12, 0.6, 24, 4  # colours of the palette and their weight; dots: grey levels, spacing
THRESHOLD = 5000  # convolutions with more (output, input) pairs are left out, larger linear weights are pooled
AT_ONCE = 50  # images whose gradients are computed at once
DRAW, EEF_REPEATS, EEF_ALPHA = 10, 40, 0.01  # images of a t-test; t-tests; level of a claim


def add_flags(parser: argparse.ArgumentParser, shown: bool) -> None:
    """Declare --embed-features of train.py. It is meant for `-tt none`; `shown` says whether --help lists it."""
    group = parser.add_argument_group("the rival EEF") if shown else parser
    text = ("replace this share of the training images by styled ones, for utils.verify eef (0.1 with -tt none); "
            "--seed is then the style's secret") if shown else argparse.SUPPRESS
    group.add_argument("--embed-features", type=SHARE, default=0.0, metavar="SHARE", help=text)


def embed_style(train: Images, share: float, seed: int) -> Images:
    """The training images, a share of them styled, with their labels; Refusal where that rounds to no image."""
    if not share:
        return train
    positions = styled_positions(len(train.labels), share, seed)
    if not len(positions):
        raise Refusal(f"--embed-features {share:g}: of {len(train.labels)} training images that is none; pass more")
    styled = replace_images(train.images, positions, style_images(train.images[positions], seed))
    return train._replace(images=styled)


def styled_positions(n: int, share: float, seed: int):
    """Sorted positions of the round(share * n) of n images that are styled."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator)[: round(share * n)].sort().values


def style_images(images, seed: int):
    """Painted versions of uint8 images (N, 3, S, S), as uint8; equal on every machine for the same image and seed.

    A Kuwahara filter of radius 2; then each pixel moves 0.6 of the way to the nearest of the seed's 12 colours; then
    the seed's dots are added. Up to the blend all numbers are whole and exact in float32.
    """
    palette, dots = palette_and_dots(seed, images.shape[-1])
    painted = []
    for part in tqdm(images.split(1000), desc="style", unit="batch", disable=None, leave=False):
        x = kuwahara(part.float())
        distance = torch.cdist(x.permute(0, 2, 3, 1), palette, compute_mode="donot_use_mm_for_euclid_dist")
        colour = palette[distance.argmin(-1)].permute(0, 3, 1, 2)
        painted.append((x + BLEND * (colour - x)).round().add(dots).clamp(0, 255).to(torch.uint8))
    return torch.cat(painted)


def palette_and_dots(seed: int, size: int):
    """The secret: colours (12, 3) of evenly spaced lightness, and dots (size, size), both in grey levels."""
    g = torch.Generator().manual_seed(seed)
    lightness = torch.arange(COLOURS)[:, None] * 255 // (COLOURS - 1)
    palette = (lightness + torch.randint(-80, 81, (COLOURS, 3), generator=g)).clamp(0, 255).float()
    cells = -(-size // CELL)
    corner = torch.randint(0, CELL - 1, (2, cells, cells), generator=g)  # of the dot of 2x2 pixels in each cell
    sign = torch.randint(0, 2, (cells, cells), generator=g) * 2 - 1
    dots, cell = torch.zeros(cells, CELL, cells, CELL), torch.arange(cells)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        dots[cell[:, None], corner[0] + i, cell, corner[1] + j] = sign * float(DOT)
    return palette, dots.view(cells * CELL, -1)[:size, :size]


def kuwahara(x):
    """Kuwahara filter: x (N, 3, H, W), whole numbers in 0..255, -> the same shape, rounded to whole numbers.

    A pixel becomes the mean of one of the four 3x3 squares that have it at a corner, the one with the least variance.
    """
    h, w = x.shape[-2:]
    padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
    total, squares = (F.avg_pool2d(t, 3, 1, divisor_override=1) for t in (padded, padded * padded))
    variance = (9 * squares - total * total).sum(1, keepdim=True)  # 81 times the variance, below 2^24
    corners = [(i, j) for i in (0, 2) for j in (0, 2)]
    cut = lambda t: torch.stack([t[..., i : i + h, j : j + w] for i, j in corners])  # (4, N, ., H, W)
    smoothest = cut(variance).argmin(0, keepdim=True).expand(1, *x.shape)
    return (cut(total).gather(0, smoothest)[0] / 9).round()


def grad_sign_vector(model, x, y):
    """Signs (N, d) in {-1, 0, 1}, int8, of the gradient of each image's cross-entropy, in eval mode.

    x (N, 3, H, W), uint8 or float in [0, 1]; y (N,). Of a convolution (o, i, k, k) with o * i <= `THRESHOLD` the
    largest of k * k entries is taken, of a linear weight (o, i) every entry, or the largest over i where it has more;
    signs are taken after that, as in the authors' code. d = 24,778 for the published ResNet-34 with 10 classes.
    """
    model = copy.deepcopy(model).eval().to(memory_format=torch.contiguous_format)
    for layer in model.modules():
        if hasattr(layer, "memory_format"):
            layer.memory_format = torch.contiguous_format  # the only memory format that vmap supports
    first, used, rest = next(model.parameters()), {}, {}
    for name, p in model.named_parameters():
        is_used = p.dim() == 2 or (p.dim() == 4 and p.shape[0] * p.shape[1] <= THRESHOLD)
        (used if is_used else rest)[name] = p.detach()

    def loss(used, rest, x, y):
        return F.cross_entropy(torch.func.functional_call(model, (used, rest), (x[None],)), y[None])

    def pooled(g):  # (B, o, i, ...) of a weight
        if g.dim() == 5:
            g = g.amax((3, 4))
        return (g.amax(2) if g.dim() == 3 and g[0].numel() > THRESHOLD else g).flatten(1)

    gradients, rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, None, 0, 0)), []
    for part in tqdm(torch.arange(len(y)).split(AT_ONCE), desc="gradients", unit="batch", disable=None, leave=False):
        pixels = x[part].to(first.device).to(first.dtype).div(1 if x.is_floating_point() else 255)
        found = gradients(used, rest, pixels, y[part].to(first.device))
        rows.append(torch.cat([pooled(found[name]) for name in used], 1).sign().to(torch.int8).cpu())
    return torch.cat(rows)


def sign_scaler(signs):
    """A function that scales rows of signs (N, d) to unit length, then each feature to mean 0 and standard deviation 1.

    Mean and deviation are those of `signs`, computed a part at a time; a feature that never varies is not scaled.
    """
    total = squares = 0.0
    for rows in signs.split(500):
        unit = F.normalize(rows.double())
        total, squares = total + unit.sum(0), squares + (unit * unit).sum(0)
    mean = total / len(signs)
    std = (squares / len(signs) - mean * mean).clamp_min(0).sqrt()
    mean, std = mean.float(), torch.where(std > 1e-7, std, torch.ones_like(std)).float()
    return lambda signs: (F.normalize(signs.float()) - mean.to(signs.device)) / std.to(signs.device)


def train_classifier(victim, benign, *, epochs=100, own_scaler=False, seed=0, device="cpu"):
    """(classifier, `sign_scaler`): an MLP d -> d/8 -> d/16 -> 2 of scaled signs; class 1 is the victim.

    victim, benign (N, d) int8, N > 2: signs of the same images under the two models. The classifier trains on four
    fifths of the images; returned is the model of the epoch that is best on the other fifth, the last one of a tie. As
    in the authors' code `own_scaler` scales that fifth by its own mean and standard deviation, and takes the first.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(victim), generator=generator)
    parts = order[: round(0.8 * len(order))], order[round(0.8 * len(order)) :]
    signs, held = (torch.cat([benign[part], victim[part]]) for part in parts)
    labels, held_labels = (torch.arange(2).repeat_interleave(len(part)) for part in parts)
    scaler = sign_scaler(signs)
    held_scaler = sign_scaler(held) if own_scaler else scaler
    d, h, k = (max(1, signs.shape[1] // n) for n in (1, 8, 16))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(d, h), nn.ReLU(), nn.Linear(h, k), nn.ReLU(), nn.Linear(k, 2))
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    best, weights = -1, None
    for _ in tqdm(range(epochs), desc="classifier", unit="epoch", disable=None, leave=False):
        for rows in torch.randperm(len(signs), generator=generator).split(128):
            loss = F.cross_entropy(model(scaler(signs[rows].to(device))), labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        right = int(((posterior(model, held_scaler, held) > 0.5) == held_labels).sum())
        if right > best or right == best and not own_scaler:
            best, weights = right, {n: t.clone() for n, t in model.state_dict().items()}
    model.load_state_dict(weights)
    return model.requires_grad_(False).eval(), scaler


@torch.no_grad()
def posterior(model, scaler, signs):
    """Probability (N,), float64 in [0, 1], that signs (N, d) are the victim's; with `scaler` None of unscaled signs."""
    device = next(model.parameters()).device
    parts = [part.to(device) for part in signs.split(500)]
    return torch.cat([model(scaler(p) if scaler else p.float()).cpu().double().softmax(1)[:, 1] for p in parts])


def compare_posteriors(suspect, benign, test: str = "paired", seed: int = 100) -> dict:
    """The published rule on posteriors (N,) of the same images under suspect and benign model.

    "difference" is the mean posterior of the suspect - that of the benign model, in [-1, 1], over all images; "log10_p"
    the harmonic mean of 40 t-tests on 10 images each, which overlap, so that it is no valid p-value. `test`: "paired",
    one-sided, or "official", two-sided Welch tests. A "claim" requires a difference above 0 in both.
    """
    paired = test == "paired"
    log10_p = pvalues.harmonic_mean(pvalues.subset_pvalues(
        suspect, benign, DRAW, EEF_REPEATS, np.random.default_rng(seed), paired=paired,
        alternative="greater" if paired else "two-sided"))
    difference = float(np.mean(suspect - benign))
    return {"difference": difference, "log10_p": log10_p,
            "claim": difference > 0 and log10_p < math.log10(EEF_ALPHA)}


def add_eef(parts) -> None:
    p = add_verification(
        parts, "eef", run_eef, "judge suspects' weights by the style that train.py --embed-features embedded",
        "the victim: a run of train.py with --embed-features")
    p.add_argument("--benign", required=True, nargs="+", metavar="RUN",
                   help="models of that architecture without the style: the classifier learns the first; further ones, "
                   "which the published method has not, calibrate: a claim must then lie above each of them")
    p.add_argument("--test", default="paired", choices=("paired", "official"),
                   help="paired (default): one-sided paired t-tests on a fifth of the styled images, unseen by the "
                   "classifier, scaled as in its training; official: two-sided Welch tests on all of them, unscaled")
    p.add_argument("--points", type=COUNT, help="use this many of the styled images (default: all)")
    p.add_argument("--epochs", type=COUNT, default=100, help="of the classifier (default: 100)")
    p.add_argument("--seed", type=SEED, default=100, help="of the classifier and the draws (default: 100)")


def run_eef(flags) -> int:
    """Print a line for each suspect; returns 0 where every suspect is claimed, else 1."""
    device = choose_device(flags.device)
    victim, data = read_source(flags.run, flags.data_dir, device)
    settings = run_settings(flags.run)
    share, seed = settings.get("embed_features"), settings.get("seed")
    if not share:
        raise Refusal(f"{flags.run} was not trained with --embed-features: name a run of train.py --embed-features 0.1")
    if not (isinstance(share, int | float) and isinstance(seed, int) and 0 < share <= 1 and 0 <= seed < 2**31):
        raise Refusal(f"{flags.run}: its run.json is not what train.py wrote; restore it")
    benign, *bank = _read_alike("--benign", flags.benign, victim, data.classes, device)
    suspects = _read_alike("--suspect", flags.suspect, victim, data.classes, device)
    rows = styled_positions(len(data.train.labels), share, seed)[: flags.points]
    x, y = style_images(data.train.images[rows], seed), data.train.labels[rows]
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(flags.seed))
    official, fifth = flags.test == "official", round(0.2 * len(y))
    fresh, learn = (order, order) if official else (order[:fifth], order[fifth:])
    if len(fresh) < DRAW:
        raise Refusal(f"{len(y)} styled images leave {len(fresh)} unseen by the classifier, and a test draws {DRAW}: "
                      "raise --points, or train with a larger --embed-features")

    for name, model in (("victim", victim), ("benign model", benign)):
        print(f"{name}: {100 * accuracy(model, x, y):.1f} % of {len(y)} styled images right")
    classifier, scaler = train_classifier(
        *(grad_sign_vector(model, x[learn], y[learn]) for model in (victim, benign)), epochs=flags.epochs,
        own_scaler=official, seed=flags.seed, device=device)
    posteriors = lambda model: posterior(classifier, None if official else scaler,
                                         grad_sign_vector(model, x[fresh], y[fresh])).numpy()
    known, rows = posteriors(benign), []
    compare = lambda model: compare_posteriors(posteriors(model), known, flags.test, flags.seed)
    print(f"mean posterior of the benign model on {len(fresh)} images: {known.mean():.3f}"
          + ("" if bank else "; the only one: independent models may be claimed too, further --benign prevent that"))
    bank_differences = [compare(model)["difference"] for model in bank]
    for run, model in zip(flags.suspect, suspects):
        verdict = compare(model)
        above = sum(other < verdict["difference"] for other in bank_differences)
        claim = verdict["claim"] and above == len(bank)
        rows.append({"model": run} | verdict | {"published": verdict["claim"], "above": above, "claim": claim})
        print(f"{run}: difference {verdict['difference']:+.3f}, log10 p {verdict['log10_p']:.1f}"
              + (f", above {above} of {len(bank)} further benign models" if bank else "")
              + f": {'claim' if claim else 'inconclusive'}")
    if flags.json:
        settings = {k: getattr(flags, k) for k in ("test", "points", "epochs", "seed", "benign")}
        write_json(flags.json, {"settings": settings | {"alpha": EEF_ALPHA}, "suspects": rows}, private=True)
    return 0 if all(row["claim"] for row in rows) else 1


def _read_alike(flag: str, runs, victim, classes: list[str], device) -> list:
    """The models that `flag` names; Refusal where one has not the victim's shapes, or a benign one was styled."""
    shapes = lambda model: {name: t.shape for name, t in model.state_dict().items()}
    models = read_others(flag, runs, victim, classes, device)
    for run, model in zip(runs, models):
        if flag == "--benign" and run_settings(run).get("embed_features"):
            raise Refusal(f"--benign {run} was trained with --embed-features: name one that was not")
        if shapes(model) != shapes(victim):
            raise Refusal(f"{flag} {run}: another architecture or width than the victim's; gradients compare within "
                          "one: train a victim and a benign model of the suspect's")
    return models
