"""`python -m figures.rows DIR`: every finished run below a folder as rows of one table, seeds side by side.

Runs share a row if they differ only in the seed, in tags and in which source they stole. A row has the mean ± standard
deviation of the test accuracies, the hits and log10 p (T1, T1p) of each seed, and the harmonic mean of T1's p over
seeds, as the paper aggregates them (not valid for a decision). `--out NAME` also writes NAME.md and NAME.json.
"""

import json
import statistics
import sys
from pathlib import Path

from figures.shared import figure_parser, join_numbers, markdown_table, write_result
from utils.ownership import pvalues
from utils.ownership.results import is_stale
from utils.runs.checkpoints import refuse_errors
from utils.system.files import read_json
from utils.system.refusals import Refusal, printable, refuse_in_one_sentence

# entries of a summary that all runs of a row share; settings that are its tags; settings that may differ between them
SAME = ("dataset", "dataset_source", "model", "width", "epochs", "train_size", "bn_stats", "select")
TAGS = ("message", "additional_message")
SEEDS = ("seed", "message", "additional_message")
# -tt -> its name in the table; the rows are in this order
WATERMARK_NAMES = {"none": "no watermark", "base": "ERM", "margin": "margin", "ewe": "EWE", "rs": "RS"}


def settings_of(run: Path) -> dict:
    """The settings of a run that its row shares; {} where there is no run.

    Flags that are off are left out: runs may be older than they.
    """
    settings = (read_json(run / "run.json") or {}).get("settings", {})
    return {k: v for k, v in settings.items() if v and k not in SEEDS and (k == "data_sha256" or "sha256" not in k)}


def collect_rows(folder: Path) -> list[dict]:
    """One row for each kind of run below `folder`, its seeds in lists."""
    groups = {}  # {(-tt, role, statistics, settings): [(figures, summary, content of run.json)]}
    for path in sorted(folder.glob("**/summary.json")):
        summary, run = read_json(path), read_json(path.parent / "run.json")
        if not run or summary.get("role") not in ("source", "benign", "surrogate"):
            why = "edits a model in several strengths, see its summary.json" if run else "lacks its run.json"
            print(printable(f"left out: {path.parent} {why}"), file=sys.stderr)
            continue
        if summary["role"] == "surrogate" and is_stale(summary, path.parents[1]):
            print(printable(f"left out: {path.parent} is a copy of an earlier training of its source"), file=sys.stderr)
            continue
        settings = settings_of(path.parent)
        if summary["role"] == "surrogate":  # copies of different sources have different rows
            settings["source"] = settings_of(path.parents[1])
            run["source_seed"] = (read_json(path.parents[1] / "run.json") or {}).get("settings", {}).get("seed")
        for statistics_name, figures in (("paper", summary), ("clean", summary.get("clean"))):
            if figures:
                key = (run["settings"]["train_type"], f"{summary['role']} {summary.get('attack') or ''}".strip(),
                       summary.get("teacher_bn", statistics_name), json.dumps(settings, sort_keys=True))
                groups.setdefault(key, []).append((figures, summary, run))
    order = list(WATERMARK_NAMES)
    groups = sorted(groups.items(), key=lambda item: (order.index(item[0][0]), "surrogate" in item[0][1]))
    return [_row(WATERMARK_NAMES[train_type], role, statistics_name, group)
            for (train_type, role, statistics_name, _), group in groups]


def _row(watermark, role, statistics_name, group) -> dict:
    """A row from the (figures, summary, content of run.json) of its seeds."""
    figures, summaries, runs = zip(*group)
    t1, t1p, conservative = ([f["log10_p"].get(test) for f in figures] for test in ("T1", "T1p", "T1_conservative"))
    return {
        "watermark": watermark, "role": role, "statistics": statistics_name, "seeds": [s["seed"] for s in summaries],
        "source_seeds": [run.get("source_seed") for run in runs],
        "tags": ["".join(run["settings"].get(name) or "" for name in TAGS) for run in runs],
        "test_accuracy": [f["test_accuracy"] for f in figures],
        "trigger_hits": [f["trigger_hits"] for f in figures], "trigger_size": figures[0]["trigger_size"],
        "log10_T1": t1, "log10_T1p": t1p, "log10_T1_conservative": conservative,
        "log10_T1_harmonic_mean": None if None in t1 else pvalues.harmonic_mean(t1),
        "commands": [" ".join(run["command"]) for run in runs],
        **{name: summaries[0].get(name) for name in SAME},
        **{name: _one_or_each([run[name] for run in runs]) for name in ("device", "torch", "threads", "git_commit")},
    }


def _one_or_each(values: list):
    """The value that all seeds share, else the list of each seed's."""
    return values[0] if all(value == values[0] for value in values) else values


def rows_table(rows: list[dict]) -> str:
    """The rows as a Markdown table; accuracies in per cent."""
    table = []
    for row in rows:
        accuracy = [100 * a for a in row["test_accuracy"]]
        spread = f" ± {statistics.stdev(accuracy):.2f}" if len(accuracy) > 1 else ""
        hits = ", ".join(f"{k}/{row['trigger_size']}" for k in row["trigger_hits"])
        p = [row["log10_T1"], row["log10_T1p"], row["log10_T1_conservative"], [row["log10_T1_harmonic_mean"]]]
        thief = row["dataset_source"]
        data = row["dataset"] + (f", thief's {thief}" if thief not in (None, row["dataset"]) else "")
        model, tags = row["model"] + (f" width {row['width']}" if row["width"] else ""), filter(None, row["tags"])
        seeds = len(set(zip(row["seeds"], row.get("source_seeds", row["seeds"]))))
        if seeds < len(row["seeds"]):  # equal runs under other tags are no sample of seeds
            seeds = f"{len(row['seeds'])} runs of {seeds}"
        table.append([row["watermark"], row["role"], row["statistics"], data, model, " ".join(tags), seeds,
                      f"{statistics.mean(accuracy):.2f}{spread}", hits, *map(join_numbers, p)])
    return markdown_table(["watermark", "role", "statistics", "data", "model", "tags", "seeds", "test %", "triggers",
                           "T1", "T1p", "T1 cons.", "harmonic mean"], table)


@refuse_in_one_sentence
def main(argv=None):
    parser = figure_parser("rows", __doc__)
    parser.add_argument("dir", type=Path, help="folder of runs, for example experiments")
    parser.add_argument("--out", type=Path, help="write this name with .md and .json")
    args = parser.parse_args(argv)
    with refuse_errors(f"a summary.json or run.json in {args.dir} is damaged or foreign", "restore or remove it"):
        rows = collect_rows(args.dir)
        text = rows_table(rows) + "\n"
    if not rows:
        raise Refusal(f"there is no finished run in {args.dir}: train one first or name another folder")
    if args.out:
        write_result(args.out, rows, text, indent=2)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
