"""errors.md and errors.png: the error rates and the power of T1 in words and as a picture.

`figures` is the content of errors.json: the answers of the models, and the results of `t1_rates` under "false_claims"
and "power".
"""

import numpy as np

from figures.false_claims.t1_models import M
from figures.false_claims.t1_rates import ORDERS, RELABELLINGS
from utils.system.machine import new_figure

NAMES = {"drawn": "as drawn, one p-value a model", "redrawn": f"drawn anew {RELABELLINGS} times for each model",
         "redrawn_weak": "the same, models of one epoch alone"}


def errors_markdown(figures) -> str:
    """The content of errors.md."""
    weak = [row["accuracy"] for row in figures["benign"] if row["epochs"] == 1]
    good = [row["accuracy"] for row in figures["benign"] if row["epochs"] > 1]
    stolen = [row["accuracy"] for row in figures["stolen"]]
    percent = lambda values: f"{100 * min(values):.1f} to {100 * max(values):.1f} %"
    lines = [
        "# Error rates and power of T1, measured", "",
        f"`python -m figures.errors`; digits, {M} triggers, {len(figures['benign'])} benign models ({len(good)} "
        f"trained for 6 epochs, test accuracy {percent(good)}; {len(weak)} for one, {percent(weak)}).", "",
        "| labels | alpha | false claims | share | 95 % interval (Clopper-Pearson) |", "|---|---|---|---|---|",
    ]
    for row in figures["false_claims"]["rows"]:
        low, high = row["interval"]
        lines.append(f"| {NAMES[row['labels']]} | {row['alpha']:g} | {row['claims']} of {row['of']} | "
                     f"{row['claims'] / row['of']:.5f} | {low:.5f} to {high:.5f} |")
    source = figures["source"]
    hits = sum(a == b for a, b in zip(source["answers"], figures["assigned"]))
    lines += ["", f"Source: test accuracy {100 * source['accuracy']:.1f} %, {hits} of {M} hit. Surrogates (12 epochs "
              f"of extraction): test accuracy {percent(stolen)}.", "",
              "| stolen models | claimed with all queries | share claimed after 10 / 20 / 30 / 45 / 60 queries |",
              "|---|---|---|"]
    for kind, share in figures["power"]["share"].items():
        claimed, count = figures["power"]["claimed_with_all"][kind]
        lines.append(f"| {kind} | {claimed:g} of {count} | "
                     + " / ".join(f"{share[n - 1]:.2f}" for n in (10, 20, 30, 45, 60)) + " |")
    p = 10.0 ** np.sort(figures["false_claims"]["log10_p"]["redrawn"])
    over = int((np.arange(1, len(p) + 1) / len(p) > p).sum())
    lines += ["", f"Left: the empirical distribution of the p-values drawn anew is under the diagonal but for "
              f"{over} of {len(p)} (the smallest is {p[0]:.1e}; uniform ones hold one as small with probability "
              f"{1 - (1 - p[0]) ** len(p):.2f}). Right: power at "
              f"alpha = {figures['power']['alpha']:g} in {ORDERS} random orders of the queries.", "", "![](errors.png)"]
    return "\n".join(lines) + "\n"


def draw_errors(figures, path) -> None:
    """errors.png: the p-values' empirical distribution against the diagonal; power against the number of queries."""
    figure, (left, right) = new_figure(10, 4.2, 1, 2)
    for name, style in (("redrawn", "-"), ("redrawn_weak", "--"), ("drawn", ":")):
        p = 10.0 ** np.sort(figures["false_claims"]["log10_p"][name])
        steps = np.append(p, 1.0)
        left.step(steps, np.append(np.arange(1, len(p) + 1) / len(p), 1.0), style, where="post", label=NAMES[name])
    left.plot([1e-5, 1], [1e-5, 1], color="black", lw=1, label="uniform: the diagonal")
    left.set(xscale="log", yscale="log", xlim=(1e-5, 1), ylim=(1e-5, 1.2), xlabel="p", ylabel="share of p-values <= p")
    left.set_title("benign models: T1 is super-uniform", fontsize=10)
    for kind, share in figures["power"]["share"].items():
        title = "the source itself" if kind == "source" else f"{kind}-label extraction"
        count = figures["power"]["claimed_with_all"][kind][1]
        right.plot(range(1, len(share) + 1), share, label=f"{title} ({count})")
    right.set(xlabel="queries", ylabel="share claimed", ylim=(-0.03, 1.05), xlim=(0, M))
    right.set_title(f"stolen models: power of T1 at alpha = {figures['power']['alpha']:g}", fontsize=10)
    for ax in (left, right):
        ax.legend(fontsize=8, loc="lower right")
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=110, format="png")
