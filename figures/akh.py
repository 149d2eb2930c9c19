"""`python -m figures.akh`: AKH beside the marks: which copies each claims, and which honest models.

From akh.npz, the answers of 44 models to the 10,000 test images of CIFAR-10 (JPEG files), in seconds; writes akh.md and
akh.json beside it. The models were trained on an H200 (torch 2.11.0) and are gone; their commands are in small_h200,
marked_h200, regime and regime-narrow.json.
"""

import json
import statistics

import numpy as np

from figures.shared import HERE, figure_parser, interval, markdown_table, write_result
from utils.ownership import pvalues
from utils.rivals.akh import AKH_ALPHA, TOLERANCE, akh_figures
from utils.system.refusals import refuse_in_one_sentence

BANK = ("small/none-s0", "small/none-s1", "small/none-s2", "mark/none-s100")
# sources -> their mark; a name is regime/objective-seed[/attack], @clean: with clean BatchNorm statistics
KINDS = {"small/margin": "margin as published", "small/base": "ERM", "mark/marked": "surviving mark",
         "small/none": "no mark", "mark/none": "no mark", "narrow": "49,000 images", "r34": "ResNet-34"}
RELATIONS = {"copy": "copies", "honest": "honest, another seed", "seed": "honest, the source's own seed"}
VARIANTS = ("naive", "equal", "akh")
ATTACKS = {"soft": "soft", "hard": "hard", "reg": "reg", "ft": "fine-tuned", "ft-soft": "fine-tuned soft"}


def relation(source: str, suspect: str) -> str | None:
    """A key of `RELATIONS`; None where the suspect is of the source's family and no copy of that very source."""
    run, stolen, clean = source.removesuffix("@clean"), suspect.removesuffix("@clean"), source.endswith("@clean")
    if stolen.startswith(run + "/"):
        return "copy" if stolen.endswith("soft-clean") == clean else None
    family = lambda name: "mark" if name.startswith("mark") else "/".join(name.split("/")[:2]).removesuffix("@clean")
    if family(run) == family(stolen):
        return None
    # the weights at the start depend on seed and architecture alone
    start = lambda name: ("r34" in name, name.split("/")[1].split("-")[1].removesuffix("@clean"))
    return "seed" if start(run) == start(stolen) else "honest"


def naive_log10_p(true, source, suspect, benign) -> float:
    """McNemar's test on all images that the source answers wrongly, whether or not the two others are wrong too."""
    suspect_has, benign_has = ((source != true) & (labels == source) for labels in (suspect, benign))
    return pvalues.binomial(int((suspect_has & ~benign_has).sum()), int((suspect_has ^ benign_has).sum()), 0.5)


def collect_rows(data) -> list[dict]:
    """A row for every suspect beside every source; `data` is the content of akh.npz."""
    names, true = data["names"].tolist(), data["labels"]
    answers = dict(zip(names, data["answers"]))
    marks = {name: {"T1": float(a), "T1p": float(b)}
             for name, a, b in zip(names, data["log10_t1"], data["log10_t1p"])}
    rows = []
    for source in (name for name in names if name.count("/") == 1):
        for suspect in names:
            kind = relation(source, suspect) if suspect != source else None
            bank = [name for name in BANK if name not in (source, suspect)
                    and relation(source, name) and relation(suspect, name)]
            if kind is None or not bank:
                continue
            four = true, answers[source], answers[suspect], [answers[name] for name in bank]
            found = akh_figures(*four)
            rows.append({
                "mark": next(mark for start, mark in KINDS.items() if source.startswith(start)), "source": source,
                "suspect": suspect, "relation": kind, "accuracy": float((answers[suspect] == true).mean()),
                "queries": int((answers[source] != true).sum()), "bank": len(bank), **found,
                "log10_p_equal": akh_figures(*four, tolerance=1)["log10_p"],
                "log10_p_naive": max(naive_log10_p(*four[:3], model) for model in four[3]),
                "log10_mark": marks[suspect] if kind == "copy" else None})
    return rows


def claimed(row: dict, test: str) -> bool:
    """Whether a row is claimed at the level of 0.001 by AKH, one of its variants ("equal", "naive"), T1 or T1p."""
    p = row["log10_mark"][test] if test in ("T1", "T1p") else row["log10_p" if test == "akh" else f"log10_p_{test}"]
    return p <= np.log10(AKH_ALPHA)


def count(rows: list[dict], test: str) -> str:
    """`k of n` claimed; "-" where there is no row."""
    return f"{sum(claimed(row, test) for row in rows)} of {len(rows)}" if rows else "-"


def di_cells() -> list[str]:
    """Dataset Inference's row of the first table, from rivals_di.json (overfitted sources) and rivals.json (digits)."""
    copies = [run["suspects"][0] for run in json.loads((HERE / "rivals_di.json").read_text())]
    false = {row["shares"]: f"{row['claims']} of {row['of']}"
             for row in json.loads((HERE / "rivals.json").read_text())["rows"] if row["method"] == "DI"}
    return ["overfitted, 1,200 images", "DI", "none", f"{sum(row['claim'] for row in copies)} of {len(copies)}",
            *["-"] * 4, f"{false['same']} of the source's images, {false['other']} of others",
            "at most 3,000,000", "labels; the training images", "no"]


def claims_table(rows: list[dict], accuracies: dict) -> str:
    """Which copies and which honest models AKH, T1 and T1p claim, by kind of source, and Dataset Inference's row."""
    mean = lambda names: 100 * statistics.mean(accuracies[name] for name in names)
    clean, table = mean(BANK[:3]), []
    prices = {"margin as published": clean - mean(f"small/margin-s{i}" for i in range(3)),
              "surviving mark": 100 * accuracies[BANK[3]] - mean(f"mark/marked-s{i}" for i in (6, 7, 8))}
    for mark, price in prices.items():
        own = [row for row in rows if row["mark"] == mark]
        copies = [row for row in own if row["relation"] == "copy" and not row["source"].endswith("@clean")]
        of = [[row for row in copies if row["suspect"].split("/")[2] == name] for name in ATTACKS]
        queries, honest = [row["queries"] for row in own], [row for row in own if row["relation"] == "honest"]
        for test, needs in (("T1", "labels"), ("T1p", "probabilities")):
            table.append([mark, test, f"{price:.1f}", *(count(part, test) for part in of), "not counted: exact", 50,
                          needs, "yes"])
        table.append([mark, "AKH", "none", *(count(part, "akh") for part in of), count(honest, "akh"),
                      f"{min(queries):,} to {max(queries):,}", "labels; benign models like the source",
                      "over images, not over models"])
    head = ["sources", "test", "price, points", *ATTACKS.values(), "honest models claimed", "queries",
            "the verifier needs", "exact"]
    return markdown_table(head, [*table, di_cells()])


def false_claims_table(rows: list[dict]) -> str:
    """How many pairs each variant of the test claims, by relation and kind of source."""
    table = []
    counts = lambda part: [count(part, test) for test in VARIANTS]
    for kind, name in RELATIONS.items():
        for mark in dict.fromkeys(KINDS.values()):
            if part := [row for row in rows if (row["relation"], row["mark"]) == (kind, mark)]:
                odds = max(row["k"] / max(row["n"] - row["k"], 1) for row in part)
                table.append([mark, name, *counts(part), f"{odds:.2f}"])
    for kind in ("honest", "seed"):
        part = [row for row in rows if row["relation"] == kind]
        rate = "{:.4f} to {:.4f}".format(*interval(sum(claimed(row, "akh") for row in part), len(part)))
        table.append(["all", RELATIONS[kind], *counts(part), f"AKH's rate, were pairs independent: {rate}"])
    return markdown_table(["sources", "suspects", "naive", "equal", "AKH", "largest odds"], table)


def markdown(rows: list[dict], accuracies: dict) -> str:
    copies = [[row["source"], row["suspect"].split("/")[2], f"{100 * row['accuracy']:.2f}",
               *(f"{row['log10_mark'][test]:.2f}" for test in ("T1", "T1p")),
               f"{100 * row['share']:.1f}, {100 * row['benign_share']:.1f}", f"{row['k']} of {row['n']}",
               *(f"{row[name]:.2f}" for name in ("log10_p", "log10_p_equal", "log10_p_naive"))]
              for row in rows if row["relation"] == "copy"]
    return "\n".join([
        "# AKH beside the marks", "", "`python -m figures.akh`. Claims at a level of 0.001, DI at its 0.01.", "",
        claims_table(rows, accuracies), "", "## False claims, by test and source", "",
        "Naive: McNemar's test on all mistakes of the source; equal: images that all three answer wrongly, odds of 1; "
        f"AKH: the same, odds of {TOLERANCE:g}. Pairs of a source and a suspect; honest are benign models, other "
        "sources and copies of other sources.", "", false_claims_table(rows), "", "## Every copy", "",
        "log10 p. Same label: of the mistakes that both make, beside the benign model's largest.", "",
        markdown_table(["source", "copy", "accuracy %", "T1", "T1p", "same label %", "k of n", "AKH", "equal", "naive"],
                       copies)]) + "\n"


@refuse_in_one_sentence
def main(argv=None):
    figure_parser("akh", __doc__).parse_args(argv)
    with np.load(HERE / "akh.npz", allow_pickle=False) as data:
        rows = collect_rows(data)
        accuracies = dict(zip(data["names"].tolist(), (data["answers"] == data["labels"]).mean(axis=1).tolist()))
    shown = [row for row in rows if row["relation"] == "copy" or any(claimed(row, test) for test in VARIANTS)]
    content = {"alpha": AKH_ALPHA, "tolerance": TOLERANCE, "accuracies": accuracies, "rows": shown}
    write_result(HERE / "akh.json", content, markdown(rows, accuracies))


if __name__ == "__main__":
    main()
