"""TODO (utils.report)"""

from utils.runs.folder import RunFolder


def format_table(rows: list[dict]) -> str:
    """The rows as text; p-values as log10 p, never 0."""
    width = max([len(row["model"]) for row in rows] + [5])
    tests = "  ".join(f"{name:>8}" for name in ("T1", "T1 cons.", "T3", "p_subset"))
    lines = [f"{'model':<{width}}  {'test %':>7}  {'triggers':>9}  {tests}"]
    for row in rows:
        p = row["log10_p"]
        cells = [p[k] for k in ("T1", "T1_conservative", "T3", "p_subset")]
        accuracy = "-" if row["test_accuracy"] is None else f"{100 * row['test_accuracy']:.2f}"
        hits = f"{row['trigger_hits']}/{row['trigger_size']}"
        text = "  ".join(f"{'-' if c is None else format(c, '.2f'):>8}" for c in cells)
        lines.append(f"{row['model']:<{width}}  {accuracy:>7}  {hits:>9}  {text}")
    lines.append("T1, T3, p_subset: log10 p; T1 <= -3 decides, p_subset is for comparison with the paper only")
    return "\n".join(lines)


def finish_run(run: RunFolder, summary: dict, rows: list[dict]) -> None:
    """Print the table and write `summary.json`, the mark of a finished run."""
    run.log(format_table(rows))
    run.write_json("summary.json", {**summary, "rows": rows})
