"""`python -m utils.verify eef RUN --benign RUN_B --suspect RUN2`: judge suspects by gradients on styled images.

White box: it needs the suspects' weights, of the victim's architecture.

The published rule compares a suspect with one benign model, the one that the classifier was trained on. An independent
model is neither this model nor the victim, and chance decides to which of them it is closer: on digits (ResNet-18 of
width 8, 10 epochs, a tenth of the images styled) ten of ten independent models were claimed. Hence further models of
--benign, our addition: a claim must lie above each of them.

Departures that `--test official` undoes: one-sided paired t-tests, on a fifth of the styled images that the classifier
has not seen, scaled as in its training. The authors' code makes two-sided Welch tests on all of them, unscaled.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from utils.data.files import SIZE
from utils.data.sets import DATASETS, load_data
from utils.ownership import pvalues
from utils.rivals.embedded_features.classifier import posterior, train_classifier
from utils.rivals.embedded_features.gradient_signs import grad_sign_vector
from utils.rivals.embedded_features.style import style_images, styled_positions
from utils.runs.architecture import add_named_architectures
from utils.runs.checkpoints import check_benign, find_checkpoint, load_checkpoint, restore_model
from utils.system.files import check_output_file, read_json, write_json
from utils.system.machine import choose_device
from utils.system.refusals import COUNT, SEED, Refusal
from utils.training.metrics import accuracy

DRAW, EEF_REPEATS, EEF_ALPHA = 10, 40, 0.01  # images of a t-test; t-tests; level of a claim


@dataclass(frozen=True)
class EefCommand:
    """The flags of `utils.verify eef`."""

    run: str
    benign: list
    suspect: list
    data_dir: str
    test: str
    double_softmax: bool
    points: int | None
    epochs: int
    seed: int
    device: str
    json: Path | None


def add_eef(parts) -> None:
    """Declare the command `eef` and its flags; `parts` are the subparsers of utils.verify."""
    p = parts.add_parser("eef", help="judge suspects' weights by the style that train.py --embed-features embedded")
    p.set_defaults(call=run_eef, command_type=EefCommand)
    p.add_argument("run", metavar="RUN", help="the victim: a run of train.py with --embed-features")
    p.add_argument("--benign", required=True, nargs="+", metavar="RUN",
                   help="models of that architecture without the style: the classifier learns the first; further ones, "
                   "which the published method has not, calibrate: a claim must then lie above each of them")
    p.add_argument("--suspect", required=True, nargs="+", metavar="RUN", help="run folders or checkpoints to judge")
    add_named_architectures(p)
    p.add_argument("--data-dir", default="data", help="folder of the victim's data set (default: data)")
    p.add_argument("--test", default="paired", choices=("paired", "official"),
                   help="paired (default): one-sided paired t-tests on a fifth of the styled images, which the "
                   "classifier never saw, scaled as in its training; official: two-sided Welch tests on all of them, "
                   "signs unscaled, as in the published code")
    p.add_argument("--double-softmax", action="store_true", help="the classifier's loss as published")
    p.add_argument("--points", type=COUNT, help="use this many of the styled images (default: all)")
    p.add_argument("--epochs", type=COUNT, default=100, help="of the classifier (default: 100)")
    p.add_argument("--seed", type=SEED, default=100, help="of the classifier and the draws (default: 100)")
    p.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu", "mps"), help="where to compute")
    p.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")


class EefVerdict(NamedTuple):
    """What posteriors say of a suspect.

    difference  mean posterior of the suspect - that of the benign model, in [-1, 1]
    log10_p     harmonic mean of t-tests
    claim       whether the published rule claims the suspect
    """

    difference: float
    log10_p: float
    claim: bool


def compare_posteriors(suspect, benign, test: str = "paired", seed: int = 100) -> EefVerdict:
    """The verdict on posteriors (N,) of the same images under suspect and benign model.

    log10 p is the harmonic mean of 40 t-tests on 10 images each; they overlap, so it is no valid p-value. `test`:
    "paired", one-sided, or "official", two-sided Welch tests. The difference is over all images; a claim requires that
    it is above 0, whether or not the test is one-sided.
    """
    paired = test == "paired"
    subset_log10_p = pvalues.subset_pvalues(suspect, benign, DRAW, EEF_REPEATS, np.random.default_rng(seed),
                                            paired=paired, alternative="greater" if paired else "two-sided")
    difference = float(np.mean(np.asarray(suspect) - np.asarray(benign)))
    log10_p = pvalues.harmonic_mean(subset_log10_p)
    return EefVerdict(difference, log10_p, difference > 0 and log10_p < math.log10(EEF_ALPHA))


def run_eef(command: EefCommand) -> int:
    """Print a line for each suspect; returns 0 where every suspect is claimed, else 1."""
    check_output_file(command.json, "--json")
    device = choose_device(command.device)
    victim, kind = _read_eef_model(command.run, device)
    benign, *bank = [_read_eef_model(run, device, "--benign", (victim, kind))[0] for run in command.benign]
    suspects = [(run, _read_eef_model(run, device, "--suspect", (victim, kind))[0]) for run in command.suspect]
    x, y = _styled_images(command.run, command.data_dir, command.points)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(command.seed))
    fresh = order[: round(0.2 * len(y))]
    learn = order[len(fresh) :]
    official = command.test == "official"
    if official:
        fresh = learn = order
    if len(fresh) < DRAW:
        raise Refusal(f"{len(y)} styled images leave {len(fresh)} unseen by the classifier, and a test draws {DRAW}: "
                      "raise --points, or train with a larger --embed-features")

    for name, model in (("victim", victim), ("benign model", benign)):
        print(f"{name}: {100 * accuracy(model, x, y):.1f} % of {len(y)} styled images right")
    signs = lambda model, rows: grad_sign_vector(model, x[rows], y[rows])
    victim_signs, benign_signs = signs(victim, learn), signs(benign, learn)
    classifier, scaler = train_classifier(victim_signs, benign_signs, epochs=command.epochs, own_scaler=official,
                                          double_softmax=command.double_softmax, seed=command.seed, device=device)
    posteriors = lambda model: posterior(classifier, None if official else scaler, signs(model, fresh)).numpy()
    compare = lambda model: compare_posteriors(posteriors(model), benign_posteriors, command.test, command.seed)
    benign_posteriors, rows = posteriors(benign), []
    print(f"mean posterior of the benign model on {len(fresh)} images: {benign_posteriors.mean():.3f}"
          + ("" if bank else "; the only one: independent models may be claimed too, further --benign prevent that"))
    bank_differences = np.array([compare(model).difference for model in bank])
    for run, model in suspects:
        verdict = compare(model)
        above = int((bank_differences < verdict.difference).sum())
        claim = bool(verdict.claim and above == len(bank))
        row = {"model": run} | verdict._asdict() | {"published": bool(verdict.claim), "above": above, "claim": claim}
        rows.append(row)
        print(f"{run}: difference {verdict.difference:+.3f}, log10 p {verdict.log10_p:.1f}"
              + (f", above {above} of {len(bank)} further benign models" if bank else "")
              + f": {'claim' if claim else 'inconclusive'}")
    if command.json:
        settings = {k: getattr(command, k) for k in ("test", "double_softmax", "points", "epochs", "seed", "benign")}
        write_json(command.json, {"settings": settings | {"alpha": EEF_ALPHA}, "suspects": rows}, private=True)
    return 0 if all(row["claim"] for row in rows) else 1


def _read_eef_model(run, device, flag="", like=None):
    """(model, name of its architecture) of a run; `flag` named it.

    Raises Refusal where the weights are not of the shapes of `like`, another such pair, or a benign model was trained
    with a watermark or a style.
    """
    path = find_checkpoint(run, None)
    checkpoint = load_checkpoint(path)
    model, kind = restore_model(checkpoint, path, device), checkpoint["model"]["type"]
    if flag == "--benign":
        check_benign(checkpoint, run)
        if _styled_share(run):
            raise Refusal(f"--benign {run} was trained with --embed-features: name one that was not")
    shapes = lambda model: {name: t.shape for name, t in model.state_dict().items()}
    if like and shapes(model) != shapes(like[0]):
        raise Refusal(f"{flag} {run}: a {kind} of another architecture, width or class count than the victim, a "
                      f"{like[1]}; gradients compare within one: train a victim and a benign model of the suspect's")
    return model, kind


def _run_settings(run) -> dict:
    """The settings of the run to which a folder or one of its checkpoints belongs; {} where there are none."""
    folder = Path(run) if Path(run).is_dir() else Path(run).resolve().parent.parent
    settings = (read_json(folder / "run.json") or {}).get("settings")
    return settings if isinstance(settings, dict) else {}


def _styled_share(run) -> float:
    return _run_settings(run).get("embed_features") or 0.0


def _styled_images(run, data_dir, points: int | None):
    """The victim's styled images (N, 3, S, S) uint8 and their labels (N,), computed again from its settings."""
    settings = _run_settings(run)
    if not _styled_share(run):
        raise Refusal(f"{run} was not trained with --embed-features: train a victim with train.py "
                      "--embed-features 0.1, and name its run")
    try:
        name, size, data_sha256 = settings["dataset"], settings["train_size"], settings["data_sha256"]
        share, seed = float(settings["embed_features"]), int(settings["seed"])
        pixels = int(settings.get("image_size") or SIZE)
        if not (0 < share <= 1 and 0 <= seed < 2**31 and name in DATASETS and isinstance(size, int | None)):
            raise ValueError
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise Refusal(f"{run}: its run.json is not what train.py wrote; restore it") from error
    data = load_data(name, data_dir, train_size=size, skip_bad_images=True, image_size=pixels)
    if data.sha256 != data_sha256:
        raise Refusal(f"--data-dir {data_dir}: these are not the images that {run} was trained on")
    rows = styled_positions(len(data.train.labels), share, seed)[: points]
    return style_images(data.train.images[rows], seed), data.train.labels[rows]
