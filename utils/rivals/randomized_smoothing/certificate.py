"""TODO (utils.smoothing)"""

import copy

import numpy as np
import torch
from scipy import stats
from tqdm import tqdm

from utils.rivals.randomized_smoothing.noise import gaussian_noise
from utils.training.metrics import predict


def order_index(n: int, eps: float, sigma: float, confidence: float) -> int | None:
    """Position, from 0, in n sorted draws of a lower bound of their Phi(-eps / sigma) quantile; None where none is.

    It is k - 1 with the largest k such that P(Bin(n, p) >= k) >= confidence (Chiang et al., 2020).
    """
    tail = stats.binom.sf(np.arange(n), n, stats.norm.cdf(-eps / sigma))  # P(Bin(n, p) >= k) of k = 1, ..., n
    k = int((tail >= confidence).sum())
    return k - 1 if k else None


def certify(sorted_accuracies, eps_grid, sigma: float, confidence: float) -> dict:
    """{eps: bound or None}: the median smoothed accuracy of every model within l2 distance eps is at least the bound.

    `sorted_accuracies` ascending, of draws theta + sigma * N(0, I); each bound holds with the given confidence alone.
    """
    n = len(sorted_accuracies)
    positions = {eps: order_index(n, eps, sigma, confidence) for eps in eps_grid}
    return {eps: None if k is None else float(sorted_accuracies[k]) for eps, k in positions.items()}


def smoothed_accuracies(model, images, labels, classes: int, sigma: float, draws: int, generator):
    """Accuracies (draws,), ascending, under noise on the parameters in eval mode, and how often each class is
    answered, (draws, classes) shares in the order drawn. An answer that is not finite is no answer, and no hit."""
    noisy, answers, accuracies = copy.deepcopy(model), [], []
    clean, moved = list(model.parameters()), list(noisy.parameters())
    for _ in tqdm(range(draws), desc="noisy models", unit="draw", disable=None, leave=False):
        with torch.no_grad():
            for p, q, n in zip(moved, clean, gaussian_noise(clean, generator)):
                torch.add(q, n, alpha=sigma, out=p)
        logits = predict(noisy, images).cpu()
        answer = logits.argmax(1).where(logits.isfinite().all(1), -1)
        accuracies.append(int((answer == labels.cpu()).sum()) / len(labels))
        answers.append(answer[answer >= 0].bincount(minlength=classes) / len(labels))
    return np.sort(accuracies), torch.stack(answers).numpy()


def certified_radius(certified: dict, bar: float) -> float | None:
    """The largest eps whose bound is above `bar`, a share of the triggers; None where none is."""
    return max((eps for eps, bound in certified.items() if bound is not None and bound > bar), default=None)


def describe_certificate(result: dict, one_label: bool) -> str:
    """A result as text, rates in per cent."""
    percent = lambda value: "none" if value is None else f"{100 * value:.2f}"
    order = sorted(range(len(result["histogram"])), key=lambda c: -result["histogram"][c])
    shown = ", ".join(f"{c}: {percent(result['histogram'][c])}" for c in order[:10])
    parts = [
        f"{result['role']} {result['model']}",
        f"  answers under noise, % by class: {shown}{', ...' if len(order) > 10 else ''}",
        f"  a noisy model's most frequent class: {percent(result['most_frequent_class'])} % of the triggers on average",
        f"  trigger accuracy {percent(result['trigger_accuracy'])}, under noise mean {percent(result['smoothed_mean'])}"
        f", median {percent(result['smoothed_median'])}",
        "  certified: " + ", ".join(f"eps {eps:g}: {percent(v)}" for eps, v in result["certified"].items()),
    ]
    if one_label and result["most_frequent_class"] > 0.9:
        parts.append("  note: noise makes this model nearly constant, and with one label for all triggers a constant "
                     "answer hits all or none; compare with --benign")
    return "\n".join(parts)
