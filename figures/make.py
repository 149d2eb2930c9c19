"""The paper's tables and figures: `python -m figures.make table2|figure4|...|all [--profile paper|small|smoke]`.

Runs what is missing through the three scripts (a finished run is taken as it is, a broken one goes on), then writes
<name>.md, .json and, for figures, .png into OUT/<profile>. A cell without its run says "not run".
paper: the paper's settings, three seeds. small: res18 of width 16 on an image folder. smoke: digits, in minutes.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from figures.paper import ACC, MODELS, NUMBERS, TRIG, P
from utils.pvalues import harmonic_mean
from utils.refuse import Refusal, plainly

ROOT = Path(__file__).resolve().parent.parent
TABLES, FIGURES = tuple(f"table{i}" for i in range(1, 10)), tuple(f"figure{i}" for i in range(1, 9))
COLOURS = {"source, accuracy": "#009E73", "surrogate, accuracy": "#0072B2", "surrogate, triggers": "#CC79A7"}


class Profile(NamedTuple):
    """Settings of all runs; `watermark` are flags of sources alone, `other` the thief's other data sets."""

    dataset: str
    flags: str
    watermark: str
    model: str
    m: int
    seeds: tuple
    finetune: int
    other: dict
    wide: bool  # whether CIFAR-100's rows are made
    K: tuple = (1, 3, 5, 8)
    sizes: tuple = (25, 50, 100, 200)
    weights: tuple = (0.25, 0.5, 1, 2, 4)
    alphas: tuple = (0.1, 0.3, 0.5, 0.7, 0.9)


PROFILES = {
    "paper": Profile("cifar10", "", "", "res34", 100, (0, 1, 2), 100, {"SVHN": "svhn", "CIFAR-100": "cifar100"}, True),
    "small": Profile("folder", "--data-dir data/cifar10-jpeg --width 16 --train-size 16000 -ep 14 --amp --device cpu",
                     "--reduction sum -v 0.1", "res18", 50, (0,), 7, {}, False, sizes=(25, 50, 100)),
    "smoke": Profile("digits", "--width 4 --train-size 512 --batch-size 64 -ep 2 --device cpu", "", "res18", 20, (0,),
                     1, {}, False, K=(1, 3), sizes=(10, 20), weights=(0.5, 2), alphas=(0.3, 0.7)),
}


class Step(NamedTuple):
    """A command, the file that marks its end, and the steps before it."""

    command: str
    done: Path
    needs: tuple = ()

    @property
    def folder(self) -> Path:
        return self.done.parent


class Runs:
    """The runs of a profile as steps, one seed at a time."""

    def __init__(self, name: str, folder: Path):
        self.profile, self.dir = PROFILES[name], folder

    def source(self, seed, kind="margin", tag="", extra="", m=None, dataset=None) -> Step:
        p = self.profile
        m, dataset, message = m or p.m, dataset or p.dataset, f"{tag}s{seed}"
        folder = self.dir / f"{dataset}_{p.model}_{kind}_{m}_{message}"
        where = f"-d {shlex.quote(str(self.dir))} -dt {dataset} -tt {kind} -nq {m} -msg {message}"
        flags = f"{where} --seed {seed} {p.flags}" + (f" {p.watermark}" if kind != "none" else "")
        needs = ()
        if kind != "none":
            needs = (self.source(seed, "none", dataset=dataset),)
            extra = f"--benign {shlex.quote(str(needs[0].folder))} {extra}"
        return Step(_tidy(f"python train.py {flags} -mt {p.model} {extra}"), folder / "summary.json", needs)

    def attack(self, source: Step, tag: str, extra="", script="extraction", model=None, needs=(), edits=False) -> Step:
        p = self.profile
        words = shlex.split(source.command)
        value = lambda flag: words[words.index(flag) + 1]
        copied = " ".join(f"{f} {shlex.quote(value(f))}" for f in ("-d", "-dt", "-tt", "-nq", "-msg", "--seed"))
        same = "" if edits else f"-dmt {model or p.model}"
        base = "distillation" if script == "distill" else "extraction"
        command = _tidy(f"python {script}.py {copied} {p.flags} -tmt {p.model} {same} -admsg _{tag} {extra}")
        return Step(command, source.folder / f"{base}_{tag}" / "summary.json", (source, *needs))

    def analysis(self, step: Step, what: str) -> Step:
        words = shlex.split(self.profile.flags)
        data = f"--data-dir {words[words.index('--data-dir') + 1]}" if "--data-dir" in words else ""
        command = _tidy(f"python -m utils.analyze {what} {shlex.quote(str(step.folder))} {data}")
        return Step(command, step.folder / f"{what}.json", (step,))

    def named(self, source: Step) -> dict:
        """Source and the three extractions of Table 2."""
        return {"source": source} | {a: self.attack(source, a, f"-at {a}") for a in MODELS[1:]}


def _tidy(command: str) -> str:
    return " ".join(command.split())


# ---- what each table needs: {(row, column): (function of a seed -> step, function of its JSON -> number)} -----------


def accuracy(result):
    return 100 * result["test_accuracy"]


def triggers(result):
    return 100 * result["trigger_hits"] / result["trigger_size"]


def log10_p(result):
    return result["log10_p"]["T1"]


def benign_triggers(result):
    return triggers(next(row for row in result["rows"] if row["model"].startswith("benign")))


def number(name, factor=1):
    return lambda result: None if result[name] is None else factor * result[name]


def cells(name: str, runs: Runs) -> dict:
    """The cells of a table that can be made in this profile."""
    p = runs.profile
    both = lambda row, step: {(row, ACC): (step, accuracy), (row, TRIG): (step, triggers)}
    soft = lambda s, **kw: runs.attack(s, "soft", "-at soft", **kw)
    if name == "table1":
        erm = lambda seed: runs.source(seed, "base")
        return both("source", erm) | both("soft", lambda seed: soft(erm(seed)))
    if name == "table2":
        made = {}
        for label, dataset in (("CIFAR-10", p.dataset), ("CIFAR-100", "cifar100"))[: 2 if p.wide else 1]:
            for model in MODELS:
                step = lambda seed, d=dataset, m=model: runs.named(runs.source(seed, dataset=d))[m]
                row = f"{label} margin, {model}"
                made |= both(row, step) | {(row, P): (step, log10_p)}
        return made
    if name == "table3":
        return {("margin", TRIG): (runs.source, benign_triggers)}
    if name == "table4":
        made = both("source", runs.source)
        if "SVHN" in p.other:
            made |= both("soft, SVHN images", lambda seed: other(runs, runs.source(seed), "SVHN"))
        vgg = lambda seed: runs.attack(runs.source(seed), "vgg11", "-at soft", model="vgg11")
        return made | both("soft, VGG-11", vgg)
    if name == "table5":
        bound = lambda m: lambda seed: runs.analysis(runs.named(runs.source(seed))[m], "margin")
        return {(m, "margin, pixels in [0, 1]"): (bound(m), number("mean")) for m in MODELS}
    if name == "table6":
        made = {}
        for k in (2, 5):
            source = lambda seed, k=k: mixed(runs, seed, k)
            # the attack's own flags name the trigger set, the mixup number among them
            made |= both(f"k = {k}, source", source)
            distil = lambda seed, k=k: runs.attack(mixed(runs, seed, k), "distill", f"-nm {k}", script="distill")
            made |= both(f"k = {k}, distill", distil)
            made |= both(f"k = {k}, soft", lambda seed, k=k: runs.attack(mixed(runs, seed, k), "soft", f"-nm {k}"))
            if "CIFAR-100" in p.other:
                far = lambda seed, k=k: other(runs, mixed(runs, seed, k), "CIFAR-100", f"-nm {k}")
                made |= both(f"k = {k}, soft, CIFAR-100 images", far)
        return made
    if name == "table7":
        models = {m: (lambda seed, m=m: runs.named(runs.source(seed))[m]) for m in ("source", "reg", "soft")}
        if p.other:
            models["soft, other images"] = lambda seed: other(runs, runs.source(seed), next(iter(p.other)))
        made = {}
        for m, step in models.items():
            at = lambda seed, step=step: runs.analysis(step(seed), "energy")
            made |= {(m, ACC): (at, accuracy), (m, "energy of D"): (at, number("energy_clean")),
                     (m, "energy of successes"): (at, number("energy_success")),
                     (m, "energy of failures"): (at, number("energy_failed")),
                     (m, "triggers refused at 5 % refused clean images, %"): (at, number("refused_at_5_percent", 100))}
        return made
    if name == "table8":
        steal = lambda seed: runs.attack(runs.source(seed), "margin", "-at margin")
        return both("source", runs.source) | both("margin extraction", steal)
    tune = lambda seed: runs.attack(runs.source(seed), "finetune", f"-at finetune -ep {p.finetune}", edits=True)
    return both("source", runs.source) | both("fine-tuned", tune)


def mixed(runs, seed, k):
    return runs.source(seed, tag=f"mix{k}-", extra=f"-nm {k}")


def other(runs, source, label, extra=""):
    data = runs.profile.other[label]
    return runs.attack(source, data, f"-at soft -dsrc {data} {extra}")


# ---- what each figure needs: a list of series, each {x: cell} -------------------------------------------------------


def sweep(variants, steal):
    """Series of a sweep: `variants` {x: function of a seed -> source}."""
    made = {}
    for x, source in variants.items():
        made["source, accuracy", x] = (source, accuracy)
        made["surrogate, accuracy", x] = (lambda seed, s=source: steal(s(seed)), accuracy)
        made["surrogate, triggers", x] = (lambda seed, s=source: steal(s(seed)), triggers)
    return made


def panels(name: str, runs: Runs) -> dict:
    """{axis label: {(series, x): (function of a seed -> step, value)}} of a figure of lines or bars."""
    p = runs.profile
    soft = lambda source: runs.attack(source, "soft", "-at soft")
    if name == "figure1":
        t2 = cells("table2", runs)
        return {"model": {(s, m): t2[f"CIFAR-10 margin, {m}", c] for s, c in (
            ("surrogate, accuracy", ACC), ("surrogate, triggers", TRIG)) for m in MODELS}}
    if name == "figure3":
        def labelled(strategy):
            def source(seed):
                if strategy == "random":
                    return runs.source(seed)
                clean = runs.source(seed, "none").folder
                extra = f"--label-strategy {strategy} --label-model {shlex.quote(str(clean))}"
                return runs.source(seed, tag=f"{strategy}-", extra=extra)
            return source
        return {"labels of the triggers": sweep({s: labelled(s) for s in ("highest", "random", "lowest")}, soft)}
    if name == "figure4":
        made = {}
        for a in p.alphas:
            step = lambda seed, a=a: runs.attack(runs.source(seed), f"a{a}", f"-a {a}", script="distill")
            made["surrogate, accuracy", a], made["surrogate, triggers", a] = (step, accuracy), (step, triggers)
        return {"α, weight of the source's answers in distillation": made}
    if name == "figure6":
        k5 = lambda k: runs.source if k == 5 else lambda seed: runs.source(seed, tag=f"K{k}-", extra=f"--steps {k}")
        sized = lambda m: runs.source if m == p.m else lambda seed: runs.source(seed, m=m)
        weighted = lambda v: lambda seed: runs.source(seed, tag=f"v{v}-", extra=f"--reduction sum -v {v}")
        return {"(a) ascent steps K, eps = K/255": sweep({k: k5(k) for k in p.K}, soft),
                "(b) number m of triggers": sweep({m: sized(m) for m in p.sizes}, soft),
                "(c) λ of Eq. 4": sweep({v: weighted(v) for v in p.weights}, soft)}
    made, ratios = {}, [round(0.1 * i, 1) for i in range(10)]
    cut = lambda seed: runs.attack(runs.source(seed), "prune", "-at prune --on extraction_soft",
                                   edits=True, needs=(soft(runs.source(seed)),))
    for i, ratio in enumerate(ratios):
        made["surrogate, accuracy", ratio] = (cut, lambda r, i=i: accuracy(r["rows"][i]))
        made["surrogate, triggers", ratio] = (cut, lambda r, i=i: triggers(r["rows"][i]))
    return {"pruned share of each layer's channels": made}


def steps_of(name: str, runs: Runs) -> list[Step]:
    """All steps of a target, each after those it needs."""
    found = []

    def visit(step):
        for before in step.needs:
            visit(before)
        if step not in found:
            found.append(step)

    for seed in runs.profile.seeds:
        for step in _wanted(name, runs):
            visit(step(seed))
    return found


def _wanted(name, runs):
    if name == "figure2":
        return []
    if name == "figure5":
        return [lambda seed: mixed(runs, seed, 2)]
    if name == "figure7":
        return [lambda seed, m=m: runs.analysis(runs.named(runs.source(seed))[m], "tsne") for m in MODELS]
    if name in TABLES:
        return [step for step, _ in cells(name, runs).values()]
    return [step for cell in panels(name, runs).values() for step, _ in cell.values()]


def run(step: Step) -> None:
    """Run a step unless it is finished; a step that was killed goes on where it was."""
    if step.done.exists():
        return
    print(f"$ {step.command}", flush=True)
    words = [sys.executable, *shlex.split(step.command)[1:]]
    if words[1].endswith(".py"):
        words[1] = str(ROOT / words[1])
    step.folder.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(words, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})
    if done.returncode:
        raise Refusal(f"this command ended with status {done.returncode}: {step.command}")


def measure(cell, runs: Runs) -> dict:
    """A cell's values over the seeds, from the finished runs alone."""
    step_of, value = cell
    steps = [step_of(seed) for seed in runs.profile.seeds]
    values = [value(json.loads(s.done.read_text())) for s in steps if s.done.exists()]
    values = [v for v in values if v is not None]
    return {"values": [round(v, 6) for v in values], "command": steps[0].command, "seeds": list(runs.profile.seeds)}


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
    rows = []
    for key in dict.fromkeys([*paper, *made]):
        entry = {"row": str(key[0]), "column": str(key[1]), "paper": paper.get(key), "values": [], "command": None}
        rows.append(entry | (measure(made[key], runs) if key in made else {}))
    lines = [f"# {title}", "", "| row | column | paper | ours: mean ± sd (n) | command |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for row in rows:
        ours = shown(row["values"], row["column"])
        command = f"`{row['command']}`" if row["values"] else "not run"
        lines.append(f"| {row['row']} | {row['column']} | {paper_cell(row['paper'])} | {ours} | {command} |")
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
    """Rates against what is varied, error bars over seeds, the paper's value as a black diamond where it states one."""
    figure, axes = new_figure(4.6 * len(made), 3.5, 1, len(made))
    for ax, (label, points) in zip(axes, made.items()):
        xs = list(dict.fromkeys(x for _, x in points))
        for (series, colour), marker, line in zip(COLOURS.items(), "os^", ("-", "--", ":")):
            at = [(i, measure(points[series, x], runs)["values"]) for i, x in enumerate(xs) if (series, x) in points]
            at = [(i, v) for i, v in at if v]
            if at:
                spread = [statistics.stdev(v) if len(v) > 1 else 0 for _, v in at]
                ax.errorbar([i for i, _ in at], [statistics.mean(v) for _, v in at], spread, marker=marker, ls=line,
                            color=colour, label=series, capsize=3)
            stated = [(i, paper[series, x][0]) for i, x in enumerate(xs) if (series, x) in paper]
            if stated:
                ax.plot(*zip(*stated), marker="D", ls="", mfc="none", color="black", label="paper")
        ax.set(xlabel=label, ylabel="rate (%)", ylim=(-4, 104))
        ax.set_xticks(range(len(xs)), [str(x) for x in xs])
        ax.grid(alpha=0.3)
        handles, labels = ax.get_legend_handles_labels()
        once = dict(zip(labels, handles))
        ax.legend(once.values(), once.keys(), fontsize=8)
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
            ax, path_j = axes[4 * i + j], runs.analysis(steps[model], "tsne").done
            ax.set(title=f"{model}, perplexity {perplexity}", xticks=[], yticks=[])
            if not path_j.exists():
                ax.text(0.5, 0.5, "not run", ha="center", transform=ax.transAxes)
                continue
            data = json.loads(path_j.read_text())
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
        picture, there = step.folder / "trigger.png", step.done.exists()
        if there:
            shutil.copyfile(picture, out / "figure5.png")
        (out / "figure5.json").write_text(json.dumps({"name": name, "command": step.command, "made": there}) + "\n")
        text = f"`{step.command}`\n\n![Figure 5](figure5.png)" if there else "not run"
        (out / "figure5.md").write_text(f"# Figure 5: triggers of two images\n\n{text}\n")
        return
    if name == "figure7":
        steps = {m: runs.analysis(s, "tsne") for m, s in runs.named(runs.source(runs.profile.seeds[0])).items()}
        state = {m: s.command if s.done.exists() else "not run" for m, s in steps.items()}
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


@plainly
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    names = ("all", *TABLES, *FIGURES)
    parser.add_argument("names", nargs="+", choices=names, metavar="NAME", help="all, table1 ... table9, figure1 ... 8")
    parser.add_argument("--profile", default="smoke", choices=tuple(PROFILES))
    parser.add_argument("-d", "--dir", help="folder of the runs (default: experiments/<profile>)")
    parser.add_argument("--out", default=str(Path(__file__).parent), help="results go to OUT/<profile>")
    parser.add_argument("--list", action="store_true", help="print the commands still to be run, one a line, and end")
    parser.add_argument("--no-run", action="store_true", help="write from the finished runs; the rest is not run")
    args = parser.parse_args(argv)
    runs = Runs(args.profile, Path(args.dir or f"experiments/{args.profile}"))
    names = [*TABLES, *FIGURES] if "all" in args.names else args.names
    steps = list(dict.fromkeys(step for name in names for step in steps_of(name, runs)))
    if args.list:
        print("\n".join(step.command for step in steps if not step.done.exists()))
        return
    if not args.no_run:
        for step in steps:
            run(step)
    for name in names:
        write(name, runs, Path(args.out) / args.profile)
    print(f"wrote {', '.join(names)} to {Path(args.out) / args.profile}")


if __name__ == "__main__":
    main()
