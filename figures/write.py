"""Tables and figures from finished runs: <name>.md, .json and, for figures, .png; what has not been run says so.

See `figures.cells` for what a cell is.
"""

import json
import statistics
from pathlib import Path

from figures import toy
from figures.cells import PANELS, TABLE_CELLS, TABLES, shown_steps
from figures.published import ACC, MODELS, NUMBERS, P_SCORES, TRIG, P
from figures.runs import Profile, RunCommands
from figures.shared import markdown_table
from utils.analyze import PERPLEXITIES
from utils.ownership import pvalues
from utils.system.files import read_json, write_atomically
from utils.system.machine import figure_png, new_figure

SERIES = {  # colour, mark and line
    "source, accuracy": ("#009E73", "o", "-"), "surrogate, accuracy": ("#0072B2", "s", "--"),
    "surrogate, triggers": ("#CC79A7", "^", ":"), "accuracy": ("#0072B2", "s", "--"), "triggers": ("#CC79A7", "^", ":"),
}
CLASS_COLOURS = ("#B22222", "#E69F00", "#56B4E9", "#009E73", "#F0E442",
                 "#0072B2", "#D55E00", "#CC79A7", "#999999", "#7F3C8D")


def write_target(name: str, profile: Profile, folder: Path, out: Path) -> None:
    """Write the files of one table or figure, of the runs in `folder`, into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    runs = {seed: RunCommands(profile, folder, seed) for seed in profile.seeds}
    if name in TABLES:
        measured = measure({seed: TABLE_CELLS[name](of_seed) for seed, of_seed in runs.items()})
        _write_table(name, out, measured, NUMBERS[name])
    elif name in PANELS:
        _write_panels(name, out, {seed: PANELS[name](of_seed) for seed, of_seed in runs.items()})
    elif name == "figure2":
        _write_figure2(out, 1 if profile.dataset == "digits" else 10)
    else:  # a picture of the first seed
        {"figure5": _write_figure5, "figure7": _write_figure7}[name](out, shown_steps(name, runs[profile.seeds[0]]))


# ---- tables ----


def measure(by_seed: dict) -> dict:
    """{key: {"values", "command", "seeds", "places"}} over the seeds whose runs are finished, from {seed: {key: cell}}.

    The command is that of one of them; places: device and torch of each.
    """
    found = {}
    for key, (first, _) in next(iter(by_seed.values())).items():
        values, command, places = {}, first.command, set()
        for seed, cells in by_seed.items():
            step, value = cells[key]
            result = step.result()
            if result is not None and (number := value(result)) is not None:
                command = command if values else step.command
                values[seed] = round(number, 6)
                about = read_json(step.folder / "run.json") or {}
                places.add(f"{about.get('device_name')}, torch {about.get('torch')}")
        found[key] = {"values": list(values.values()), "command": command, "seeds": list(values),
                      "places": sorted(places)}
    return found


def show_cell(values, column: str) -> str:
    """A cell's values as text: mean ± sd (n); log10 p-values by the harmonic mean of p, as in the paper."""
    if not values:
        return "not run"
    if column in (P, P_SCORES):
        return f"{pvalues.harmonic_mean(values):.2f} ({len(values)})"
    digits = 4 if "margin" in column or "energy" in column else 2
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread} ({len(values)})"


def show_paper_cell(number) -> str:
    """A value (mean, sd or None) of `NUMBERS` as text; None where the paper states none."""
    if number is None:
        return "-"
    return f"{number[0]:g}" + (f" ± {number[1]:g}" if number[1] is not None else "")


def _write_table(name: str, out: Path, measured: dict, paper: dict) -> None:
    """Write <name>.md and <name>.json into the folder `out`.

    measured  {(row, column): content} of `measure`
    paper     {(row, column): (mean, sd)} that the paper states; all of them appear
    """
    rows, keys = [], list(dict.fromkeys([*paper, *measured]))
    order = list(dict.fromkeys(row for row, _ in keys))
    for row, column in sorted(keys, key=lambda key: order.index(key[0])):  # all columns of a row one after the other
        entry = {"row": row, "column": column, "paper": paper.get((row, column)), "values": [], "command": None}
        rows.append(entry | measured.get((row, column), {}))
    cells = [[row["row"], row["column"], show_paper_cell(row["paper"]), show_cell(row["values"], row["column"]),
              f"`{row['command']}`" if row["values"] else "not run"] for row in rows]
    kind = "Table" if name in TABLES else "Figure"
    title = f"{kind} {name.removeprefix(kind.lower())}"
    lines = [f"# {title}", "", f"Profile {out.name}. A command needs the run of its source before it, and of what "
             f"--benign names: `python -m figures.make {name} --profile {out.name} --list` prints all, in their order.",
             "", f"Made on: {'; '.join(sorted({place for row in rows for place in row.get('places', [])})) or '-'}.",
             "", markdown_table(["row", "column", "paper", "ours: mean ± sd (n)", "command"], cells)]
    if any(row["column"] == P for row in rows):
        lines += ["", "Over seeds log10 p is that of the harmonic mean of p, as in the paper: no valid p of its own. "
                  "log10 p of trigger sets is T1, of the answers, and T1p, of the probabilities, as the owner "
                  "reads them; what a stranger asks besides is in docs/verification.md."]
    if name in ("table2", "table3"):
        lines += ["", "Rivals differ from their authors' settings in the points that docs/rivals.md numbers; a "
                  "profile's own sizes stand in the commands."]
    if kind == "Figure":
        lines += ["", f"![{title}]({name}.png)"]
    _write(name, out, {"cells": rows}, lines)


def _write(name: str, out: Path, content: dict, lines: list[str]) -> None:
    content = {"name": name, **content}
    write_atomically(out / f"{name}.json", (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomically(out / f"{name}.md", ("\n".join(lines) + "\n").encode())


# ---- figures of lines and bars ----


def _write_panels(name: str, out: Path, by_seed: dict) -> None:
    labels, stated = next(iter(by_seed.values())), {}
    panels = {label: measure({seed: panels[label] for seed, panels in by_seed.items()}) for label in labels}
    if name == "figure1":
        stated = {(series, model): NUMBERS["table2"][f"CIFAR-10 margin, {model}", column]
                  for series, column in (("accuracy", ACC), ("triggers", TRIG)) for model in MODELS}
    measured = {(f"{label}: {x}", series): cell
                for label, cells in panels.items() for (series, x), cell in cells.items()}
    paper = {(f"model: {model}", series): value for (series, model), value in stated.items()}
    _write_table(name, out, measured, paper)
    draw_panels(panels, out / f"{name}.png", stated)


def draw_panels(panels: dict, path: Path, stated: dict) -> None:
    """Draw panels {axis label: {(series, x): content of `measure`}}: rates in per cent against what is varied.

    Error bars are standard deviations over two seeds or more, whose number n the legend says; hollow diamonds are the
    values that the paper states, `stated` {(series, x): (mean, sd)}. Points are joined where x is a number. A panel
    without a run says so.
    """
    figure, axes = new_figure(4.6 * len(panels), 4, 1, len(panels))
    for ax, (label, cells) in zip(axes, panels.items()):
        xs = list(dict.fromkeys(x for _, x in cells))
        for series, (colour, marker, line) in SERIES.items():
            measured = {i: cells[series, x]["values"] for i, x in enumerate(xs)
                        if (series, x) in cells and cells[series, x]["values"]}
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
    write_atomically(path, figure_png(figure, 130))


# ---- figures of another kind ----


def _write_figure2(out: Path, seeds: int) -> None:
    toy.main(["--out", str(out), "--seeds", str(seeds)])
    content = json.loads((out / "figure2.json").read_text())
    text = (f"# Figure 2\n\n{content['claim']}: {content['claim_shows']}\n\n`{content['command']}`\n\n"
            "![Figure 2](figure2.png)\n")
    write_atomically(out / "figure2.md", text.encode())


def _write_figure5(out: Path, steps) -> None:
    """The picture of the triggers of the first seed's source."""
    step, lines = steps[0], ["not run"]
    made = step.result() is not None
    if made:
        write_atomically(out / "figure5.png", (step.folder / "trigger.png").read_bytes())
        lines = [f"`{step.command}`", "", "![Figure 5](figure5.png)"]
    _write("figure5", out, {"command": step.command, "made": made}, ["# Figure 5: triggers of two images", "", *lines])


def _write_figure7(out: Path, steps) -> None:
    """A row of the picture for each perplexity, a column for the source and for each surrogate of the first seed."""
    found = {model: step.result() for model, step in zip(MODELS, steps)}
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
    write_atomically(out / "figure7.png", figure_png(figure, 120))
    commands = {model: step.command if found[model] else "not run" for model, step in zip(MODELS, steps)}
    lines = [f"- {model}: `{command}`" for model, command in commands.items()]
    _write("figure7", out, {"commands": commands}, ["# Figure 7", "", *lines, "", "![Figure 7](figure7.png)"])


def draw_features(ax, found: dict, perplexity: int) -> None:
    """Draw what `report_tsne` found on `ax`: test images as dots, triggers as stars, coloured by (assigned) label."""
    points, n = found["points"][str(perplexity)], len(found["labels"])
    star = {"s": 75, "edgecolors": "black", "linewidths": 0.7, "marker": "*"}
    for group, labels, look in ((points[:n], found["labels"], {"s": 7, "edgecolors": "none"}),
                                (points[n:], found["trigger_labels"], star)):
        if group:
            ax.scatter(*zip(*group), c=[CLASS_COLOURS[c % len(CLASS_COLOURS)] for c in labels], **look)


def add_class_legend(figure, *found) -> None:
    """Name the classes of the colours below `figure`, of what `report_tsne` found in one run or more.

    Beyond ten classes a colour stands for several, and there is no legend.
    """
    shown = sorted({c for one in found for c in (*one["labels"], *one["trigger_labels"])})
    if shown and shown[-1] < len(CLASS_COLOURS):
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], ls="", marker="o", color=colour, label=found[0]["classes"][c])
                   for c, colour in enumerate(CLASS_COLOURS) if c in shown]
        figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
