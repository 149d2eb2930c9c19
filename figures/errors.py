"""`python -m figures.errors`: how often T1 claims models that were not stolen, and how often those that were.

On scikit-learn's digits, small models, one core, about ten minutes. One margin source and its trigger set; benign
models of two architectures, trained on two disjoint halves of the training images, a third of them for one epoch
only, so that they answer the triggers wrongly often; surrogates extracted from the source. Writes errors.json (with
every answer), errors.md and errors.png beside this file; `--redraw` computes everything again from its answers.
"""

import functools
import json
from functools import partial

import numpy as np
import torch

import models
from figures.shared import HERE, interval, markdown_table, write_result
from figures.toy import train_in_memory
from utils.attacks.stealing import ExtractionObjective, hard_loss, soft_loss
from utils.data.batches import Batches
from utils.data.sets import load_data
from utils.ownership import pvalues
from utils.system.machine import figure_png, new_figure
from utils.system.refusals import Parser, refuse_in_one_sentence
from utils.training.loop import PlainObjective
from utils.training.metrics import accuracy, predict
from utils.watermark.margin import WatermarkObjective, ascend
from utils.watermark.triggers import draw_triggers

M = 60  # triggers
BENIGN = [(arch, half, seed) for arch in ("vgg11", "res18") for half in (0, 1) for seed in range(9)]
STOLEN = [(attack, loss, seed) for attack, loss in (("soft", soft_loss), ("hard", hard_loss)) for seed in range(4)]
ALPHAS = (0.05, 0.01, 0.001)
RELABELLINGS, ORDERS = 200, 200  # fresh draws of the labels for each benign model; random orders of the queries
NAMES = {"drawn": "as drawn, one p-value a model", "redrawn": f"drawn anew {RELABELLINGS} times for each model",
         "redrawn_weak": "the same, models of one epoch alone"}


@refuse_in_one_sentence
def main(argv=None):
    """Collect the answers or read them, and write the three files."""
    parser = Parser(prog="python -m figures.errors", description=__doc__.splitlines()[0])
    parser.add_argument("--redraw", action="store_true", help="use the answers in errors.json")
    redraw = parser.parse_args(argv).redraw
    figures = json.loads((HERE / "errors.json").read_text()) if redraw else collect_answers()
    figures |= {"false_claims": false_claims(figures), "power": power(figures)}
    write_result(HERE / "errors.json", figures, errors_markdown(figures), draw_errors(figures))


# ---- models and their answers to one trigger set ----


def collect_answers() -> dict:
    """Train all models: {"assigned", "true", "source", "stolen", "benign"}, labels (M,) and rows of models."""
    torch.set_num_threads(1)
    digits = load_data("digits")
    triggers = draw_triggers(digits.held_out, M, 1, 10, seed=0)[0]
    x, y = triggers.images.float().div(255), triggers.labels

    def train(objective_of, seed, images=digits.train, arch="vgg11", width=16, epochs=12):
        """A trained model; `objective_of` is a function of the untrained one."""
        torch.manual_seed(seed)
        model = models.place(models.build(arch, 10, digits.mean, digits.std, width), "cpu")
        return train_in_memory(model, objective_of(model), Batches(images, 32, flip=False), epochs=epochs, seed=seed)

    def answers(model, **description):
        """A model's row: its description, its test accuracy and its answers to the triggers (M,); also prints them."""
        given = predict(model, triggers.images).argmax(1)
        test_accuracy = accuracy(model, digits.test.images, digits.test.labels)
        print(description, f"accuracy {100 * test_accuracy:.1f} %, {int((given == y).sum())} of {M} hit", flush=True)
        return description | {"accuracy": test_accuracy, "answers": given.tolist()}

    source = train(lambda model: WatermarkObjective(
        model, x, y, weight=1.0, reduction="sum", batch=25, bn_stats="paper",
        ascent=partial(ascend, steps=5, step_size=4 / 255, eps=20 / 255)), 0)
    figures = {"assigned": y.tolist(), "true": triggers.true_labels[:, 0].tolist(), "stolen": [], "benign": []}
    figures["source"] = answers(source)
    for attack, loss, seed in STOLEN:
        objective = ExtractionObjective(source, loss, needs_labels=False)
        copy = train(lambda _, objective=objective: objective, 100 + seed)
        figures["stolen"].append(answers(copy, attack=attack, seed=100 + seed))
    for arch, half, seed in BENIGN:
        images, epochs = digits.train.pick(range(half, len(digits.train.labels), 2)), 1 if seed % 3 == 2 else 6
        model = train(lambda _: PlainObjective(), 1000 + seed, images, arch, {"vgg11": 8, "res18": 4}[arch], epochs)
        figures["benign"].append(answers(model, architecture=arch, half=half, seed=1000 + seed, epochs=epochs))
    return figures


# ---- error rates and power; `answers` is what `collect_answers` gives ----


_tail = functools.cache(lambda hits, wrong: pvalues.binomial(hits, wrong, 1 / 9))


def t1(given, assigned, true) -> float:
    """log10 p of T1 for ten classes, from answers, assigned and true labels (m,)."""
    outside = given != true
    return _tail(int((outside & (given == assigned)).sum()), int(outside.sum()))


def false_claims(answers) -> dict:
    """T1 of the benign models: {"rows", "log10_p"}, claims at each of `ALPHAS` and the p-values.

    "drawn" uses the labels as they were drawn, "redrawn" fresh draws for each model, "redrawn_weak" those of the models
    that were trained for one epoch.
    """
    assigned, true = np.array(answers["assigned"]), np.array(answers["true"])
    rng, p = np.random.default_rng(0), {"drawn": [], "redrawn": [], "redrawn_weak": []}
    for row in answers["benign"]:
        given = np.array(row["answers"])
        p["drawn"].append(t1(given, assigned, true))
        # labels are uniform over the wrong classes
        own = [t1(given, (true + rng.integers(1, 10, len(true))) % 10, true) for _ in range(RELABELLINGS)]
        p["redrawn"] += own
        p["redrawn_weak"] += own if row["epochs"] == 1 else []
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
    rng, shares, m = np.random.default_rng(1), {}, len(true)
    for kind, row in [("source", answers["source"]), *((row["attack"], row) for row in answers["stolen"])]:
        given, claimed = np.array(row["answers"]), np.zeros(m)
        for order in (rng.permutation(m) for _ in range(ORDERS)):
            p = [t1(given[part], assigned[part], true[part]) for part in (order[:n] for n in range(1, m + 1))]
            claimed += np.array(p) <= np.log10(alpha)
        shares.setdefault(kind, []).append((claimed / ORDERS).tolist())
    return {"alpha": alpha, "share": {kind: np.mean(s, axis=0).tolist() for kind, s in shares.items()},
            "claimed_with_all": {kind: [sum(one[-1] for one in s), len(s)] for kind, s in shares.items()}}


# ---- errors.md and errors.png; `figures` is the content of errors.json ----


def errors_markdown(figures) -> str:
    """The content of errors.md."""
    claims, power, source = figures["false_claims"], figures["power"], figures["source"]
    percent = lambda rows: "{:.1f} to {:.1f} %".format(*(100 * f(row["accuracy"] for row in rows) for f in (min, max)))
    weak, good = ([row for row in figures["benign"] if (row["epochs"] == 1) == one] for one in (True, False))
    hits = sum(a == b for a, b in zip(source["answers"], figures["assigned"]))
    p = 10.0 ** np.sort(claims["log10_p"]["redrawn"])
    over = int((np.arange(1, len(p) + 1) / len(p) > p).sum())
    false = [[NAMES[row["labels"]], f"{row['alpha']:g}", f"{row['claims']} of {row['of']}",
              f"{row['claims'] / row['of']:.5f}", "{:.5f} to {:.5f}".format(*row["interval"])]
             for row in claims["rows"]]
    stolen = [[kind, "{:g} of {}".format(*power["claimed_with_all"][kind]),
               " / ".join(f"{share[n - 1]:.2f}" for n in (10, 20, 30, 45, 60))]
              for kind, share in power["share"].items()]
    return "\n".join([
        "# Error rates and power of T1, measured", "",
        f"`python -m figures.errors`; digits, {M} triggers, {len(figures['benign'])} benign models ({len(good)} "
        f"trained for 6 epochs, test accuracy {percent(good)}; {len(weak)} for one, {percent(weak)}).", "",
        markdown_table(["labels", "alpha", "false claims", "share", "95 % interval (Clopper-Pearson)"], false, ""), "",
        f"Source: test accuracy {100 * source['accuracy']:.1f} %, {hits} of {M} hit. Surrogates (12 epochs of "
        f"extraction): test accuracy {percent(figures['stolen'])}.", "",
        markdown_table(["stolen models", "claimed with all queries",
                        "share claimed after 10 / 20 / 30 / 45 / 60 queries"], stolen, ""), "",
        "Left: the empirical distribution of the p-values drawn anew is under the diagonal but for "
        f"{over} of {len(p)} (the smallest is {p[0]:.1e}; uniform ones hold one as small with probability "
        f"{1 - (1 - p[0]) ** len(p):.2f}). Right: power at alpha = {power['alpha']:g} in {ORDERS} random orders of the "
        "queries.", "", "![](errors.png)"]) + "\n"


def draw_errors(figures) -> bytes:
    """A PNG: the p-values' empirical distribution against the diagonal; power against the number of queries."""
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
    return figure_png(figure)


if __name__ == "__main__":
    main()
