"""`python -m figures.errors`: how often T1 claims models that were not stolen, and how often those that were.

On scikit-learn's digits, small models, one core, about ten minutes. One margin source and its trigger set; benign
models of two architectures, trained on two disjoint halves of the training images, a third of them for one epoch
only, so that they answer the triggers wrongly often; surrogates extracted from the source. Writes errors.json (with
every answer), errors.md and errors.png beside this file; `--redraw` remakes the last two from the first.
"""

import json
from pathlib import Path

import numpy as np
import torch
from scipy import stats

import models
from figures.in_memory import InMemoryRun
from utils.attacks.losses import hard_loss, soft_loss
from utils.attacks.objectives import ExtractionObjective
from utils.data.batches import Batches
from utils.data.sets import load_data
from utils.ownership import pvalues
from utils.system.flags import Parser
from utils.system.pictures import new_figure
from utils.system.refusals import refuse_in_one_sentence
from utils.training.loop import fit
from utils.training.metrics import accuracy, predict
from utils.training.objective import PlainObjective
from utils.training.settings import TrainingSettings
from utils.watermark.objective import WatermarkObjective
from utils.watermark.triggers import draw_triggers

HERE = Path(__file__).resolve().parent
ALPHAS = (0.05, 0.01, 0.001)
M, RELABELLINGS, ORDERS = 60, 200, 200
BENIGN = [(arch, half, seed) for arch in ("vgg11", "res18") for half in (0, 1) for seed in range(9)]
LOSSES = {"soft": soft_loss, "hard": hard_loss}
STOLEN = [(attack, seed) for attack in LOSSES for seed in range(4)]


@refuse_in_one_sentence
def main(argv=None):
    parser = Parser(prog="python -m figures.errors", description=__doc__.splitlines()[0])
    parser.add_argument("--redraw", action="store_true", help="use the answers in errors.json")
    if parser.parse_args(argv).redraw:
        found = json.loads((HERE / "errors.json").read_text())
    else:
        found = collect_stolen() | collect_benign()
    found |= {"false_claims": false_claims(found), "power": power(found)}
    (HERE / "errors.json").write_text(json.dumps(found) + "\n")
    (HERE / "errors.md").write_text(table(found))
    draw(found, HERE / "errors.png")
    print(table(found))


# ---- models -------------------------------------------------------------------------------------------------


def train(digits, images, arch, width, epochs, seed, objective):
    """A trained model; `objective` is a function of the untrained one."""
    torch.manual_seed(seed)
    model = models.place(models.build(arch, 10, digits.mean, digits.std, width), "cpu")
    fit(InMemoryRun(), model, objective(model), Batches(images, 32, flip=False), lambda _: {"val_accuracy": 0.0},
        lambda *_: {}, TrainingSettings(epochs, seed=seed))
    return model.eval().requires_grad_(False)


def question(digits, trigger, model, **about) -> dict:
    """A row: what the model is, its test accuracy and its answers to the triggers."""
    answers = predict(model, trigger.images).argmax(1)
    test_accuracy = accuracy(model, digits.test.images, digits.test.labels)
    hits = int((answers == trigger.labels).sum())
    print(about, f"accuracy {100 * test_accuracy:.1f} %, {hits} of {M} hit", flush=True)
    return about | {"accuracy": test_accuracy, "answers": answers.tolist()}


def prepare():
    """The data and the trigger set."""
    torch.set_num_threads(1)
    digits = load_data("digits")
    return digits, draw_triggers(digits.held_out, M, 1, 10, seed=0)[0]


def collect_stolen() -> dict:
    """Train the source, steal it, and keep the answers to the triggers."""
    digits, trigger = prepare()
    x, y = trigger.images.float().div(255), trigger.labels
    watermark = lambda model: WatermarkObjective(
        model, x, y, weight=1.0, reduction="sum", batch=25, bn_stats="paper", steps=5, step_size=4 / 255, eps=20 / 255)
    source = train(digits, digits.train, "vgg11", 16, 12, 0, watermark)
    found = {"assigned": y.tolist(), "true": trigger.true_labels[:, 0].tolist(), "stolen": []}
    found["source"] = question(digits, trigger, source)
    for attack, seed in STOLEN:
        copy = ExtractionObjective(source, LOSSES[attack], needs_labels=False)
        model = train(digits, digits.train, "vgg11", 16, 12, 100 + seed, lambda _, copy=copy: copy)
        found["stolen"].append(question(digits, trigger, model, attack=attack, seed=100 + seed))
    return found


def collect_benign() -> dict:
    """Train the benign models and keep their answers to the triggers."""
    digits, trigger = prepare()
    rows = []
    for arch, half, seed in BENIGN:
        epochs = 1 if seed % 3 == 2 else 6
        images = digits.train.pick(range(half, len(digits.train.labels), 2))
        width = {"vgg11": 8, "res18": 4}[arch]
        model = train(digits, images, arch, width, epochs, 1000 + seed, lambda _: PlainObjective())
        rows.append(question(digits, trigger, model, architecture=arch, half=half, seed=1000 + seed, epochs=epochs))
    return {"benign": rows}


# ---- figures ------------------------------------------------------------------------------------------------


def interval(k: int, n: int) -> tuple:
    """Clopper-Pearson, 95 %, two-sided."""
    low = stats.beta.ppf(0.025, k, n - k + 1) if k else 0.0
    return float(low), float(stats.beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0


def p_values(answers, assigned, true, table) -> float:
    """log10 p of T1; `table` remembers the tails."""
    outside = answers != true
    pair = int((outside & (answers == assigned)).sum()), int(outside.sum())
    if pair not in table:
        table[pair] = pvalues.binomial(*pair, 1 / 9)
    return table[pair]


def false_claims(found) -> dict:
    """T1 of the benign models, under the labels as drawn and under fresh draws for each model."""
    assigned, true = np.array(found["assigned"]), np.array(found["true"])
    rng, memory, p = np.random.default_rng(0), {}, {"drawn": [], "redrawn": [], "redrawn_weak": []}
    for row in found["benign"]:
        answers = np.array(row["answers"])
        p["drawn"].append(p_values(answers, assigned, true, memory))
        for _ in range(RELABELLINGS):
            labels = (true + rng.integers(1, 10, len(true))) % 10  # uniform over the wrong classes
            p["redrawn"].append(p_values(answers, labels, true, memory))
            if row["epochs"] == 1:
                p["redrawn_weak"].append(p["redrawn"][-1])
    rows = []
    for name, values in p.items():
        for alpha in ALPHAS:
            k = int((np.array(values) <= np.log10(alpha) + 1e-12).sum())
            n = len(values)
            rows.append({"labels": name, "alpha": alpha, "claims": k, "of": n, "interval": interval(k, n)})
    return {"rows": rows, "log10_p": p}


def power(found, alpha: float = 1e-3) -> dict:
    """The share of random orders in which a surrogate is claimed after n queries, averaged over surrogates."""
    assigned, true = np.array(found["assigned"]), np.array(found["true"])
    rng, memory, shares = np.random.default_rng(1), {}, {}
    rows = [("source", found["source"])] + [(row["attack"], row) for row in found["stolen"]]
    for kind, row in rows:
        answers = np.array(row["answers"])
        claimed = np.zeros(len(true))
        for _ in range(ORDERS):
            order = rng.permutation(len(true))
            for n in range(1, len(true) + 1):
                part = order[:n]
                claimed[n - 1] += p_values(answers[part], assigned[part], true[part], memory) <= np.log10(alpha)
        shares.setdefault(kind, []).append((claimed / ORDERS).tolist())
    return {"alpha": alpha, "share": {kind: np.mean(s, axis=0).tolist() for kind, s in shares.items()},
            "claimed_with_all": {kind: [sum(one[-1] for one in s), len(s)] for kind, s in shares.items()}}


NAMES = {"drawn": "as drawn, one p-value a model", "redrawn": f"drawn anew {RELABELLINGS} times for each model",
         "redrawn_weak": "the same, models of one epoch alone"}


def table(found) -> str:
    """The figures in words."""
    weak = [row["accuracy"] for row in found["benign"] if row["epochs"] == 1]
    good = [row["accuracy"] for row in found["benign"] if row["epochs"] > 1]
    stolen = [row["accuracy"] for row in found["stolen"]]
    percent = lambda values: f"{100 * min(values):.1f} to {100 * max(values):.1f} %"
    lines = [
        "# Error rates and power of T1, measured", "",
        f"`python -m figures.errors`; digits, {M} triggers, {len(found['benign'])} benign models ({len(good)} trained "
        f"for 6 epochs, test accuracy {percent(good)}; {len(weak)} for one, {percent(weak)}).", "",
        "| labels | alpha | false claims | share | 95 % interval (Clopper-Pearson) |", "|---|---|---|---|---|",
    ]
    for row in found["false_claims"]["rows"]:
        low, high = row["interval"]
        lines.append(f"| {NAMES[row['labels']]} | {row['alpha']:g} | {row['claims']} of {row['of']} | "
                     f"{row['claims'] / row['of']:.5f} | {low:.5f} to {high:.5f} |")
    source = found["source"]
    hit = sum(a == b for a, b in zip(source["answers"], found["assigned"]))
    lines += ["", f"Source: test accuracy {100 * source['accuracy']:.1f} %, {hit} of {M} hit. Surrogates (12 epochs of "
              f"extraction): test accuracy {percent(stolen)}.", "",
              "| stolen models | claimed with all queries | share claimed after 10 / 20 / 30 / 45 / 60 queries |",
              "|---|---|---|"]
    for kind, share in found["power"]["share"].items():
        claimed, count = found["power"]["claimed_with_all"][kind]
        lines.append(f"| {kind} | {claimed:g} of {count} | "
                     + " / ".join(f"{share[n - 1]:.2f}" for n in (10, 20, 30, 45, 60)) + " |")
    p = 10.0 ** np.sort(found["false_claims"]["log10_p"]["redrawn"])
    over = int((np.arange(1, len(p) + 1) / len(p) > p).sum())
    lines += ["", f"Left: the empirical distribution of the p-values drawn anew is under the diagonal but for "
              f"{over} of {len(p)} (the smallest is {p[0]:.1e}; uniform ones hold one as small with probability "
              f"{1 - (1 - p[0]) ** len(p):.2f}). Right: power at "
              f"alpha = {found['power']['alpha']:g} in {ORDERS} random orders of the queries.", "", "![](errors.png)"]
    return "\n".join(lines) + "\n"


def draw(found, path) -> None:
    """Empirical CDF against the diagonal, and power against the number of queries."""
    figure, (left, right) = new_figure(10, 4.2, 1, 2)
    for name, style in (("redrawn", "-"), ("redrawn_weak", "--"), ("drawn", ":")):
        p = 10.0 ** np.sort(found["false_claims"]["log10_p"][name])
        steps = np.append(p, 1.0)
        left.step(steps, np.append(np.arange(1, len(p) + 1) / len(p), 1.0), style, where="post", label=NAMES[name])
    left.plot([1e-5, 1], [1e-5, 1], color="black", lw=1, label="uniform: the diagonal")
    left.set(xscale="log", yscale="log", xlim=(1e-5, 1), ylim=(1e-5, 1.2), xlabel="p", ylabel="share of p-values <= p")
    left.set_title("benign models: T1 is super-uniform", fontsize=10)
    for kind, share in found["power"]["share"].items():
        title = "the source itself" if kind == "source" else f"{kind}-label extraction"
        right.plot(range(1, len(share) + 1), share, label=f"{title} ({found['power']['claimed_with_all'][kind][1]})")
    right.set(xlabel="queries", ylabel="share claimed", ylim=(-0.03, 1.05), xlim=(0, M))
    right.set_title(f"stolen models: power of T1 at alpha = {found['power']['alpha']:g}", fontsize=10)
    for ax in (left, right):
        ax.legend(fontsize=8, loc="lower right")
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=110, format="png")


if __name__ == "__main__":
    main()
