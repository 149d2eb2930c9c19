"""The table with which every script ends, as text, and the end of a run."""

from utils.runs.folder import RunFolder


def format_table(rows: list[dict]) -> str:
    """Rows of `TriggerTests.row` as text: accuracies in per cent, hits k/m, log10 p, "-" where there is no figure."""
    width = max([len(row["model"]) for row in rows] + [5])
    titles = "  ".join(f"{name:>8}" for name in ("T1", "T1p", "T1 cons.", "T3", "p_subset"))
    lines = [f"{'model':<{width}}  {'test %':>7}  {'triggers':>9}  {titles}"]
    for row in rows:
        p = row["log10_p"]
        cells = [p[k] for k in ("T1", "T1p", "T1_conservative", "T3", "p_subset")]
        accuracy = "-" if row["test_accuracy"] is None else f"{100 * row['test_accuracy']:.2f}"
        hits = f"{row['trigger_hits']}/{row['trigger_size']}"
        text = "  ".join(f"{'-' if c is None else format(c, '.2f'):>8}" for c in cells)
        lines.append(f"{row['model']:<{width}}  {accuracy:>7}  {hits:>9}  {text}")
    lines.append("log10 p: T1 of answers, T1p of probabilities, T3. The smaller of T1 and T1p decides: -3.30 is")
    lines.append("p = 0.001 for two tests. p_subset is for comparison with the paper only")
    return "\n".join(lines)


def finish_run(run: RunFolder, summary: dict, rows: list[dict]) -> None:
    """Print the table and write `summary.json`, which marks the run as finished."""
    run.log(format_table(rows))
    run.write_json("summary.json", {**summary, "rows": rows})
