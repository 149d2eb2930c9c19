"""A table of the paper from finished runs: <name>.md and <name>.json; a cell without its run says "not run".

See `table_cells` for what a cell is.
"""

import json
import statistics
from pathlib import Path

from figures.paper.commands import RunCommands
from utils.ownership import pvalues
from utils.published.numbers import P_SCORES, P


def measure_cell(cell, runs: RunCommands) -> dict:
    """{"values", "command", "seeds"} of a cell, over the seeds whose runs are finished; the command of one of them."""
    step_of, value = cell
    steps = {seed: step_of(seed) for seed in runs.profile.seeds}
    values = {seed: value(step.result()) for seed, step in steps.items() if step.finished}
    values = {seed: round(v, 6) for seed, v in values.items() if v is not None}
    first = next(iter(values), next(iter(steps)))
    return {"values": list(values.values()), "command": steps[first].command, "seeds": list(values)}


def show_cell(values, column=None) -> str:
    """A cell's values as text: mean ± sd (n); log10 p-values by the harmonic mean of p, as in the paper."""
    if not values:
        return "not run"
    if column in (P, P_SCORES):
        return f"{pvalues.harmonic_mean(values):.2f} ({len(values)})"
    digits = 4 if "margin" in (column or "") or "energy" in (column or "") else 2
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread} ({len(values)})"


def show_paper_cell(number) -> str:
    """A value of `NUMBERS` as text; None where the paper states none."""
    if number is None:
        return "-"
    return f"{number[0]:g}" + (f" ± {number[1]:g}" if number[1] is not None else "")


def write_table(name: str, runs: RunCommands, out: Path, made: dict, paper: dict, title: str) -> list[dict]:
    """Write <name>.md and <name>.json into the folder `out`; returns the cells as they stand in the JSON.

    made   {(row, column): cell} that this profile makes
    paper  {(row, column): (mean, sd)} that the paper states, an entry of `NUMBERS`; all of them appear
    """
    rows, keys = [], list(dict.fromkeys([*paper, *made]))
    order = list(dict.fromkeys(row for row, _ in keys))
    for key in sorted(keys, key=lambda key: order.index(key[0])):  # all columns of a row one after the other
        entry = {"row": str(key[0]), "column": str(key[1]), "paper": paper.get(key), "values": [], "command": None}
        rows.append(entry | (measure_cell(made[key], runs) if key in made else {}))
    lines = [f"# {title}", "", "| row | column | paper | ours: mean ± sd (n) | command |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for row in rows:
        ours = show_cell(row["values"], row["column"])
        command = f"`{row['command']}`" if row["values"] else "not run"
        lines.append(f"| {row['row']} | {row['column']} | {show_paper_cell(row['paper'])} | {ours} | {command} |")
    if any(row["column"] == P for row in rows):
        lines += ["", "log10 p of trigger sets is T1, of the answers, and T1p, of the probabilities, as the owner "
                  "reads them; what a stranger asks besides is in docs/verification.md."]
    if name in ("table2", "table3"):
        lines += ["", "EWE, RS, DI and EEF differ from their authors' settings in the six points that docs/rivals.md "
                  "numbers; a profile's own sizes stand in the commands."]
    (out / f"{name}.md").write_text("\n".join(lines) + "\n")
    (out / f"{name}.json").write_text(json.dumps({"name": name, "cells": rows}, indent=1, ensure_ascii=False) + "\n")
    return rows
