"""RS's certificate: the accuracy on triggers that every model within an l2 distance of the given weights must have.

The smoothed accuracy is the median accuracy of models with Gaussian noise on all parameters (Bansal et al., 2022; the
bound on a median by order statistics is that of Chiang et al., 2020). It is about edits of these very weights, not of
BatchNorm's running statistics, and says nothing of a surrogate that is trained from new weights. Departure from the
authors' code: all triggers are evaluated, not 64 random ones.
"""

import copy

import numpy as np
import torch
from scipy import stats
from tqdm import tqdm

from utils.rivals.randomized_smoothing.noise import gaussian_noise
from utils.training.metrics import predict


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
    n = len(sorted_accuracies)
    positions = {eps: order_index(n, eps, sigma, confidence) for eps in eps_grid}
    return {eps: None if k is None else float(sorted_accuracies[k]) for eps, k in positions.items()}


def smoothed_accuracies(model, images, labels, classes: int, sigma: float, draws: int, generator):
    """(accuracies (draws,), class shares (draws, classes)) of noisy copies of the model, in eval mode.

    images uint8 (m, 3, 32, 32), labels (m,). The accuracies are in ascending order; a row of shares says how often a
    noisy model answers each class, in the order of the draws. Logits that are not finite count as no answer and no
    hit.
    """
    noisy, shares, accuracies = copy.deepcopy(model), [], []
    clean, moved = list(model.parameters()), list(noisy.parameters())
    for _ in tqdm(range(draws), desc="noisy models", unit="draw", disable=None, leave=False):
        with torch.no_grad():
            for p, q, n in zip(moved, clean, gaussian_noise(clean, generator)):
                torch.add(q, n, alpha=sigma, out=p)
        logits = predict(noisy, images).cpu()
        answers = logits.argmax(1).where(logits.isfinite().all(1), -1)
        accuracies.append(int((answers == labels.cpu()).sum()) / len(labels))
        shares.append(answers[answers >= 0].bincount(minlength=classes) / len(labels))
    return np.sort(accuracies), torch.stack(shares).numpy()


def certified_radius(certified: dict, bar: float) -> float | None:
    """The largest eps whose bound in `certified` is above `bar`, an accuracy in [0, 1]; None where there is none."""
    return max((eps for eps, bound in certified.items() if bound is not None and bound > bar), default=None)


def describe_certificate(result: dict, one_label: bool) -> str:
    """A result of `run_certify` as text, rates in per cent; `one_label`: all triggers have the same label."""
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
