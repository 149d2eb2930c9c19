"""`python -m figures.errors`: how often T1 claims models that were not stolen, and how often those that were.

On scikit-learn's digits, small models, one core, about ten minutes. One margin source and its trigger set; benign
models of two architectures, trained on two disjoint halves of the training images, a third of them for one epoch
only, so that they answer the triggers wrongly often; surrogates extracted from the source. Writes errors.json (with
every answer), errors.md and errors.png beside this file; `--redraw` computes everything again from its answers.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import stats

import models
from figures.toy import train_in_memory
from utils.attacks.stealing import ExtractionObjective, hard_loss, soft_loss
from utils.data.batches import Batches
from utils.data.sets import load_data
from utils.ownership import pvalues
from utils.system.machine import new_figure
from utils.system.refusals import Parser, refuse_in_one_sentence
from utils.training.loop import PlainObjective
from utils.training.metrics import accuracy, predict
from utils.watermark.margin import WatermarkObjective, ascend
from utils.watermark.triggers import draw_triggers

HERE = Path(__file__).resolve().parent
M = 60  # triggers
BENIGN = [(arch, half, seed) for arch in ("vgg11", "res18") for half in (0, 1) for seed in range(9)]
LOSSES = {"soft": soft_loss, "hard": hard_loss}
STOLEN = [(attack, seed) for attack in LOSSES for seed in range(4)]
ALPHAS = (0.05, 0.01, 0.001)
RELABELLINGS, ORDERS = 200, 200  # fresh draws of the labels for each benign model; random orders of the queries
NAMES = {"drawn": "as drawn, one p-value a model", "redrawn": f"drawn anew {RELABELLINGS} times for each model",
         "redrawn_weak": "the same, models of one epoch alone"}


@refuse_in_one_sentence
def main(argv=None):
    """Collect the answers or read them, and write the three files."""
    parser = Parser(prog="python -m figures.errors", description=__doc__.splitlines()[0])
    parser.add_argument("--redraw", action="store_true", help="use the answers in errors.json")
    if parser.parse_args(argv).redraw:
        figures = json.loads((HERE / "errors.json").read_text())
    else:
        figures = collect_answers()
    figures |= {"false_claims": false_claims(figures), "power": power(figures)}
    (HERE / "errors.json").write_text(json.dumps(figures) + "\n")
    (HERE / "errors.md").write_text(errors_markdown(figures))
    draw_errors(figures, HERE / "errors.png")
    print(errors_markdown(figures))


# ---- models and their answers to one trigger set ----


def collect_answers() -> dict:
    """Train all models: {"assigned", "true", "source", "stolen", "benign"}, labels (M,) and rows of models."""
    torch.set_num_threads(1)
    digits = load_data("digits")
    triggers = draw_triggers(digits.held_out, M, 1, 10, seed=0)[0]
    x, y = triggers.images.float().div(255), triggers.labels

    def train(images, arch, width, epochs, seed, objective_of):
        """A trained model; `objective_of` is a function of the untrained one."""
        torch.manual_seed(seed)
        model = models.place(models.build(arch, 10, digits.mean, digits.std, width), "cpu")
        return train_in_memory(model, objective_of(model), Batches(images, 32, flip=False), epochs=epochs, seed=seed)

    def answers(model, **description):
        """A model's row: its description, its test accuracy and its answers to the triggers (M,); also prints them."""
        given = predict(model, triggers.images).argmax(1)
        test_accuracy = accuracy(model, digits.test.images, digits.test.labels)
        hits = int((given == y).sum())
        print(description, f"accuracy {100 * test_accuracy:.1f} %, {hits} of {M} hit", flush=True)
        return description | {"accuracy": test_accuracy, "answers": given.tolist()}

    source = train(digits.train, "vgg11", 16, 12, 0, lambda model: WatermarkObjective(
        model, x, y, weight=1.0, reduction="sum", batch=25, bn_stats="paper",
        ascent=partial(ascend, steps=5, step_size=4 / 255, eps=20 / 255)))
    figures = {"assigned": y.tolist(), "true": triggers.true_labels[:, 0].tolist(), "stolen": []}
    figures["source"] = answers(source)
    for attack, seed in STOLEN:
        objective = ExtractionObjective(source, LOSSES[attack], needs_labels=False)
        copy = train(digits.train, "vgg11", 16, 12, 100 + seed, lambda _, objective=objective: objective)
        figures["stolen"].append(answers(copy, attack=attack, seed=100 + seed))
    figures["benign"] = []
    for arch, half, seed in BENIGN:
        epochs = 1 if seed % 3 == 2 else 6
        images = digits.train.pick(range(half, len(digits.train.labels), 2))
        width = {"vgg11": 8, "res18": 4}[arch]
        model = train(images, arch, width, epochs, 1000 + seed, lambda _: PlainObjective())
        figures["benign"].append(answers(model, architecture=arch, half=half, seed=1000 + seed, epochs=epochs))
    return figures


# ---- error rates and power; `answers` is what `collect_answers` gives ----


def interval(k: int, n: int) -> tuple:
    """Two-sided 95 % Clopper-Pearson interval of a rate, after k of n."""
    low = stats.beta.ppf(0.025, k, n - k + 1) if k else 0.0
    return float(low), float(stats.beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0


def false_claims(answers) -> dict:
    """T1 of the benign models: {"rows", "log10_p"}, claims at each of `ALPHAS` and the p-values.

    "drawn" uses the labels as they were drawn, "redrawn" fresh draws for each model, "redrawn_weak" those of the models
    that were trained for one epoch.
    """
    assigned, true = np.array(answers["assigned"]), np.array(answers["true"])
    rng, known_tails, p = np.random.default_rng(0), {}, {"drawn": [], "redrawn": [], "redrawn_weak": []}
    for row in answers["benign"]:
        given = np.array(row["answers"])
        p["drawn"].append(_t1_log10_p(given, assigned, true, known_tails))
        for _ in range(RELABELLINGS):
            labels = (true + rng.integers(1, 10, len(true))) % 10  # uniform over the wrong classes
            p["redrawn"].append(_t1_log10_p(given, labels, true, known_tails))
            if row["epochs"] == 1:
                p["redrawn_weak"].append(p["redrawn"][-1])
    rows = []
    for name, values in p.items():
        for alpha in ALPHAS:
            k, n = int((np.array(values) <= np.log10(alpha) + 1e-12).sum()), len(values)
            rows.append({"labels": name, "alpha": alpha, "claims": k, "of": n, "interval": interval(k, n)})
    return {"rows": rows, "log10_p": p}


def power(answers, alpha: float = 1e-3) -> dict:
    """How often T1 claims source and copies: {"alpha", "share", "claimed_with_all"}, by kind of model.

    "share" is the share of random orders in which a model is claimed after n = 1, ..., m queries, averaged over models.
    "claimed_with_all" is [number of models claimed with all queries, number of models].
    """
    assigned, true = np.array(answers["assigned"]), np.array(answers["true"])
    rng, known_tails, shares = np.random.default_rng(1), {}, {}
    rows = [("source", answers["source"])] + [(row["attack"], row) for row in answers["stolen"]]
    for kind, row in rows:
        given = np.array(row["answers"])
        claimed = np.zeros(len(true))
        for _ in range(ORDERS):
            order = rng.permutation(len(true))
            for n in range(1, len(true) + 1):
                part = order[:n]
                log10_p = _t1_log10_p(given[part], assigned[part], true[part], known_tails)
                claimed[n - 1] += log10_p <= np.log10(alpha)
        shares.setdefault(kind, []).append((claimed / ORDERS).tolist())
    return {"alpha": alpha, "share": {kind: np.mean(s, axis=0).tolist() for kind, s in shares.items()},
            "claimed_with_all": {kind: [sum(one[-1] for one in s), len(s)] for kind, s in shares.items()}}


def _t1_log10_p(given, assigned, true, known_tails: dict) -> float:
    """log10 p of T1 for ten classes; `known_tails` caches {(hits, wrong answers): log10 p}."""
    outside = given != true
    pair = int((outside & (given == assigned)).sum()), int(outside.sum())
    if pair not in known_tails:
        known_tails[pair] = pvalues.binomial(*pair, 1 / 9)
    return known_tails[pair]


# ---- errors.md and errors.png; `figures` is the content of errors.json ----


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


if __name__ == "__main__":
    main()
