"""From finished runs to <name>.md, .json and, for figures, .png; a cell without its run says "not run"."""

import json
import shutil
import statistics
from pathlib import Path

from figures.paper import ACC, MODELS, NUMBERS, TRIG, P
from figures.plan import TABLES, cells, mixed, panels
from figures.runs import Runs
from utils.pvalues import harmonic_mean

COLOURS = {"source, accuracy": "#009E73", "surrogate, accuracy": "#0072B2", "surrogate, triggers": "#CC79A7"}


def measure(cell, runs: Runs) -> dict:
    """A cell's values over the seeds, from the finished runs alone."""
    step_of, value = cell
    steps = {seed: step_of(seed) for seed in runs.profile.seeds}
    values = {seed: value(step.result()) for seed, step in steps.items() if step.finished}
    values = {seed: round(v, 6) for seed, v in values.items() if v is not None}
    first = next(iter(values), next(iter(steps)))
    return {"values": list(values.values()), "command": steps[first].command, "seeds": list(values)}


def shown(values, column=None) -> str:
    """mean +- sd (n) of a cell; p-values by their harmonic mean, as the paper's."""
    if not values:
        return "not run"
    if column == P:
        return f"{harmonic_mean(values):.2f} ({len(values)})"
    digits = 4 if "margin" in (column or "") or "energy" in (column or "") else 2
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread} ({len(values)})"


def paper_cell(number) -> str:
    if number is None:
        return "-"
    return f"{number[0]:g}" + (f" ± {number[1]:g}" if number[1] is not None else "")


def write_table(name: str, runs: Runs, out: Path, made: dict, paper: dict, title: str) -> list[dict]:
    """<name>.md and .json; every cell of the paper appears, made or not."""
    rows, keys = [], list(dict.fromkeys([*paper, *made]))
    order = list(dict.fromkeys(row for row, _ in keys))
    for key in sorted(keys, key=lambda key: order.index(key[0])):  # a row's columns stand together
        entry = {"row": str(key[0]), "column": str(key[1]), "paper": paper.get(key), "values": [], "command": None}
        rows.append(entry | (measure(made[key], runs) if key in made else {}))
    lines = [f"# {title}", "", "| row | column | paper | ours: mean ± sd (n) | command |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for row in rows:
        ours = shown(row["values"], row["column"])
        command = f"`{row['command']}`" if row["values"] else "not run"
        lines.append(f"| {row['row']} | {row['column']} | {paper_cell(row['paper'])} | {ours} | {command} |")
    if name in ("table2", "table3"):
        lines += ["", "EWE, RS, DI and EEF differ from their authors' settings in the six points that README.md "
                  "numbers under *The four rivals*; a profile's own sizes stand in the commands."]
    (out / f"{name}.md").write_text("\n".join(lines) + "\n")
    (out / f"{name}.json").write_text(json.dumps({"name": name, "cells": rows}, indent=1, ensure_ascii=False) + "\n")
    return rows


def new_figure(width, height, *shape):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(*shape, squeeze=False).flat


def draw_panels(made: dict, runs: Runs, path: Path, paper: dict) -> None:
    """Rates against what is varied, error bars over two seeds or more, hollow diamonds where the paper states a value.

    Points of named variants are not joined; a panel without a run says so.
    """
    figure, axes = new_figure(4.6 * len(made), 3.5, 1, len(made))
    for ax, (label, points) in zip(axes, made.items()):
        xs = list(dict.fromkeys(x for _, x in points))
        for (series, colour), marker, line in zip(COLOURS.items(), "os^", ("-", "--", ":")):
            at = [(i, measure(points[series, x], runs)["values"]) for i, x in enumerate(xs) if (series, x) in points]
            at = [(i, v) for i, v in at if v]
            if at:
                spread = [statistics.stdev(v) if len(v) > 1 else 0 for _, v in at]
                ax.errorbar([i for i, _ in at], [statistics.mean(v) for _, v in at], spread if any(spread) else None,
                            marker=marker, ls="" if isinstance(xs[0], str) else line, color=colour, label=series,
                            capsize=3)
            stated = [(i, paper[series, x][0]) for i, x in enumerate(xs) if (series, x) in paper]
            if stated:
                ax.plot(*zip(*stated), marker="D", ls="", mfc="none", color=colour, ms=8, label=f"{series} (paper)")
        ax.set(xlabel=label, ylabel="rate (%)", ylim=(-4, 104))
        ax.set_xticks(range(len(xs)), [str(x) for x in xs])
        ax.grid(alpha=0.3)
        handles, labels = ax.get_legend_handles_labels()
        if handles:
            ax.legend(handles, labels, fontsize=8, loc="best", framealpha=0.6)
        else:
            ax.text(0.5, 0.5, "not run", ha="center", transform=ax.transAxes)
    figure.savefig(path, dpi=130)


def draw_tsne(runs: Runs, path: Path) -> None:
    """Figure 7: rows are perplexities, columns source and surrogates of the first seed."""
    seed = runs.profile.seeds[0]
    figure, axes = new_figure(12, 6.4, 2, 4)
    steps = runs.named(runs.source(seed))
    colours = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442",
               "#0072B2", "#D55E00", "#CC79A7", "#999999", "#7F3C8D")
    for i, perplexity in enumerate(("5", "10")):
        for j, model in enumerate(MODELS):
            ax, step = axes[4 * i + j], runs.analysis(steps[model], "tsne")
            ax.set(title=f"{model}, perplexity {perplexity}", xticks=[], yticks=[])
            if not step.finished:
                ax.text(0.5, 0.5, "not run", ha="center", transform=ax.transAxes)
                continue
            data = step.result()
            points, n = data["points"][perplexity], len(data["labels"])
            for group, labels, size, edge in ((points[:n], data["labels"], 7, "none"),
                                              (points[n:], data["trigger_labels"], 75, "black")):
                ax.scatter(*zip(*group), c=[colours[c % 10] for c in labels], s=size, edgecolors=edge, linewidths=0.7,
                           marker="*" if edge == "black" else "o")
    title = "features: dots are test images, stars triggers; colour: label (of a trigger, the assigned one)"
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)


def write(name: str, runs: Runs, out: Path) -> None:
    """The files of one target from what has been run."""
    out.mkdir(parents=True, exist_ok=True)
    if name in TABLES:
        write_table(name, runs, out, cells(name, runs), NUMBERS[name], f"Table {name[5:]}")
        return
    if name == "figure2":
        from figures import toy

        toy.main(["--out", str(out), "--seeds", "1" if runs.profile.dataset == "digits" else "10"])
        content = json.loads((out / "figure2.json").read_text())
        (out / "figure2.md").write_text(f"# Figure 2\n\n{content['claim']}: {content['claim_shows']}\n\n"
                                        f"`{content['command']}`\n\n![Figure 2](figure2.png)\n")
        return
    if name == "figure5":
        step = mixed(runs, runs.profile.seeds[0], 2)
        picture, there = step.folder / "trigger.png", step.finished
        if there:
            shutil.copyfile(picture, out / "figure5.png")
        (out / "figure5.json").write_text(json.dumps({"name": name, "command": step.command, "made": there}) + "\n")
        text = f"`{step.command}`\n\n![Figure 5](figure5.png)" if there else "not run"
        (out / "figure5.md").write_text(f"# Figure 5: triggers of two images\n\n{text}\n")
        return
    if name == "figure7":
        steps = {m: runs.analysis(s, "tsne") for m, s in runs.named(runs.source(runs.profile.seeds[0])).items()}
        state = {m: s.command if s.finished else "not run" for m, s in steps.items()}
        draw_tsne(runs, out / "figure7.png")
        (out / "figure7.json").write_text(json.dumps({"name": name, "commands": state}, indent=1) + "\n")
        lines = [f"- {m}: `{c}`" for m, c in state.items()]
        (out / "figure7.md").write_text("\n".join(["# Figure 7", "", *lines, "", "![Figure 7](figure7.png)"]) + "\n")
        return
    made, paper = panels(name, runs), {}
    if name == "figure1":
        t2 = NUMBERS["table2"]
        paper = {(s, m): t2[f"CIFAR-10 margin, {m}", c] for m in MODELS for s, c in (
            ("surrogate, accuracy", ACC), ("surrogate, triggers", TRIG))}
    flat = {(f"{label}: {x}", series): cell for label, points in made.items() for (series, x), cell in points.items()}
    stated = {(f"model: {m}", s): v for (s, m), v in paper.items()}
    write_table(name, runs, out, flat, stated, f"Figure {name[6:]}")
    draw_panels(made, runs, out / f"{name}.png", paper)
    with open(out / f"{name}.md", "a") as file:
        file.write(f"\n![Figure {name[6:]}]({name}.png)\n")
