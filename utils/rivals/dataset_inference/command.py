"""`python -m utils.verify di RUN --suspect RUN2`: Dataset Inference on finished runs (rival DI of Table 2).

Departure from the authors' code: unseen images are drawn from the whole test set, theirs were its first ones; the test
set of an image folder may be sorted by class. A claim also requires that the source itself is claimed.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from utils.data.sets import DATASETS, load_data
from utils.rivals.dataset_inference.distances import METRICS, RESTARTS, TARGETS
from utils.rivals.dataset_inference.plot import draw_di_plot
from utils.rivals.dataset_inference.regressor import DI_ALPHA, LAYOUTS, DatasetInference
from utils.runs.architecture import add_named_architectures
from utils.runs.checkpoints import class_count, find_checkpoint, load_checkpoint, read_model, restore_model
from utils.system.files import check_output_file, read_json, write_atomically, write_json
from utils.system.machine import choose_device
from utils.system.refusals import COUNT, SEED, Refusal


@dataclass(frozen=True)
class DiCommand:
    """The flags of `utils.verify di`."""

    run: str
    suspect: list
    walk: str
    layout: str
    points: int
    m: int
    data_dir: str
    skip_bad_images: bool
    seed: int
    device: str
    json: Path | None
    plot: Path | None


def add_di(parts) -> None:
    """Declare the command `di` and its flags; `parts` are the subparsers of utils.verify."""
    p = parts.add_parser("di", help="Dataset Inference: does a suspect know the source's training images?")
    p.set_defaults(call=run_di, command_type=DiCommand)
    p.add_argument("run", metavar="RUN", help="the source: a run folder of train.py, or its checkpoint")
    p.add_argument("--suspect", nargs="+", required=True, metavar="RUN", help="run folders or checkpoints")
    add_named_architectures(p)
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
    p.add_argument("--plot", type=Path, metavar="FILE.png", help="log10 p against the points of one test")


def run_di(command: DiCommand) -> int:
    """Print a row for the source and for each suspect; returns 0 where every suspect is claimed, else 1."""
    if command.points % 2 or not 2 <= command.m <= command.points // 2:
        raise Refusal(f"--points {command.points} --m {command.m}: pass an even number of points, and an m from 2 to "
                      "half of it")
    check_output_file(command.json, "--json")
    check_output_file(command.plot, "--plot")
    device = choose_device(command.device)
    source, data = _read_di_source(command.run, command.data_dir, command.skip_bad_images, command.points, device)
    suspects = [_read_di_suspect(run, data, device) for run in command.suspect]
    draw = torch.Generator().manual_seed(command.seed)
    private, unseen = (part.pick(torch.randperm(len(part.labels), generator=draw)[:command.points])
                       for part in (data.train, data.test))
    columns = RESTARTS if command.walk == "blind" else min(TARGETS, len(data.classes))
    total = 2 * command.points * columns * len(METRICS) * (1 + len(suspects))
    with tqdm(total=total, desc="walks to the boundary", unit="walk", disable=None, leave=False) as bar:
        inference = DatasetInference(source, private, unseen, kind=command.walk, layout=command.layout, m=command.m,
                                     seed=command.seed, svhn=data.name == "svhn", bar=bar)
        rows = [{"model": command.run} | inference.source]
        rows += [{"model": run} | inference.test(model) for run, model in zip(command.suspect, suspects)]
    for row in rows[1:]:
        row["claim"] = row["claim"] and rows[0]["claim"]  # a regressor that fails on the source shows nothing
    print(di_table(rows, command.walk))
    if command.json:
        settings = {k: getattr(command, k) for k in ("walk", "layout", "points", "m", "seed")} | {"alpha": DI_ALPHA}
        write_json(command.json, {"settings": settings, "source": rows[0], "suspects": rows[1:]}, private=True)
    if command.plot:
        write_atomically(command.plot, draw_di_plot(rows))
    return 0 if all(row["claim"] for row in rows[1:]) else 1


def _read_di_source(run, data_dir, skip_bad_images: bool, points: int, device):
    """(source model, frozen; its `Data`); Refusal where the run is no source or `data_dir` holds other images."""
    path = find_checkpoint(run, None)
    checkpoint = load_checkpoint(path)
    model = restore_model(checkpoint, path, device)
    about = checkpoint.get("about")
    about = about if isinstance(about, dict) else {}
    size = about.get("train_size")
    if about.get("dataset") not in DATASETS or not isinstance(size, int | None) or "attack" in about:
        raise Refusal(f"{path} does not say on which data it was trained: name a run of train.py as the source")
    data = load_data(about["dataset"], data_dir, train_size=size, skip_bad_images=skip_bad_images,
                     image_size=model.size)
    settings = (read_json(path.parent.parent / "run.json") or {}).get("settings")
    data_sha256 = settings.get("data_sha256") if isinstance(settings, dict) else None
    if len(data.classes) != class_count(model) or data_sha256 not in (None, data.sha256):
        raise Refusal(f"--data-dir {data_dir}: these are not the images that {run} was trained on")
    if points > (most := min(len(data.train.labels), len(data.test.labels))):
        raise Refusal(f"--points {points}: {data.name} has {len(data.train.labels)} training and "
                      f"{len(data.test.labels)} test images; pass at most {most - most % 2}")
    return model, data


def _read_di_suspect(run, data, device):
    path = find_checkpoint(run, None)
    model = read_model(path, device)
    if (count := class_count(model)) != len(data.classes):
        raise Refusal(f"--suspect {run} has {count} classes and the source {len(data.classes)}: "
                      "distances to other classes cannot be compared")
    return model


def di_table(rows: list[dict], kind: str) -> str:
    """The rows as text, the source's first, followed by what a claim does not say."""
    title = {"mingd": "MinGD", "blind": "Blind Walk"}[kind]
    show = lambda value: "-" if value is None else f"{value:.2f}"
    wide = max(len(str(row["model"])) for row in rows) + len(" (source)")
    lines = [f"{'model':<{wide}}  {'points':<15}{title + ' mean difference':>26}{'log10 p':>9}  verdict"]
    for i, row in enumerate(rows):
        name = f"{row['model']}{'' if i else ' (source)'}"
        parts = {f"{row['points']}": (row, "claim" if row["claim"] else "inconclusive")}
        if row["correct"]:
            parts[f"{row['correct']['points']} correct"] = row["correct"], ""
        for j, (points, (figures, verdict)) in enumerate(parts.items()):
            line = f"{'' if j else name:<{wide}}  {points:<15}{show(figures['mean_difference']):>26}"
            lines.append(f"{line}{show(figures['log10_p']):>9}  {verdict}".rstrip())
    claim = f"A claim (p < {DI_ALPHA:g}) says that a model knows the source's training images."
    lines += [f"{claim} Copies do, and so does",
              "any model trained on them: it does not say that this model was stolen. Inconclusive is not innocent."]
    if not rows[0]["claim"]:
        lines.append("The source itself is inconclusive: its regressor has learnt nothing that a suspect could show.")
    return "\n".join(lines)
