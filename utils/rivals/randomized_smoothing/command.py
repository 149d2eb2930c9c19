"""`python -m utils.verify certify RUN`: how many triggers a model keeps under noise on its weights.

The certificate, see `certificate`, holds for every edit of these weights within a radius.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from utils.ownership.suspects import TriggerTests
from utils.rivals.randomized_smoothing.certificate import (
    certified_radius,
    certify,
    describe_certificate,
    smoothed_accuracies,
)
from utils.rivals.randomized_smoothing.plot import draw_noise_plot
from utils.runs.architecture import add_named_architectures
from utils.runs.checkpoints import class_count, find_checkpoint, load_checkpoint, read_model
from utils.system.files import check_output_file, write_atomically, write_json
from utils.system.machine import choose_device
from utils.system.refusals import CONFIDENCE, COUNT, POSITIVE, RADIUS, SEED, Refusal
from utils.training.metrics import count_hits
from utils.watermark.trigger_files import unpack_source


@dataclass(frozen=True)
class CertifyCommand:
    """The flags of `utils.verify certify`."""

    run: str
    benign: list
    draws: int
    sigma: float
    confidence: float
    eps: list
    curve: list
    seed: int
    device: str
    json: Path | None
    plot: Path | None


def add_certify(parts) -> None:
    """Declare the command `certify` and its flags; `parts` are the subparsers of utils.verify."""
    p = parts.add_parser("certify", help="how many triggers a model keeps under noise on its weights, and for certain "
                                         "under any edit of them within a radius (-tt rs is trained for that)")
    p.set_defaults(call=run_certify, command_type=CertifyCommand)
    p.add_argument("run", metavar="RUN", help="folder of train.py, or a checkpoint that holds triggers")
    p.add_argument("--benign", nargs="+", default=[], metavar="RUN", help="controls, asked the same triggers")
    add_named_architectures(p)
    p.add_argument("--draws", type=COUNT, default=1000, help="noisy models N (default: 1000)")
    p.add_argument("--sigma", type=POSITIVE, default=1.0, help="standard deviation of the noise (default: 1)")
    p.add_argument("--confidence", type=CONFIDENCE, default=0.99, help="of each bound (default: 0.99)")
    p.add_argument("--eps", type=RADIUS, nargs="+", default=[round(0.2 * i, 1) for i in range(1, 11)],
                   help="l2 radii over all parameters (default: 0.2 0.4 ... 2.0)")
    p.add_argument("--curve", type=POSITIVE, nargs="+", default=[], metavar="SIGMA",
                   help="ask the triggers under noise of these sizes too")
    p.add_argument("--seed", type=SEED, default=0, help="seed of the noise (default: 0)")
    p.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu", "mps"), help="where to compute")
    p.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    p.add_argument("--plot", type=Path, metavar="FILE.png",
                   help="with --curve: trigger accuracy against the size of the noise")


def run_certify(command: CertifyCommand) -> int:
    """Print the certificates of RUN and of its controls, and the certified radius; returns exit status 0."""
    check_output_file(command.json, "--json")
    check_output_file(command.plot, "--plot")
    if command.plot and not command.curve:
        raise Refusal("--plot draws the sizes of noise that --curve names, for example --curve 0.1 0.3 1; name some")
    device, path = choose_device(command.device), find_checkpoint(command.run, None)
    model, triggers = unpack_source(load_checkpoint(path), path, device)
    if triggers is None:
        raise Refusal(f"{path} holds no trigger set: name a run of train.py")
    classes = class_count(model)
    tests = TriggerTests(triggers, classes, False)
    models = [("RUN", command.run, path, model)]
    for control in command.benign:
        path = find_checkpoint(control, None)
        model = read_model(path, device)
        models.append(("benign", control, path, model))
    # before the long part, because it refuses a control with other classes
    trigger_logits = [tests.logits_of(model, path) for _, _, path, model in models]
    settings = {"draws": command.draws, "sigma": command.sigma, "confidence": command.confidence, "seed": command.seed}
    print(f"{len(triggers)} triggers, {command.draws} noisy models at sigma {command.sigma:g}; bounds hold with "
          f"confidence {command.confidence:g} each, for l2 edits of the parameters (not of BatchNorm's running "
          "statistics)")
    results = []
    for (role, name, path, model), logits in zip(models, trigger_logits):
        under_noise = partial(_under_noise, model, triggers, classes, command)
        accuracies, shares = under_noise(command.sigma)
        curve = [(sigma, *_mean_and_median(under_noise(sigma)[0])) for sigma in command.curve]
        mean, median = _mean_and_median(accuracies)
        result = {
            "role": role, "model": str(name), "checkpoint": str(path),
            "trigger_accuracy": count_hits(logits, triggers.labels) / len(triggers),
            "smoothed_mean": mean, "smoothed_median": median, **({"curve": curve} if curve else {}),
            "certified": certify(accuracies, command.eps, command.sigma, command.confidence),
            "histogram": shares.mean(0).tolist(), "most_frequent_class": float(shares.max(1).mean()),
        }
        results.append(result)
        print(describe_certificate(result, one_label=len(set(triggers.labels.tolist())) == 1))
    bar = max((r["smoothed_median"] for r in results[1:]), default=0.0)
    eps = certified_radius(results[0]["certified"], bar)
    beaten = f"{100 * bar:.2f} %, the highest median of the controls" if command.benign else "0; no --benign was named"
    radius = "none, for no bound" if eps is None else f"{eps:g}, the largest eps whose bound"
    print(f"certified l2 radius: {radius} is above {beaten}")
    if command.json:
        write_json(command.json, {"settings": settings, "models": results, "radius": eps}, private=True)
    if command.plot:
        write_atomically(command.plot, draw_noise_plot(results))
    return 0


def _under_noise(model, triggers, classes: int, command: CertifyCommand, sigma: float):
    """What `smoothed_accuracies` gives; the draws are the same for every model and every sigma, but for their size."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(command.seed)
    return smoothed_accuracies(model, triggers.images, triggers.labels, classes, sigma, command.draws, generator)


def _mean_and_median(sorted_accuracies) -> tuple[float, float]:
    return float(sorted_accuracies.mean()), float(sorted_accuracies[len(sorted_accuracies) // 2])
