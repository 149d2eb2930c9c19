"""TODO (figures.draw)"""

import json
import shutil
import statistics
from pathlib import Path

from figures.paper.commands import RunCommands
from figures.paper.figure_cells import figure_panels
from figures.paper.numbers import ACC, MODELS, NUMBERS, TRIG
from figures.paper.table_cells import TABLES, mixup_source, table_cells
from figures.paper.table_files import measure_cell, write_table
from utils.system.pictures import new_figure

SERIES_COLOURS = {"source, accuracy": "#009E73", "surrogate, accuracy": "#0072B2", "surrogate, triggers": "#CC79A7"}


def draw_panels(made: dict, runs: RunCommands, path: Path, paper: dict) -> None:
    """Rates against what is varied, error bars over two seeds or more, hollow diamonds where the paper states a value.

    Points of named variants are not joined; a panel without a run says so.
    """
    figure, axes = new_figure(4.6 * len(made), 3.5, 1, len(made))
    for ax, (label, points) in zip(axes, made.items()):
        xs = list(dict.fromkeys(x for _, x in points))
        for (series, colour), marker, line in zip(SERIES_COLOURS.items(), "os^", ("-", "--", ":")):
            at = [(i, points[series, x]) for i, x in enumerate(xs) if (series, x) in points]
            at = [(i, values) for i, cell in at if (values := measure_cell(cell, runs)["values"])]
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


def draw_tsne(runs: RunCommands, path: Path) -> None:
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


def write_target(name: str, runs: RunCommands, out: Path) -> None:
    """The files of one target from what has been run."""
    out.mkdir(parents=True, exist_ok=True)
    if name in TABLES:
        write_table(name, runs, out, table_cells(name, runs), NUMBERS[name], f"Table {name[5:]}")
        return
    if name == "figure2":
        from figures import toy

        toy.main(["--out", str(out), "--seeds", "1" if runs.profile.dataset == "digits" else "10"])
        content = json.loads((out / "figure2.json").read_text())
        (out / "figure2.md").write_text(f"# Figure 2\n\n{content['claim']}: {content['claim_shows']}\n\n"
                                        f"`{content['command']}`\n\n![Figure 2](figure2.png)\n")
        return
    if name == "figure5":
        step = mixup_source(runs, runs.profile.seeds[0], 2)
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
    made, paper = figure_panels(name, runs), {}
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
