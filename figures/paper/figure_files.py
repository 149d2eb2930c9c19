"""A figure of the paper from finished runs: <name>.md, .json and .png; what has not been run is marked "not run"."""

import json
import shutil
import statistics
from pathlib import Path

from figures.paper.commands import RunCommands
from figures.paper.figure_cells import figure_panels
from figures.paper.table_cells import TABLES, mixup_source, table_cells
from figures.paper.table_files import measure_cell, write_table
from utils.analysis.tsne import PERPLEXITIES, draw_features
from utils.published.numbers import ACC, MODELS, NUMBERS, TRIG
from utils.system.machine import new_figure

SERIES_COLOURS = {"source, accuracy": "#009E73", "surrogate, accuracy": "#0072B2", "surrogate, triggers": "#CC79A7"}


def write_target(name: str, runs: RunCommands, out: Path) -> None:
    """Write the files of one table or figure into the folder `out`, from the runs that are finished."""
    out.mkdir(parents=True, exist_ok=True)
    if name in TABLES:
        write_table(name, runs, out, table_cells(name, runs), NUMBERS[name], f"Table {name[5:]}")
    elif name in WRITERS:
        WRITERS[name](runs, out)
    else:
        _write_panels(name, runs, out)


# ---- figures of lines and bars ----


def _write_panels(name: str, runs: RunCommands, out: Path) -> None:
    panels, stated = figure_panels(name, runs), {}
    if name == "figure1":
        table2, series = NUMBERS["table2"], (("surrogate, accuracy", ACC), ("surrogate, triggers", TRIG))
        stated = {(s, m): table2[f"CIFAR-10 margin, {m}", column] for m in MODELS for s, column in series}
    cells = {(f"{label}: {x}", series): cell
             for label, points in panels.items() for (series, x), cell in points.items()}
    stated_cells = {(f"model: {m}", series): value for (series, m), value in stated.items()}
    write_table(name, runs, out, cells, stated_cells, f"Figure {name[6:]}")
    draw_panels(panels, runs, out / f"{name}.png", stated)
    with open(out / f"{name}.md", "a") as file:
        file.write(f"\n![Figure {name[6:]}]({name}.png)\n")


def draw_panels(panels: dict, runs: RunCommands, path: Path, stated: dict) -> None:
    """Draw `panels`, see `figure_panels`: rates in per cent against what is varied.

    Error bars are standard deviations over two seeds or more; hollow diamonds are the values that the paper states,
    `stated` {(series, x): (mean, sd)}. Points are joined where x is a number. A panel without a run says so.
    """
    figure, axes = new_figure(4.6 * len(panels), 3.5, 1, len(panels))
    for ax, (label, points) in zip(axes, panels.items()):
        xs = list(dict.fromkeys(x for _, x in points))
        for (series, colour), marker, line in zip(SERIES_COLOURS.items(), "os^", ("-", "--", ":")):
            cells = [(i, points[series, x]) for i, x in enumerate(xs) if (series, x) in points]
            measured = [(i, values) for i, cell in cells if (values := measure_cell(cell, runs)["values"])]
            if measured:
                spread = [statistics.stdev(v) if len(v) > 1 else 0 for _, v in measured]
                ax.errorbar([i for i, _ in measured], [statistics.mean(v) for _, v in measured],
                            spread if any(spread) else None, marker=marker, ls="" if isinstance(xs[0], str) else line,
                            color=colour, label=series, capsize=3)
            diamonds = [(i, stated[series, x][0]) for i, x in enumerate(xs) if (series, x) in stated]
            if diamonds:
                ax.plot(*zip(*diamonds), marker="D", ls="", mfc="none", color=colour, ms=8, label=f"{series} (paper)")
        ax.set(xlabel=label, ylabel="rate (%)", ylim=(-4, 104))
        ax.set_xticks(range(len(xs)), [str(x) for x in xs])
        ax.grid(alpha=0.3)
        handles, labels = ax.get_legend_handles_labels()
        if handles:
            ax.legend(handles, labels, fontsize=8, loc="best", framealpha=0.6)
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
    step = mixup_source(runs, runs.profile.seeds[0], 2)
    finished = step.finished
    if finished:
        shutil.copyfile(step.folder / "trigger.png", out / "figure5.png")
    content = {"name": "figure5", "command": step.command, "made": finished}
    (out / "figure5.json").write_text(json.dumps(content) + "\n")
    text = f"`{step.command}`\n\n![Figure 5](figure5.png)" if finished else "not run"
    (out / "figure5.md").write_text(f"# Figure 5: triggers of two images\n\n{text}\n")


def _write_figure7(runs: RunCommands, out: Path) -> None:
    steps = {m: runs.analysis(step, "tsne") for m, step in runs.named(runs.source(runs.profile.seeds[0])).items()}
    commands = {m: step.command if step.finished else "not run" for m, step in steps.items()}
    draw_tsne(runs, out / "figure7.png")
    (out / "figure7.json").write_text(json.dumps({"name": "figure7", "commands": commands}, indent=1) + "\n")
    lines = [f"- {m}: `{command}`" for m, command in commands.items()]
    (out / "figure7.md").write_text("\n".join(["# Figure 7", "", *lines, "", "![Figure 7](figure7.png)"]) + "\n")


def draw_tsne(runs: RunCommands, path: Path) -> None:
    """Figure 7: a row for each perplexity, a column for the source and for each surrogate of the first seed."""
    seed = runs.profile.seeds[0]
    figure, axes = new_figure(12, 6.4, 2, 4)
    steps = runs.named(runs.source(seed))
    for i, perplexity in enumerate(PERPLEXITIES):
        for j, model in enumerate(MODELS):
            ax, step = axes[4 * i + j], runs.analysis(steps[model], "tsne")
            ax.set(title=f"{model}, perplexity {perplexity}", xticks=[], yticks=[])
            if not step.finished:
                ax.text(0.5, 0.5, "not run", ha="center", transform=ax.transAxes)
                continue
            draw_features(ax, step.result(), perplexity)
    title = "features: dots are test images, stars triggers; colour: label (of a trigger, the assigned one)"
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)


WRITERS = {"figure2": _write_figure2, "figure5": _write_figure5, "figure7": _write_figure7}
