"""The paper's own regime: `python -m figures.regime [--profile regime|regime-narrow] [--seeds 0 1 2] [--jobs N]`.

All 49,000 images, m = 100, the official weight, and the first 45 of the 200 epochs, in which both public logs of the
official recipe have their best validation epoch. Each source, plain and with clean BatchNorm statistics, and what is
left of its mark in copies: is the paper's method a watermark of the weights, or of the running statistics?

Runs what is missing in the order of `steps_of_seed`, `--jobs` at once (several small trainings share a large GPU), then
writes <profile>.md, .json and .png into --out. In the JSON file runs of another machine stay, and finished runs until
they are finished anew. SIGTERM lets the running scripts save, and the same command goes on.
"""

import json
from pathlib import Path

from figures.make import check_data
from figures.runs import REGIMES, RunCommands, run_steps
from figures.shared import check_folder, experiment_parser, markdown_table, write_result
from utils.ownership import pvalues
from utils.system.files import read_json
from utils.system.machine import figure_png, new_figure
from utils.system.refusals import COUNT, SEED, Refusal, refuse_in_one_sentence

LENGTHS = {"regime-smoke": ("-ep 4 --stop-after 2", "-ep 2")}  # of sources and of copies, in place of:
LENGTH = ("-ep 200 --stop-after 45", "-ep 40")
COLOURS = {"benign": "black", "margin": "C0", "margin, shared": "C2", "margin, eval": "C4", "ERM": "C1"}
MODELS = {"paper": "", "clean": "clean_"}  # BatchNorm statistics of a model -> prefix of its figures in metrics.jsonl


@refuse_in_one_sentence
def main(argv=None):
    parser = experiment_parser("regime", __doc__)
    parser.set_defaults(dir=None)
    parser.add_argument("--profile", default="regime", choices=tuple(REGIMES), help="runs in experiments/<profile>")
    parser.add_argument("--seeds", type=SEED, nargs="+", help="in this order (default: the profile's)")
    parser.add_argument("--first", type=COUNT, metavar="N", help="only the first N runs of each seed")
    parser.add_argument("--jobs", type=COUNT, default=1, help="runs at once")
    parser.add_argument("--no-run", action="store_true", help="write from the finished runs")
    args = parser.parse_args(argv)
    profile, folder = REGIMES[args.profile], args.dir or Path(f"experiments/{args.profile}")
    lengths = LENGTHS.get(args.profile, LENGTH)
    of_seeds = {seed: steps_of_seed(RunCommands(profile, folder, seed), *lengths)
                for seed in args.seeds or profile.seeds}
    steps = [(name, seed, step) for seed, of in of_seeds.items() for name, step in list(of.items())[: args.first]]
    check_folder("--out", args.out)
    if not args.no_run:
        check_folder("--dir", folder)
        check_data(args.profile, profile)
        run_steps([step for *_, step in steps], args.jobs, keep_going=True)
    new = [(name, figures_of_run(seed, step)) for name, seed, step in steps
           if (step.folder / "metrics.jsonl").is_file()]
    if not new:
        raise Refusal(f"--no-run: {folder} holds no run; leave --no-run out")
    path = args.out / f"{args.profile}.json"
    order, found = list(next(iter(of_seeds.values()))), {}
    old = [(name, run) for name, runs in (read_json(path) or {}).items() if name in order for run in runs]
    finished_last = sorted(old + new, key=lambda named: named[1]["summary"] is not None)
    kept = {(order.index(name), run["seed"], run["device"]): (name, run) for name, run in finished_last}
    for _, (name, run) in sorted(kept.items()):
        found.setdefault(name, []).append(run)
    write_result(path, found, format_table(found), draw(found), indent=2)


def steps_of_seed(runs: RunCommands, ours: str, theirs: str) -> dict:
    """{name: step}, what teaches most first; `ours` and `theirs` are the lengths of sources and of copies."""
    source = lambda kind, tag="", flags="": runs.source(kind, tag, ours + flags, compared=False)
    copy = lambda of, attack="soft", model="paper": runs.copy(
        of, attack, f"--teacher-bn {model} {theirs}", tag=f"{attack}-{model}")
    margin, erm = source("margin"), source("base")
    shared, in_eval = (source("margin", f"{mode}-", f" --bn-stats {mode}") for mode in ("shared", "eval"))
    return {
        "margin": margin, "margin, soft copy": copy(margin), "margin, soft copy of clean": copy(margin, model="clean"),
        "margin, shared": shared, "margin, shared, soft copy": copy(shared),
        "ERM": erm, "ERM, soft copy": copy(erm), "benign": source("none"),
        "margin, hard copy": copy(margin, "hard"), "margin, hard copy of clean": copy(margin, "hard", "clean"),
        "margin, eval": in_eval, "margin, eval, soft copy": copy(in_eval),
        "margin, eval, soft copy of clean": copy(in_eval, model="clean"),
    }


def figures_of_run(seed: int, step) -> dict:
    """Figures of a run: its summary, None where it is not finished, and its epochs."""
    epochs = [json.loads(line) for line in (step.folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [{key: round(value, 4) for key, value in row.items()
               if key in ("epoch", "loss", "loss_wat", "seconds") or key.endswith("accuracy")} for row in epochs]
    about = json.loads((step.folder / "run.json").read_text())
    return {"seed": seed, "command": step.command, "device": about["device_name"], "torch": about["torch"],
            "triggers": about["settings"]["num_query"], "summary": step.result(), "epochs": epochs}


def format_table(found: dict) -> str:
    places = {}  # (device, torch) -> seeds
    for run in (run for runs in found.values() for run in runs):
        places.setdefault(f"{run['device']}, torch {run['torch']}", set()).add(run["seed"])
    where = "; ".join(place + (f" (seeds {', '.join(map(str, sorted(seeds)))})" if len(places) > 1 else "")
                      for place, seeds in places.items())
    twice = lambda run, runs: sum(other["seed"] == run["seed"] for other in runs) > 1
    rows = [[name, model, f"{run['seed']} ({run['device']})" if twice(run, runs) else run["seed"],
             *chosen_cells(run, model), *last_cells(run, prefix)]
            for name, runs in found.items() for run in runs for model, prefix in MODELS.items()
            if f"{prefix}val_accuracy" in run["epochs"][-1]]
    head = ["model", "BatchNorm statistics", "seed", "chosen epoch", "accuracy %", "triggers", "T1", "T1p",
            "last epoch", "accuracy %", "triggers", "T1 cons."]
    return (f"On {where}. T1, T1p: log10 p. Chosen: the checkpoint of the best "
            "validation epoch, on the test images. Last: after the last epoch, on the validation images, with the "
            "conservative T1, which counts a trigger that is answered with its true label as a miss. A run without a "
            f"chosen checkpoint was stopped in the epoch after its last.\n\n{markdown_table(head, rows)}\n")


def chosen_cells(run: dict, model: str) -> list[str]:
    """Epoch, accuracy, triggers, T1 and T1p of the chosen checkpoint."""
    summary = run["summary"]
    if not summary:
        return ["-"] * 5
    chosen = summary if model == "paper" else summary["clean"]
    return [str(summary["chosen_epoch"]), f"{100 * chosen['test_accuracy']:.2f}",
            f"{chosen['trigger_hits']} of {run['triggers']}",
            *(f"{chosen['log10_p'][test]:.2f}" for test in ("T1", "T1p"))]


def last_cells(run: dict, prefix: str) -> list[str]:
    """Epoch, accuracy, triggers and conservative T1 after the last epoch; no triggers where none were asked."""
    last, m = run["epochs"][-1], run["triggers"]
    hits = last.get(f"{prefix}trigger_accuracy")
    cells = [str(last["epoch"]), f"{100 * last[f'{prefix}val_accuracy']:.1f}"]
    if hits is None:
        return [*cells, "-", "-"]
    t1 = pvalues.binomial(round(hits * m), m, 1 / 9)  # conservative: all m triggers of ten classes count
    return [*cells, f"{hits * m:.0f} of {m}", f"{t1:.2f}"]


def draw(found: dict) -> bytes:
    """A PNG: accuracy and triggers of the sources by epoch, plain and with clean statistics; chosen epochs marked."""
    figure, axes = new_figure(9, 4, 1, 2)
    curves = [(name, run, prefix, style) for name in COLOURS for run in found.get(name, [])
              for prefix, style in (("", "-"), ("clean_", "--")) if f"{prefix}val_accuracy" in run["epochs"][-1]]
    for name, run, prefix, style in curves:
        rows = [row for row in run["epochs"] if f"{prefix}val_accuracy" in row]
        x, chosen = [row["epoch"] for row in rows], (run["summary"] or {}).get("chosen_epoch")
        label = f"{name}{', clean statistics' if prefix else ''}" if run is found[name][0] else None
        for axis, key in zip(axes, ("val_accuracy", "trigger_accuracy")):
            y = [100 * row[prefix + key] for row in rows]
            axis.plot(x, y, style, color=COLOURS[name], linewidth=1, label=label)
            if chosen in x:
                axis.plot([chosen], [y[x.index(chosen)]], "o", color=COLOURS[name], markersize=5)
    axes[0].set_ylabel("validation accuracy %")
    axes[1].set_ylabel("triggers with their assigned label %")
    for axis in axes:
        axis.set_xlabel("epoch (of 200; the dot: the chosen checkpoint)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    return figure_png(figure)


if __name__ == "__main__":
    main()
