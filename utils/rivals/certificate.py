"""RS's certificate (Bansal et al., 2022), `python -m utils.verify certify RUN`.

It says how many triggers every model within an l2 distance of the given weights keeps: the smoothed accuracy is the
median accuracy of models with Gaussian noise on all parameters, and its bound is by order statistics (Chiang et al.,
2020). It is about edits of these very weights, not of BatchNorm's running statistics, and says nothing of a surrogate
that is trained from new weights. Departure from the authors' code: all triggers are evaluated, not 64 random ones.
"""

import copy
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from tqdm import tqdm

from utils.ownership.results import TriggerTests
from utils.rivals.randomized_smoothing import gaussian_noise
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, read_model
from utils.runs.networks import add_named_architectures
from utils.system.files import check_output_file, write_atomically, write_json
from utils.system.machine import choose_device, figure_png, new_figure
from utils.system.refusals import CONFIDENCE, COUNT, POSITIVE, RADIUS, SEED, Refusal
from utils.training.metrics import count_hits, predict
from utils.watermark.trigger_files import unpack_source


def order_index(n: int, eps: float, sigma: float, confidence: float) -> int | None:
    """Position, from 0, of a lower bound of the quantile p = Phi(-eps / sigma) among n sorted draws; None without one.

    It is k - 1 with the largest k such that P(Bin(n, p) >= k) >= confidence (Chiang et al., 2020).
    """
    tail = stats.binom.sf(np.arange(n), n, stats.norm.cdf(-eps / sigma))  # P(Bin(n, p) >= k) for k = 1, ..., n
    k = int((tail >= confidence).sum())
    return k - 1 if k else None


def certify(sorted_accuracies, eps_grid, sigma: float, confidence: float) -> dict:
    """{eps: bound or None}: the smoothed (median) accuracy of every model within l2 distance eps is at least the bound.

    `sorted_accuracies`, ascending, are those of draws theta + sigma * N(0, I). Each bound holds with the given
    confidence on its own, not all of them together.
    """
    positions = {eps: order_index(len(sorted_accuracies), eps, sigma, confidence) for eps in eps_grid}
    return {eps: None if k is None else float(sorted_accuracies[k]) for eps, k in positions.items()}


def certified_radius(certified: dict, bar: float) -> float | None:
    """The largest eps whose bound in `certified` is above `bar`, an accuracy in [0, 1]; None where there is none."""
    return max((eps for eps, bound in certified.items() if bound is not None and bound > bar), default=None)


def smoothed_accuracies(model, triggers, sigma: float, draws: int, seed: int):
    """(accuracies (draws,), class shares (draws, C)) of noisy copies of the model on a `TriggerSet`, in eval mode.

    The accuracies are in ascending order; a row of shares says how often a noisy model answers each class, in the order
    of the draws, which are the same for every model and sigma, but for their size. Logits that are not finite count as
    no answer and no hit.
    """
    noisy, shares, accuracies = copy.deepcopy(model), [], []
    clean, moved = list(model.parameters()), list(noisy.parameters())
    generator = torch.Generator(clean[0].device).manual_seed(seed)
    for _ in tqdm(range(draws), desc="noisy models", unit="draw", disable=None, leave=False):
        with torch.no_grad():
            for p, q, n in zip(moved, clean, gaussian_noise(clean, generator)):
                torch.add(q, n, alpha=sigma, out=p)
        logits = predict(noisy, triggers.images).cpu()
        answers = logits.argmax(1).where(logits.isfinite().all(1), -1)
        accuracies.append(int((answers == triggers.labels).sum()) / len(triggers))
        shares.append(answers[answers >= 0].bincount(minlength=logits.shape[1]) / len(triggers))
    return np.sort(accuracies), torch.stack(shares).numpy()


def add_certify(parts) -> None:
    """Declare the command `certify` and its flags; `parts` are the subparsers of utils.verify."""
    p = parts.add_parser("certify", help="how many triggers a model keeps under noise on its weights, and for certain "
                                         "under any edit of them within a radius (-tt rs is trained for that)")
    p.set_defaults(call=run_certify)
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


def run_certify(flags) -> int:
    """Print the certificates of RUN and of its controls, and the certified radius; returns exit status 0."""
    check_output_file(flags.json, "--json")
    check_output_file(flags.plot, "--plot")
    if flags.plot and not flags.curve:
        raise Refusal("--plot draws the sizes of noise that --curve names, for example --curve 0.1 0.3 1; name some")
    device, path = choose_device(flags.device), find_checkpoint(flags.run, None)
    model, triggers = unpack_source(load_checkpoint(path), path, device)
    if triggers is None:
        raise Refusal(f"{path} holds no trigger set: name a run of train.py")
    models = [("RUN", flags.run, path, model)]
    for control in flags.benign:
        path = find_checkpoint(control, None)
        models.append(("benign", control, path, read_model(path, device)))
    tests = TriggerTests(triggers, model.num_classes, False)
    # before the long part, because it refuses a control with other classes
    trigger_logits = [tests.logits_of(model, path) for _, _, path, model in models]
    settings = {k: getattr(flags, k) for k in ("draws", "sigma", "confidence", "seed")}
    print(f"{len(triggers)} triggers, {flags.draws} noisy models at sigma {flags.sigma:g}; bounds hold with "
          f"confidence {flags.confidence:g} each, for l2 edits of the parameters (not of BatchNorm's running "
          "statistics)")
    mean_and_median = lambda found: (float(found.mean()), float(found[len(found) // 2]))
    one_label, results = len(triggers.labels.unique()) == 1, []
    for (role, name, path, model), logits in zip(models, trigger_logits):
        under_noise = {sigma: smoothed_accuracies(model, triggers, sigma, flags.draws, flags.seed)
                       for sigma in (flags.sigma, *flags.curve)}
        accuracies, shares = under_noise[flags.sigma]
        mean, median = mean_and_median(accuracies)
        curve = [(sigma, *mean_and_median(under_noise[sigma][0])) for sigma in flags.curve]
        results.append({
            "role": role, "model": str(name), "checkpoint": str(path),
            "trigger_accuracy": count_hits(logits, triggers.labels) / len(triggers),
            "smoothed_mean": mean, "smoothed_median": median, **({"curve": curve} if curve else {}),
            "certified": certify(accuracies, flags.eps, flags.sigma, flags.confidence),
            "histogram": shares.mean(0).tolist(), "most_frequent_class": float(shares.max(1).mean()),
        })
        print(_described(results[-1], one_label))
    bar = max((r["smoothed_median"] for r in results[1:]), default=0.0)
    eps = certified_radius(results[0]["certified"], bar)
    beaten = f"{100 * bar:.2f} %, the highest median of the controls" if flags.benign else "0; no --benign was named"
    radius = "none, for no bound" if eps is None else f"{eps:g}, the largest eps whose bound"
    print(f"certified l2 radius: {radius} is above {beaten}")
    if flags.json:
        write_json(flags.json, {"settings": settings, "models": results, "radius": eps}, private=True)
    if flags.plot:
        write_atomically(flags.plot, _plot(results))
    return 0


def _described(result: dict, one_label: bool) -> str:
    """A model's result as text, rates in per cent; `one_label`: all triggers have the same label."""
    percent = lambda value: "none" if value is None else f"{100 * value:.2f}"
    order = sorted(range(len(result["histogram"])), key=lambda c: -result["histogram"][c])
    shown = ", ".join(f"{c}: {percent(result['histogram'][c])}" for c in order[:10])
    parts = [
        f"{result['role']} {result['model']}",
        f"  answers under noise, % by class: {shown}{', ...' if len(order) > 10 else ''}",
        f"  a noisy model's most frequent class: {percent(result['most_frequent_class'])} % of the triggers on average",
        f"  trigger accuracy {percent(result['trigger_accuracy'])}, under noise mean {percent(result['smoothed_mean'])}"
        f", median {percent(result['smoothed_median'])}",
        *(f"  under noise of {sigma:g}: mean {percent(mean)}, median {percent(median)}"
          for sigma, mean, median in result.get("curve", ())),
        "  certified: " + ", ".join(f"eps {eps:g}: {percent(v)}" for eps, v in result["certified"].items()),
    ]
    if one_label and result["most_frequent_class"] > 0.9:
        parts.append("  note: noise makes this model nearly constant, and with one label for all triggers a constant "
                     "answer hits all or none; compare with --benign")
    return "\n".join(parts)


def _plot(results: list[dict]) -> bytes:
    """A PNG with two lines for each of `results`, the mean and the median of the noisy models' trigger accuracies."""
    figure, (ax,) = new_figure(6.4, 4.6, 1, 1)
    for i, result in enumerate(results):
        sigmas, means, medians = zip(*result["curve"])
        name = f"{result['role']} {Path(result['model']).name}"
        ax.plot(sigmas, [100 * v for v in means], "o-", ms=3, color=f"C{i % 10}", label=f"{name}, mean")
        ax.plot(sigmas, [100 * v for v in medians], "--", lw=1, color=f"C{i % 10}", label=f"{name}, median")
    ax.set(xlabel="standard deviation of the noise on the weights", ylabel="triggers answered, %", ylim=(-3, 103))
    figure.legend(fontsize=7, loc="outside lower center", ncols=2, frameon=False)  # it would cover the lines
    return figure_png(figure)
