"""TODO (figures.rows)"""

import json
import statistics
from pathlib import Path

from utils.ownership import pvalues
from utils.ownership.suspects import TriggerTests, rows_of_run
from utils.runs.checkpoints import find_checkpoint, load_checkpoint
from utils.system.flags import Parser
from utils.system.refusals import Refusal, refuse_in_one_sentence
from utils.watermark.trigger_files import unpack_source

SAME = ("dataset", "dataset_source", "model", "width", "epochs", "train_size", "bn_stats", "select", "trigger_size")
SEEDS = ("seed", "message", "additional_message", "source_checkpoint")


def source_settings(run: Path) -> dict:
    """Settings of the source above an attack's folder; none where there is no such run."""
    path = run.parent / "run.json"
    return json.loads(path.read_text())["settings"] if path.exists() else {}


def collect_rows(folder: Path, last: bool = False) -> list[dict]:
    """One row for each kind of run below `folder`, its seeds in lists; `last`: of the last checkpoints."""
    groups = {}
    for path in sorted(folder.glob("**/summary.json")):
        summary = json.loads(path.read_text())
        if summary.get("role") == "edited":  # pruned or quantised: rows of their own, made by figures.make
            continue
        about = json.loads((path.parent / "run.json").read_text())
        tt = about["settings"]["train_type"]
        views = {"paper": summary, "clean": summary.get("clean")}
        if last:
            views = dict(zip(views, figures_at_last(path.parent)))
        for view, figures in views.items():
            if not figures:
                continue
            kind = f"{summary['role']} {summary.get('attack') or ''}".strip()
            of = {"none": "no watermark", "base": "ERM", "ewe": "EWE", "rs": "RS"}.get(tt, tt)
            settings = {k: v for k, v in about["settings"].items() if k not in SEEDS and not k.endswith("sha256")}
            settings["data"] = about["settings"].get("data_sha256")
            if summary["role"] != "surrogate":
                settings.setdefault("embed_features", 0.0)  # runs of before this flag
            if summary["role"] == "surrogate":  # what was stolen counts too
                settings["source"] = {k: v for k, v in source_settings(path.parent).items() if k not in SEEDS}
            key = (of, kind, summary.get("teacher_bn", view), json.dumps(settings, sort_keys=True))
            groups.setdefault(key, []).append((figures, summary, about))
    rows = []
    for key, found in groups.items():
        figures = [f for f, _, _ in found]
        t1 = [f["log10_p"]["T1"] for f in figures]
        rows.append({
            "watermark": key[0], "role": key[1], "statistics": key[2], "seeds": [s["seed"] for _, s, _ in found],
            "test_accuracy": [f["test_accuracy"] for f in figures],
            "trigger_hits": [f["trigger_hits"] for f in figures], "trigger_size": figures[0]["trigger_size"],
            "log10_T1": t1, "log10_T1_conservative": [f["log10_p"]["T1_conservative"] for f in figures],
            "log10_T1_harmonic_mean": None if None in t1 else pvalues.harmonic_mean(t1),
            "commands": [" ".join(about["command"]) for _, _, about in found],
            **{name: found[0][1].get(name) for name in SAME if name != "trigger_size"},
            **{name: found[0][2][name] for name in ("device", "torch", "threads", "git_commit")},
        })
    order = {"no watermark": 0, "ERM": 1, "margin": 2, "EWE": 3, "RS": 4}
    return sorted(rows, key=lambda row: (order[row["watermark"]], "surrogate" in row["role"]))


def figures_at_last(run: Path) -> list[dict]:
    """Figures of a run's last checkpoint, and of its clean twin where there is one; no test accuracy."""
    source = run if (run / "triggers.pt").exists() else run.parent
    path = find_checkpoint(source, "last")
    checkpoint = load_checkpoint(path)
    _, trigger = unpack_source(checkpoint, path)
    uniform = checkpoint["about"]["label_strategy"] == "random"
    judge = TriggerTests(trigger, len(checkpoint["about"]["classes"]), uniform)
    return [row | {"test_accuracy": None} for row in rows_of_run(run, judge, "cpu", "last")]


def markdown_table(rows: list[dict]) -> str:
    """The rows as a Markdown table; accuracies in per cent."""
    lines = ["| watermark | role | statistics | seeds | test % | triggers | log10 p (T1) | T1 cons. | harmonic mean |",
             "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        accuracy = [100 * a for a in row["test_accuracy"] if a is not None]
        mean = f"{statistics.mean(accuracy):.2f}" if accuracy else "-"
        spread = f" ± {statistics.stdev(accuracy):.2f}" if len(accuracy) > 1 else ""
        hits = ", ".join(f"{k}/{row['trigger_size']}" for k in row["trigger_hits"])
        cells = [row["watermark"], row["role"], row["statistics"], len(row["seeds"]),
                 f"{mean}{spread}", hits, join_numbers(row["log10_T1"]),
                 join_numbers(row["log10_T1_conservative"]), join_numbers([row["log10_T1_harmonic_mean"]])]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def join_numbers(values) -> str:
    return ", ".join("-" if v is None else f"{v:.2f}" for v in values)


@refuse_in_one_sentence
def main(argv=None):
    parser = Parser(prog="python -m figures.rows", description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=Path, help="folder of runs, for example experiments")
    parser.add_argument("--last", action="store_true", help="triggers on the last checkpoints instead of the chosen")
    parser.add_argument("--out", type=Path, help="write this name with .md and .json")
    args = parser.parse_args(argv)
    rows = collect_rows(args.dir, args.last)
    if not rows:
        raise Refusal(f"there is no finished run in {args.dir}: train one first or name another folder")
    print(markdown_table(rows))
    if args.out:
        args.out.with_suffix(".md").write_text(markdown_table(rows) + "\n")
        args.out.with_suffix(".json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
