"""Tables and figures from finished runs: <name>.md, .json and, for figures, .png; and all results as one small file.

What has not been run is marked "not run". See `figures.cells` for what a cell is.
"""

import gzip
import io
import json
import os
import secrets
import shutil
import statistics
import tarfile
from pathlib import Path

from figures.cells import FIGURES, PANELS, TABLE_CELLS, TABLES, mixup_source
from figures.runs import ROOT, RunCommands
from figures.shared import markdown_table
from utils.analyze import PERPLEXITIES, add_class_legend, draw_features
from utils.ownership import pvalues
from utils.published import ACC, MODELS, NUMBERS, P_SCORES, TRIG, P
from utils.system.files import open_no_link, open_private
from utils.system.machine import new_figure
from utils.system.refusals import Refusal

SERIES = {  # colour, mark and line
    "source, accuracy": ("#009E73", "o", "-"), "surrogate, accuracy": ("#0072B2", "s", "--"),
    "surrogate, triggers": ("#CC79A7", "^", ":"), "accuracy": ("#0072B2", "s", "--"), "triggers": ("#CC79A7", "^", ":"),
}


def write_target(name: str, runs: RunCommands, out: Path) -> None:
    """Write the files of one table or figure into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    if name in TABLES:
        write_table(name, runs, out, TABLE_CELLS[name](runs), NUMBERS[name], f"Table {name[5:]}")
    elif name in PANELS:
        _write_panels(name, runs, out)
    else:
        {"figure2": _write_figure2, "figure5": _write_figure5, "figure7": _write_figure7}[name](runs, out)


# ---- tables ----


def measure_cell(cell, runs: RunCommands) -> dict:
    """{"values", "command", "seeds"} of a cell, over the seeds whose runs are finished; the command of one of them."""
    step_of, value = cell
    steps = {seed: step_of(seed) for seed in runs.profile.seeds}
    results = {seed: result for seed, step in steps.items() if (result := step.result()) is not None}
    values = {seed: round(v, 6) for seed, result in results.items() if (v := value(result)) is not None}
    first = next(iter(values), next(iter(steps)))
    return {"values": list(values.values()), "command": steps[first].command, "seeds": list(values)}


def show_cell(values, column) -> str:
    """A cell's values as text: mean ± sd (n); log10 p-values by the harmonic mean of p, as in the paper."""
    if not values:
        return "not run"
    if column in (P, P_SCORES):
        return f"{pvalues.harmonic_mean(values):.2f} ({len(values)})"
    digits = 4 if "margin" in column or "energy" in column else 2
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread} ({len(values)})"


def show_paper_cell(number) -> str:
    """A value of `NUMBERS` as text; None where the paper states none."""
    if number is None:
        return "-"
    return f"{number[0]:g}" + (f" ± {number[1]:g}" if number[1] is not None else "")


def write_table(name: str, runs: RunCommands, out: Path, made: dict, paper: dict, title: str, note: str = "") -> None:
    """Write <name>.md, with `note` at its end, and <name>.json into the folder `out`.

    made   {(row, column): cell} that this profile makes
    paper  {(row, column): (mean, sd)} that the paper states, an entry of `NUMBERS`; all of them appear
    """
    rows, keys = [], list(dict.fromkeys([*paper, *made]))
    order = list(dict.fromkeys(row for row, _ in keys))
    for key in sorted(keys, key=lambda key: order.index(key[0])):  # all columns of a row one after the other
        entry = {"row": str(key[0]), "column": str(key[1]), "paper": paper.get(key), "values": [], "command": None}
        rows.append(entry | (measure_cell(made[key], runs) if key in made else {}))
    cells = [[row["row"], row["column"], show_paper_cell(row["paper"]), show_cell(row["values"], row["column"]),
              f"`{row['command']}`" if row["values"] else "not run"] for row in rows]
    lines = [f"# {title}", "", markdown_table(["row", "column", "paper", "ours: mean ± sd (n)", "command"], cells)]
    if any(row["column"] == P for row in rows):
        lines += ["", "log10 p of trigger sets is T1, of the answers, and T1p, of the probabilities, as the owner "
                  "reads them; what a stranger asks besides is in docs/verification.md."]
    if name in ("table2", "table3"):
        lines += ["", "EWE, RS, DI and EEF differ from their authors' settings in the six points that docs/rivals.md "
                  "numbers; a profile's own sizes stand in the commands."]
    _write(out, name, {"name": name, "cells": rows}, "\n".join(lines) + "\n" + note)


def _write(out: Path, name: str, content: dict, text: str) -> None:
    (out / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    (out / f"{name}.md").write_text(text)


# ---- figures of lines and bars ----


def _write_panels(name: str, runs: RunCommands, out: Path) -> None:
    panels, stated = PANELS[name](runs), {}
    if name == "figure1":
        stated = {(series, m): NUMBERS["table2"][f"CIFAR-10 margin, {m}", column]
                  for series, column in (("accuracy", ACC), ("triggers", TRIG)) for m in MODELS}
    cells = {(f"{label}: {x}", series): cell
             for label, points in panels.items() for (series, x), cell in points.items()}
    stated_cells = {(f"model: {m}", series): value for (series, m), value in stated.items()}
    title = f"Figure {name[6:]}"
    write_table(name, runs, out, cells, stated_cells, title, f"\n![{title}]({name}.png)\n")
    draw_panels(panels, runs, out / f"{name}.png", stated)


def draw_panels(panels: dict, runs: RunCommands, path: Path, stated: dict) -> None:
    """Draw panels, see `figures.cells`: rates in per cent against what is varied.

    Error bars are standard deviations over two seeds or more, whose number n the legend says; hollow diamonds are the
    values that the paper states, `stated` {(series, x): (mean, sd)}. Points are joined where x is a number. A panel
    without a run says so.
    """
    figure, axes = new_figure(4.6 * len(panels), 4, 1, len(panels))
    for ax, (label, points) in zip(axes, panels.items()):
        xs = list(dict.fromkeys(x for _, x in points))
        for series, (colour, marker, line) in SERIES.items():
            measured = {i: values for i, x in enumerate(xs) if (series, x) in points
                        and (values := measure_cell(points[series, x], runs)["values"])}
            if measured:
                counts = sorted({len(values) for values in measured.values()})
                n = f"n = {counts[0]}" + (f" to {counts[-1]}" if counts[1:] else "")
                spread = [statistics.stdev(v) if len(v) > 1 else 0 for v in measured.values()]
                ax.errorbar(list(measured), list(map(statistics.mean, measured.values())),
                            spread if any(spread) else None, marker=marker, ls="" if isinstance(xs[0], str) else line,
                            color=colour, label=f"{series} ({n})", capsize=3)
            diamonds = [(i, stated[series, x][0]) for i, x in enumerate(xs) if (series, x) in stated]
            if diamonds:
                ax.plot(*zip(*diamonds), marker="D", ls="", mfc="none", color=colour, ms=8, label=f"{series} (paper)")
        ax.set(xlabel=label, ylabel="rate (%)", ylim=(-4, 104))
        ax.set_xticks(range(len(xs)), [str(x) for x in xs])
        ax.grid(alpha=0.3)
        if ax.get_legend_handles_labels()[0]:  # below the panel, where it covers nothing
            ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, frameon=False)
        else:
            ax.text(0.5, 0.5, "not run", ha="center", transform=ax.transAxes)
    figure.savefig(path, dpi=130)


# ---- figures of another kind ----


def _write_figure2(runs: RunCommands, out: Path) -> None:
    from figures import toy

    toy.main(["--out", str(out), "--seeds", "1" if runs.profile.dataset == "digits" else "10"])
    content = json.loads((out / "figure2.json").read_text())
    (out / "figure2.md").write_text(f"# Figure 2\n\n{content['claim']}: {content['claim_shows']}\n\n"
                                    f"`{content['command']}`\n\n![Figure 2](figure2.png)\n")


def _write_figure5(runs: RunCommands, out: Path) -> None:
    step = mixup_source(runs, 2)(runs.profile.seeds[0])
    made = step.result() is not None
    if made:
        shutil.copyfile(step.folder / "trigger.png", out / "figure5.png")
    text = f"`{step.command}`\n\n![Figure 5](figure5.png)" if made else "not run"
    _write(out, "figure5", {"name": "figure5", "command": step.command, "made": made},
           f"# Figure 5: triggers of two images\n\n{text}\n")


def _write_figure7(runs: RunCommands, out: Path) -> None:
    """A row of the picture for each perplexity, a column for the source and for each surrogate of the first seed."""
    steps = {m: runs.analysis(step, "tsne") for m, step in runs.named(runs.source(runs.profile.seeds[0])).items()}
    found = {m: step.result() for m, step in steps.items()}
    figure, axes = new_figure(12, 6.4, 2, 4)
    for ax, (perplexity, model) in zip(axes, [(p, m) for p in PERPLEXITIES for m in MODELS]):
        ax.set(title=f"{model}, perplexity {perplexity}", xticks=[], yticks=[])
        if found[model] is None:
            ax.text(0.5, 0.5, "not run", ha="center", transform=ax.transAxes)
        else:
            draw_features(ax, found[model], perplexity)
    figure.suptitle("features: dots are test images, stars triggers; colour: label (of a trigger, the assigned one)",
                    fontsize=10)
    add_class_legend(figure, *filter(None, found.values()))
    figure.savefig(out / "figure7.png", dpi=120)
    commands = {m: "not run" if found[m] is None else step.command for m, step in steps.items()}
    lines = [f"- {m}: `{command}`" for m, command in commands.items()]
    _write(out, "figure7", {"name": "figure7", "commands": commands},
           "\n".join(["# Figure 7", "", *lines, "", "![Figure 7](figure7.png)"]) + "\n")


# ---- all results as one small file ----

LIMIT = 15 * 10**6  # bytes of an archive without weights
# What is named here is packed, and nothing else: a run folder also holds the triggers and the key of their commitment.
RESULTS = [f"{name}.json" for name in ("run", "summary", "energy", "margin", "tsne", "di", "eef")] + ["metrics.jsonl"]
# the checkpoints that a run is used by, and the one from which it goes on
WEIGHTS = [f"checkpoints/checkpoint_{name}{twin}.pt" for name in ("nat_best", "latest") for twin in ("", "_clean")]


def write_archive(path: Path, tables: Path, runs: Path, weights: bool) -> str:
    """Pack the files in the folder `tables` and of the runs below the folder `runs` as .tar.gz; returns what it says.

    With `weights` the checkpoints too; the archive is then private, because checkpoints hold the triggers. Without, it
    has at most `LIMIT` bytes, if need be without the metrics of finished runs; else Refusal. Archives of the same
    results are equal byte by byte: members are sorted, without times and owners. Links are not followed.
    """
    # Figure 5 is the picture of a source's triggers
    members = {f"tables/{name}.{end}": tables / f"{name}.{end}" for name in (*TABLES, *FIGURES)
               for end in ("md", "json", "png") if (name, end) != ("figure5", "png")}
    folders = [found.parent for found in runs.rglob("run.json")]
    members |= {Path("runs", folder.relative_to(runs), name).as_posix(): folder / name
                for folder in folders for name in RESULTS + (WEIGHTS if weights else [])}
    members = {name: file for name, file in sorted(members.items()) if file.is_file() and not file.is_symlink()}
    metrics = {name for name in members if name.endswith("/metrics.jsonl")
               and name.replace("metrics.jsonl", "summary.json") in members}
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")  # a name where nobody has put a link
    try:
        with open(partial, "xb", opener=open_private if weights else open_no_link) as file:
            size = _pack(file, members)
            if size > LIMIT and not weights:
                size = _pack(file, {name: members[name] for name in members if name not in metrics})
                said = f"; left out, to stay below {LIMIT / 1e6:g} MB: the metrics of finished runs"
            else:
                said = "; it holds weights and triggers: keep it private" if weights else ""
            if size > LIMIT and not weights:
                raise Refusal(f"--archive {path}: the results take {size / 1e6:.2f} MB without the metrics of finished "
                              f"runs, more than {LIMIT / 1e6:g} MB; archive the runs of fewer targets, with a --dir "
                              "of their own")
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return f"packed the tables and {len(folders)} run(s) into {path}, {size / 1e3:.0f} kB{said}"


def _pack(file, members: dict) -> int:
    """Write the members as .tar.gz into an open file, over what it holds; returns its size in bytes.

    JSON names this project's files by relative paths there.
    """
    file.seek(0)
    file.truncate()
    with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for name, path in members.items():
            about = tarfile.TarInfo(name)
            about.mode = 0o600 if name.endswith(".pt") else 0o644
            with open(path, "rb") as content:
                if name.endswith(".json"):
                    content = io.BytesIO(content.read().replace(f'"{ROOT}/'.encode(), b'"'))
                about.size = content.seek(0, os.SEEK_END)
                content.seek(0)
                archive.addfile(about, content)
    file.flush()
    return file.tell()
