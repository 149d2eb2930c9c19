"""`python -m figures.power`: how far T1 and T1p reach, on the digits of `figures.demo`, ten seeds.

Trains what is missing beside the runs of `figures.demo --seeds` of as many threads, asks every copy for its
probabilities, and writes power.json, power.md and power.png: the share of copies claimed at p <= 0.001 against the
number of triggers m and against the number of queries, for soft, hard and reg copies and for soft copies that are fine-
tuned on true labels; which score T1p should use; and what a suspect reaches who rounds his probabilities, adds noise or
sharpens them. The score was fixed after seed 0 alone; the table shows the demo's seeds 0 to 2 (`CHOSEN_ON`) and the
others apart.
"""

import json
import shlex
import statistics
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from tqdm import tqdm

import extraction
import train
from figures.demo import COMMON, MARGIN, WATERMARK, M, seed_folder
from figures.shared import call, experiment_parser, markdown_table, parse_with_folders, write_result
from utils.ownership import pvalues
from utils.ownership.results import LOG_ALPHA
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, read_model
from utils.system.machine import figure_png, new_figure
from utils.system.refusals import refuse_in_one_sentence
from utils.training.metrics import predict
from utils.watermark.trigger_files import unpack_source

SIZES, SEEDS, CHOSEN_ON = (12, M, 50), range(10), (0, 1, 2)
LARGE = 50  # from as many triggers on only the seeds that chose are run, for their time
COPIES = {"soft": "-at soft", "hard": "-at hard", "reg": "-at reg",
          "fine-tuned": "-at finetune --on extraction_soft -ep 4"}
ORDERS = 20  # random orders of the queries


def doubled_ranks(p, allowed):
    """Twice the mean rank of each allowed label, int (m, C): 2 for the least probable one; equal ones share a rank."""
    return (2 * stats.rankdata(np.where(allowed, p, np.inf), axis=1)).astype(int)


# scores that were tried: probabilities (m, C) and allowed labels (m, C) -> whole numbers
SCORES = {
    "log p, at least 1e-6 (T1p)": pvalues.label_scores,
    "log p, at least 1e-12": lambda p, allowed: np.rint(8 * np.log(np.maximum(p, 1e-12))).astype(int),
    "log p, at least 1e-3": lambda p, allowed: np.rint(8 * np.log(np.maximum(p, 1e-3))).astype(int),
    "rank": doubled_ranks,
}
# what a suspect may do to probabilities p (m, C) before he answers; `rng` draws his noise
DISGUISES = {
    "as they are": lambda p, rng: p,
    "rounded to two digits": lambda p, rng: p.round(2),
    "rounded to one digit": lambda p, rng: p.round(1),
    "noise of sd 0.1": lambda p, rng: np.maximum(p + rng.normal(0, 0.1, p.shape), 1e-9),
    "sharpened, p^4": lambda p, rng: p**4,
    "the two largest alone": lambda p, rng: np.where(p >= np.sort(p, axis=1)[:, -2:-1], p, 0),
}


@refuse_in_one_sentence
def main(argv=None):
    args = parse_with_folders(experiment_parser("power", __doc__, "experiments/demo"), argv)
    cases = [(seed, m) for m in SIZES for seed in SEEDS if m < LARGE or seed in CHOSEN_ON]
    rows = []
    for seed, m in tqdm(cases, desc="sources with their copies", disable=None, leave=False):
        rows += measure(*make_runs(args.dir, seed, m), seed)
    found = {"command": "python -m figures.power", "torch": torch.__version__.split("+")[0],
             "threads": torch.get_num_threads(), "rows": rows}
    found = json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 3))  # as it stands in the file
    write_result(args.out / "power.json", found, power_markdown(found), draw_power(found))


def make_runs(folder, seed: int, m: int) -> tuple[Path, dict]:
    """The folder of a margin source with m triggers, and {name: folder} of its copies; finished runs stay."""
    folder = seed_folder(folder, seed)
    common = f"-d {shlex.quote(str(folder))} {COMMON} -nq {m} --seed {seed} --device cpu"
    call(train, f"{common} -mt vgg11 -tt none -nq {M}", quiet=True)  # one for all m
    call(train, f"{common} -mt vgg11 -tt margin {WATERMARK} {MARGIN}", quiet=True)
    for name, attack in COPIES.items():
        surrogate = "" if "finetune" in attack else "-dmt vgg11"
        call(extraction, f"{common} -tt margin -tmt vgg11 {surrogate} -admsg _{name} {attack}", quiet=True)
    source, benign = folder / f"digits_vgg11_margin_{m}_", folder / f"digits_vgg11_none_{M}_"
    return source, {name: source / f"extraction_{name}" for name in COPIES} | {"benign": benign}


def measure(source: Path, copies: dict, seed: int) -> list[dict]:
    """A row for each copy: p-values of all triggers by score and disguise, and of n queries in `ORDERS` orders."""
    path = find_checkpoint(source)
    _, triggers = unpack_source(load_checkpoint(path), path)
    assigned, true = triggers.labels.numpy(), triggers.true_labels.numpy()
    rows = []
    for name, folder in copies.items():
        model = read_model(folder)
        p = predict(model, triggers.images).double().softmax(1).numpy()
        allowed, rng = pvalues.drawn_from(p.shape, true), np.random.default_rng(seed)
        t1 = lambda p, part=slice(None): pvalues.label_randomisation(p.argmax(1), assigned[part], true[part],
                                                                     p.shape[1])
        t1p = lambda p, part=slice(None): pvalues.score_randomisation(p, assigned[part], true[part])
        disguises, queries = {}, {}
        for disguise, change in DISGUISES.items():
            shown = change(p, rng)
            shown = np.where(shown.sum(axis=1, keepdims=True) > 0, shown, 1e-9)  # rounded away: no preference is left
            disguises[disguise] = {"T1": t1(shown), "T1p": t1p(shown)}
        for n in sorted({max(1, len(p) * k // 8) for k in range(1, 9)}):
            parts = [rng.permutation(len(p))[:n] for _ in range(ORDERS if n < len(p) else 1)]
            queries[n] = {"T1": [t1(p[part], part) for part in parts], "T1p": [t1p(p[part], part) for part in parts]}
        scores = {score: pvalues.draw_tail(of(p, allowed), allowed, assigned) for score, of in SCORES.items()}
        rows.append({"copy": name, "seed": seed, "m": len(p), "hits": int((p.argmax(1) == assigned).sum()),
                     "T1": t1(p), "scores": scores, "disguises": disguises, "queries": queries})
    return rows


def claimed(log10_p) -> float:
    """Share of p-values that claim at p <= 0.001, each test taken alone as if it had been named beforehand."""
    return sum(p <= LOG_ALPHA for p in log10_p) / len(log10_p)


def count_claims(*tests, medians: int = 1) -> str:
    """How many of the p-values of each test claim, of how many, and the medians of the last tests."""
    counts = ", ".join(str(round(claimed(p) * len(p))) for p in tests)
    shown = ", ".join(f"{statistics.median(p):.2f}" for p in tests[-medians:])
    return f"{counts} of {len(tests[0])}; {shown}"


def power_markdown(found: dict) -> str:
    """power.md: claims by test and m, the scores on the seeds that chose and on the others, and the disguises."""
    rows, names, t1p = found["rows"], [*COPIES, "benign"], next(iter(SCORES))
    of = lambda name, m, seeds: [r for r in rows if (r["copy"], r["m"]) == (name, m) and r["seed"] in seeds]
    sizes, seeds = sorted({r["m"] for r in rows}), sorted({r["seed"] for r in rows})
    by_size = [[name, *(count_claims([r["T1"] for r in of(name, m, seeds)],
                                     [r["scores"][t1p] for r in of(name, m, seeds)], medians=2) for m in sizes)]
               for name in names]
    parts = {"0 to 2": CHOSEN_ON, "others": [s for s in seeds if s not in CHOSEN_ON]}
    by_score = [[score, title, *(count_claims([r["scores"][score] for r in of(name, M, part)]) for name in names)]
                for score in SCORES for title, part in parts.items()]
    by_disguise = [[disguise, *(count_claims(*([r["disguises"][disguise][test] for r in of(name, M, seeds)]
                                               for test in ("T1", "T1p"))) for name in names)]
                   for disguise in DISGUISES]
    return "\n".join([
        "# Power of T1 and T1p", "",
        f"`{found['command']}`; digits, VGG-11 of the demo, {len(seeds)} seeds, torch {found['torch']}, CPU, "
        f"{found['threads']} thread(s); from m = {LARGE} on seeds 0 to 2 alone. Claimed: p <= 0.001, each test alone. "
        "Medians of log10 p over seeds.", "",
        markdown_table(["model", *(f"m = {m}: T1, T1p claimed; medians" for m in sizes)], by_size), "",
        f"Scores of T1p at m = {M}: claimed, and median log10 p, on the seeds that chose and on the others.", "",
        markdown_table(["score", "seeds", *names], by_score), "",
        f"A suspect who changes his probabilities, m = {M}: T1, T1p claimed; median of T1p.", "",
        markdown_table(["answers", *names], by_disguise), "",
        "![Power against m and against queries](power.png)"]) + "\n"


def draw_power(found: dict) -> bytes:
    """A PNG: the share claimed against m (above) and against the number of queries (below)."""
    rows, sizes = found["rows"], sorted({r["m"] for r in found["rows"]})
    figure, axes = new_figure(10, 5.2, 2, len(COPIES))
    for name, above, below in zip(COPIES, axes, axes[len(COPIES):]):
        own = [r for r in rows if r["copy"] == name]
        wide = [{int(n): p for n, p in r["queries"].items()} for r in own if r["m"] == M]
        numbers = sorted(wide[0])
        for test, style, colour in (("T1p", "-", "#0072B2"), ("T1", "--", "#D55E00")):
            look = {"linestyle": style, "marker": "o", "markersize": 3, "label": test, "color": colour}
            value = (lambda r: r["T1"]) if test == "T1" else lambda r: r["scores"][next(iter(SCORES))]
            above.plot(sizes, [claimed([value(r) for r in own if r["m"] == m]) for m in sizes], **look)
            below.plot(numbers, [statistics.mean(claimed(q[n][test]) for q in wide) for n in numbers], **look)
        above.set(title=f"{name} copies", ylim=(-0.05, 1.05), xlabel="triggers m", xlim=(0, sizes[-1] * 1.05))
        below.set(ylim=(-0.05, 1.05), xlabel=f"queries, of m = {M}", xlim=(0, M * 1.05))
    for ax in (axes[0], axes[len(COPIES)]):
        ax.set_ylabel("share claimed, p <= 0.001")
    axes[0].legend(fontsize=8, loc="lower right")
    seeds = len({r["seed"] for r in rows})
    title = f"Power of T1 (answers) and T1p (probabilities), digits, {seeds} seeds; m = {LARGE}: 3"
    figure.suptitle(title, fontsize=10)
    return figure_png(figure)


if __name__ == "__main__":
    main()
