"""The table with which every script ends, as text, and the end of a run."""

from utils.runs.folder import RunFolder

TESTS = {"T1": "T1", "T1p": "T1p", "T1_conservative": "T1 cons.", "T3": "T3", "p_subset": "p_subset"}
COLUMNS = ("model", "test %", "triggers", *TESTS.values())
LARGEST = 1e30  # of a number that is written or drawn


def number(value) -> float | None:
    """A finite number of a sensible size; None for anything else that a file may say."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if known and -LARGEST <= value <= LARGEST else None  # NaN is in no range


def row_cells(row: dict) -> list[str]:
    """The cells of `COLUMNS` of a row of `TriggerTests.row`: accuracy in per cent, hits k/m, log10 p.

    "-" where there is no figure. The row may be what somebody else's file says.
    """
    accuracy, p = number(row.get("test_accuracy")), row.get("log10_p")
    hits, size = number(row.get("trigger_hits")), number(row.get("trigger_size"))
    values = [number(p.get(key)) if isinstance(p, dict) else None for key in TESTS]
    return [str(row.get("model")), "-" if accuracy is None else f"{100 * accuracy:.2f}",
            "-" if None in (hits, size) else f"{hits}/{size}", *("-" if v is None else f"{v:.2f}" for v in values)]


def format_table(rows: list[dict]) -> str:
    """Rows of `TriggerTests.row` as text."""
    width = max([len(row["model"]) for row in rows] + [5])
    lines = [f"{model:<{width}}  {accuracy:>7}  {hits:>9}  " + "  ".join(f"{value:>8}" for value in p)
             for model, accuracy, hits, *p in [COLUMNS, *map(row_cells, rows)]]
    lines.append("log10 p: T1 of answers, T1p of probabilities, T3. The smaller of T1 and T1p decides: -3.30 is")
    lines.append("p = 0.001 for two tests. p_subset is for comparison with the paper only")
    return "\n".join(lines)


def finish_run(run: RunFolder, summary: dict, rows: list[dict]) -> None:
    """Print the table and write `summary.json`, which marks the run as finished."""
    run.log(format_table(rows))
    run.write_json("summary.json", {**summary, "rows": rows})
