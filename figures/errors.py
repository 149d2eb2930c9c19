"""`python -m figures.errors`: how often T1 claims models that were not stolen, on scikit-learn's digits.

Small models, one core, about five minutes: a trigger set, and benign models of two architectures, trained on two
disjoint halves of the training images, a third of them for one epoch only, so that they answer the triggers wrongly
often. Writes errors.json (with every answer) and errors.md beside this file; `--redraw` computes them from its answers.
"""

import functools
import json

import numpy as np
import torch

import models
from figures.shared import HERE, interval, markdown_table, write_result
from figures.toy import train_in_memory
from utils.data.batches import Batches
from utils.data.sets import load_data
from utils.ownership import pvalues
from utils.system.refusals import Parser, refuse_in_one_sentence
from utils.training.loop import PlainObjective
from utils.training.metrics import accuracy, predict
from utils.watermark.triggers import draw_triggers

M = 60  # triggers
BENIGN = [(arch, half, seed) for arch in ("vgg11", "res18") for half in (0, 1) for seed in range(9)]
WIDTHS = {"vgg11": 8, "res18": 4}
ALPHAS, RELABELLINGS = (0.05, 0.01, 0.001), 200  # levels; fresh draws of the labels for each benign model
NAMES = {"drawn": "as drawn, one p-value a model", "redrawn": f"drawn anew {RELABELLINGS} times for each model",
         "redrawn_weak": "the same, models of one epoch alone"}


@refuse_in_one_sentence
def main(argv=None):
    """Collect the answers or read them, and write the two files."""
    parser = Parser(prog="python -m figures.errors", description=__doc__.splitlines()[0])
    parser.add_argument("--redraw", action="store_true", help="use the answers in errors.json")
    redraw = parser.parse_args(argv).redraw
    figures = json.loads((HERE / "errors.json").read_text()) if redraw else collect_answers()
    figures |= {"false_claims": false_claims(figures)}
    write_result(HERE / "errors.json", figures, errors_markdown(figures))


def collect_answers() -> dict:
    """Train all models: {"assigned", "true", "benign"}, labels (M,) of the triggers and a row for each model."""
    torch.set_num_threads(1)
    digits = load_data("digits")
    triggers, _ = draw_triggers(digits.held_out, M, 1, 10, seed=0)
    figures = {"assigned": triggers.labels.tolist(), "true": triggers.true_labels[:, 0].tolist(), "benign": []}
    for arch, half, seed in BENIGN:
        epochs, images = 1 if seed % 3 == 2 else 6, digits.train.pick(range(half, len(digits.train.labels), 2))
        torch.manual_seed(1000 + seed)
        model = models.place(models.build(arch, 10, digits.mean, digits.std, WIDTHS[arch]), "cpu")
        train_in_memory(model, PlainObjective(), Batches(images, 32, flip=False), epochs=epochs, seed=1000 + seed)
        row = {"architecture": arch, "half": half, "seed": 1000 + seed, "epochs": epochs,
               "accuracy": accuracy(model, digits.test.images, digits.test.labels)}
        print(row, flush=True)
        figures["benign"].append(row | {"answers": predict(model, triggers.images).argmax(1).tolist()})
    return figures


_tail = functools.cache(lambda hits, wrong: pvalues.binomial(hits, wrong, 1 / 9))


def t1(given, assigned, true) -> float:
    """log10 p of T1 for ten classes, from answers, assigned and true labels (m,)."""
    outside = given != true
    return _tail(int((outside & (given == assigned)).sum()), int(outside.sum()))


def false_claims(answers) -> dict:
    """T1 of the benign models: {"rows", "log10_p"}, claims at each of `ALPHAS` and the p-values.

    "drawn" uses the labels as they were drawn, "redrawn" fresh draws for each model, "redrawn_weak" those of the models
    that were trained for one epoch. `answers` is what `collect_answers` gives.
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


def errors_markdown(figures) -> str:
    """The content of errors.md; `figures` is that of errors.json."""
    claims, range_of = figures["false_claims"], "{:.1f} to {:.1f} %"
    percent = lambda rows: range_of.format(*(100 * end(row["accuracy"] for row in rows) for end in (min, max)))
    weak, good = ([row for row in figures["benign"] if (row["epochs"] == 1) == one] for one in (True, False))
    p = 10.0 ** np.sort(claims["log10_p"]["redrawn"])
    over = int((np.arange(1, len(p) + 1) / len(p) > p).sum())
    rows = [[NAMES[row["labels"]], f"{row['alpha']:g}", f"{row['claims']} of {row['of']}",
             f"{row['claims'] / row['of']:.5f}", "{:.5f} to {:.5f}".format(*row["interval"])]
            for row in claims["rows"]]
    return "\n".join([
        "# False claims of T1, measured", "",
        f"`python -m figures.errors`; digits, {M} triggers, {len(figures['benign'])} benign models ({len(good)} "
        f"trained for 6 epochs, test accuracy {percent(good)}; {len(weak)} for one, {percent(weak)}).", "",
        markdown_table(["labels", "alpha", "false claims", "share", "95 % interval (Clopper-Pearson)"], rows, ""), "",
        "The empirical distribution of the p-values drawn anew is under the diagonal but for "
        f"{over} of {len(p)} (the smallest is {p[0]:.1e}; uniform ones hold one as small with probability "
        f"{1 - (1 - p[0]) ** len(p):.2f}). The power of T1 is in power.md."]) + "\n"


if __name__ == "__main__":
    main()
