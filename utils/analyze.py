"""Analyses of a finished run: `python -m utils.analyze energy|margin|tsne RUN` writes RUN/<what>.json.

energy  free energy of test images and triggers (Table 7), and what a filter at 5 % refused clean images would refuse
margin  upper bound of the margin of each trigger (Table 5): the smallest eps at which projected ascent flips it
tsne    features of test images and triggers in two dimensions (Figure 7), perplexity 5 and 10
"""

import json
from pathlib import Path

import torch

from utils import data as datasets
from utils.checkpoint import find, load, unpack
from utils.files import read_json, write
from utils.losses import ascend
from utils.metrics import predict
from utils.refuse import Parser, Refusal, plainly
from utils.run import choose_device

GRID, CELLS = 1 / 2550, 512  # margins are resolved to a tenth of a grey level, up to 0.2


def energy(logits, temperature: float = 1.0):
    """-T logsumexp(logits / T), (N, C) -> (N,); lower is more like the training data (Liu et al., 2020)."""
    return -temperature * (logits / temperature).logsumexp(1)


def refused(clean, suspect, share: float = 0.05) -> float:
    """Share of `suspect` energies (M,) above the threshold that refuses `share` of the `clean` ones (N,)."""
    return float((suspect > clean.quantile(1 - share)).double().mean())


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


def tsne(features, perplexity: float, seed: int = 0):
    """Features (N, D) -> t-SNE coordinates (N, 2) as a numpy array; Refusal unless N exceeds the perplexity."""
    from sklearn.manifold import TSNE

    if len(features) <= perplexity:
        raise Refusal(f"tsne: perplexity {perplexity} needs more than {perplexity} test images and triggers, and there "
                      f"are {len(features)}; name a run on a data set with more")
    model = TSNE(perplexity=perplexity, random_state=seed, init="pca", learning_rate="auto")
    return model.fit_transform(features.double().cpu().numpy())


class _Run:
    """A finished run: its model, the owner's triggers, its source's test images."""

    def __init__(self, folder, data_dir, select, device):
        self.folder = source = Path(folder).resolve()
        settings = (read_json(self.folder / "run.json") or {}).get("settings")
        if settings is None:
            raise Refusal(f"there is no run in {folder}: name the folder of a finished run")
        select = select or settings.get("select")
        path = find(self.folder, select)
        self.model, self.trigger = unpack(load(path), path, device)
        if self.trigger is None:  # a surrogate: the triggers are its source's
            source = self.folder.parent
            path = find(source, select)
            self.trigger = unpack(load(path), path, device)[1]
        known = (read_json(source / "run.json") or {}).get("settings") or {}
        data = datasets.load(settings["dataset"], data_dir, known.get("train_size"), skip_bad_images=True)
        if known.get("data_sha256") not in (None, data.sha256):
            raise Refusal(f"--data-dir {data_dir}: these are not the images of {folder}; name its source's data")
        self.test = data.test
        self.device = device


def report_energy(run: _Run) -> dict:
    """Table 7's row of a run."""
    clean, logits = predict(run.model, run.test.images), predict(run.model, run.trigger.images)
    of_clean, of_triggers = energy(clean), energy(logits)
    won = logits.argmax(1) == run.trigger.labels.to(logits.device)
    mean = lambda values: round(float(values.mean()), 6) if len(values) else None
    return {
        "test_accuracy": float((clean.argmax(1).cpu() == run.test.labels).float().mean()),
        "energy_clean": mean(of_clean),
        "energy_success": mean(of_triggers[won]), "energy_failed": mean(of_triggers[~won]),
        "successes": int(won.sum()), "triggers": len(won), "refused_at_5_percent": refused(of_clean, of_triggers),
    }


def report_margin(run: _Run) -> dict:
    """Table 5's cell of a run."""
    x = run.trigger.images.to(run.device).float().div(255)
    bound = margin_bound(run.model, x, run.trigger.labels.to(run.device)).cpu()
    kept = bound[bound > 0]
    return {
        "mean": round(float(bound.mean()), 6), "mean_of_kept": round(float(kept.mean()), 6) if len(kept) else None,
        "kept": len(kept), "triggers": len(bound), "margins": [round(v, 6) for v in bound.tolist()],
    }


@torch.no_grad()
def report_tsne(run: _Run, shown: int = 500) -> dict:
    """Figure 7's points of a run: test images first, then the triggers."""
    images = torch.cat([run.test.images[:shown], run.trigger.images])
    features = torch.cat([
        run.model[1].features(run.model[0](part.to(run.device).float().div(255))) for part in images.split(500)
    ])
    points = {p: [[round(float(v), 4) for v in xy] for xy in tsne(features, p)] for p in (5, 10)}
    n = min(shown, len(run.test.labels))
    return {"labels": run.test.labels[:n].tolist(), "trigger_labels": run.trigger.labels.tolist(), "points": points}


REPORTS = {"energy": report_energy, "margin": report_margin, "tsne": report_tsne}


@plainly
def main(argv=None):
    parser = Parser(prog="python -m utils.analyze", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("what", choices=tuple(REPORTS))
    parser.add_argument("run", help="folder of a finished run of train.py, distill.py or extraction.py")
    parser.add_argument("--data-dir", default="data", help="folder of the source's data set")
    parser.add_argument("--select", choices=("val", "last"), help="which checkpoint (default: the run's own choice)")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu", "mps"))
    args = parser.parse_args(argv)
    run = _Run(args.run, args.data_dir, args.select, choose_device(args.device))
    result = {"what": args.what, **REPORTS[args.what](run)}
    write(run.folder / f"{args.what}.json", (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps({k: v for k, v in result.items() if not isinstance(v, (list, dict))}))


if __name__ == "__main__":
    main()
