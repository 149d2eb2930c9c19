"""Which settings of a watermark survive theft, and at what accuracy: `python -m figures.survive [RUN ...]`.

Adds what the named runs of train.py and the attacks inside them found to figures/survive.json, and draws the source's
accuracy against what its copies keep, every setting a point: figures/survive.png. A run that was added before is
replaced.
"""

import shlex
import sys
from pathlib import Path
from statistics import mean

from figures.shared import HERE, figure_parser
from utils.ownership.pvalues import bonferroni
from utils.ownership.results import LOG_ALPHA, is_stale
from utils.system.files import check_output_file, read_json, write_atomically, write_json
from utils.system.machine import figure_png, new_figure
from utils.system.refusals import Refusal, refuse_in_one_sentence
from utils.watermark.triggers import AMONG_LIKELY, SHARED

MARKS = {"soft": ("#0072B2", "o"), "hard": ("#E69F00", "s"), "reg": ("#009E73", "^"), "margin": ("#7F3C8D", "D"),
         "finetune ftal": ("#D55E00", "X")}
OTHER = ("0.4", "P")
KEYS = ("setting", "seed", "statistics", "attack", "copy", "sizes", "device", "command", "started")  # a row's identity


@refuse_in_one_sentence
def main(argv=None):
    parser = figure_parser("survive", __doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders of train.py's runs to add, attacks inside them")
    parser.add_argument("--chosen", help="name of the setting that was fixed before the other seeds were run")
    parser.add_argument("--json", type=Path, default=HERE / "survive.json", help="results; the picture lies beside it")
    args = parser.parse_args(argv)
    check_output_file(args.json, "--json")
    found = read_json(args.json) or {"benign_accuracy": None, "chosen": None, "rows": []}
    new = [row for folder in args.runs for row in rows_of_run(Path(folder))]
    rows = {tuple(row.get(key) for key in KEYS): row for row in [*found["rows"], *new]}
    found["rows"] = sorted(rows.values(), key=lambda row: [str(row.get(key)) for key in KEYS])
    found["chosen"] = args.chosen or found["chosen"]
    benign = [row["source_accuracy"] for row in found["rows"] if row["setting"] == "benign"]
    found["benign_accuracy"] = sum(benign) / len(benign) if benign else None
    if not found["rows"]:
        raise Refusal(f"{args.json} holds no runs yet: name some folders of train.py's runs")
    if found["chosen"] not in {None, *(row["setting"] for row in found["rows"])}:
        raise Refusal(f"--chosen {found['chosen']}: no run has that setting; see the names that are printed without it")
    draw(found, args.json.with_suffix(".png"))
    write_json(args.json, found)
    print(format_settings(found))


def rows_of_run(folder: Path) -> list[dict]:
    """The rows of a run of train.py: its models, its benign models on its triggers, and the attacks inside it."""
    run, summary = read_json(folder / "run.json"), read_json(folder / "summary.json")
    if run is None or summary is None or "attack" in run["settings"]:
        raise Refusal(f"{folder} is no finished run of train.py: name one that has a run.json and a summary.json")
    settings = run["settings"]
    own = "clean" if settings["train_type"] == "none" else settings["bn_stats"]  # the statistics that serve the model
    models = {own: summary} | ({"clean": summary["clean"]} if summary.get("clean") else {})
    about = {"setting": setting_name(settings), "seed": settings["seed"], "device": run["device_name"],
             "torch": run["torch"], "sizes": f"{settings['model_type']} width {settings['width']}, "
             f"{settings['train_size'] or 'all'} images, {settings['epoch']} epochs"}

    def add(statistics, attack, answers, run=run, model=None):
        rows.append({
            **about, "statistics": statistics, "source_accuracy": models.get(statistics, summary)["test_accuracy"],
            "attack": attack, "copy": model, "copy_accuracy": answers["test_accuracy"] if attack else None,
            "hits": answers["trigger_hits"], "m": answers["trigger_size"], "log10_p": answers["log10_p"]["T1"],
            "log10_p_scores": answers["log10_p"].get("T1p"), "command": "python " + shlex.join(run["command"]),
            "started": run.get("started")})

    rows = []
    for statistics, model in models.items():
        add(statistics, None, model)
    for row in summary["rows"]:
        if row["model"].startswith("benign ") and settings["train_type"] != "none":
            add(own, row["model"], row)
    for attack in sorted(folder.glob("*/summary.json")):
        stolen = read_json(attack)
        if stolen.get("role") != "surrogate":  # of -at prune and quantize the figures are those of the model before
            continue
        if is_stale(stolen, folder):
            print(f"left out: {attack.parent} is a copy of an earlier training of its source", file=sys.stderr)
            continue
        statistics = stolen.get("teacher_bn", "paper")
        statistics = own if statistics == "paper" else statistics
        add(statistics, stolen["attack"], stolen, read_json(attack.parent / "run.json"), stolen["model"])
    return rows


def setting_name(settings: dict) -> str:
    """What distinguishes a setting of the search, from the flags in run.json."""
    if settings["train_type"] == "none":
        return "benign"
    on = settings.get
    labels = {"random": ""} | {name: f"{on('label_choices')} {name} labels" for name in AMONG_LIKELY}
    return ", ".join(filter(None, [
        settings["train_type"], settings["bn_stats"], f"m {settings['num_query']}",
        f"lambda {settings['variable']:g}" + (" joint" if settings["reduction"] == "joint" else ""),
        f"K {settings['steps']}, eps {settings['eps']:g}" if settings["train_type"] == "margin" else "",
        f"{on('trigger_strategy')} images" if on("trigger_strategy") else "",
        labels.get(settings["label_strategy"], f"{settings['label_strategy']} labels"),
        f"{len(on('label_model'))} label models" if isinstance(on("label_model"), list) else "",
        f"{on('carriers')} carriers" if on("carriers") else "",
        "no crops" if on("no_crop") else "",
        f"means of {settings['num_mixup']}" if settings["num_mixup"] > 1 else "",
        f"from a trained model, lr {settings['lr']:g}" if on("init") else "",
    ]))


def format_settings(found: dict) -> str:
    """One line for each setting, statistics, device and attack: mean accuracies, hits and claims.

    Runs of one seed are averaged first, so that each seed counts once in a mean.
    """
    groups, lines = {}, []
    for row in found["rows"]:
        what = "benign" if str(row["attack"]).startswith("benign") else row["attack"] or "source"
        what += f" ({row['copy']})" if row["copy"] not in (None, "res18") else ""
        name = f"{row['sizes']}, {row['device']}: {row['setting']}, {row['statistics']} statistics, {what}"
        groups.setdefault(name, []).append(row)

    def percent(rows, key):
        seeds = {}
        for row in rows:
            if row[key] is not None:  # as of a benign model that a file names
                seeds.setdefault(row["seed"], []).append(100 * row[key])
        return f"{mean(map(mean, seeds.values())):.2f} %" if seeds else "unknown"

    for name, rows in groups.items():
        claimed = sum(found is not None and found <= LOG_ALPHA for found in map(decisive, rows))
        copy = "" if rows[0]["attack"] is None else f", copy {percent(rows, 'copy_accuracy')}"
        hits, seeds = (", ".join(str(row[key]) for row in rows) for key in ("hits", "seed"))
        lines.append(f"{name}: source {percent(rows, 'source_accuracy')}{copy}, hits {hits} of {rows[0]['m']}, claimed "
                     f"{claimed} of {len(rows)} (seeds {seeds})")
    return "\n".join(lines)


def decisive(row: dict) -> float | None:
    """log10 p of T1, or for shared draws, which hits tell little of, the smaller of T1 and T1p, doubled."""
    shared = any(f"{name} labels" in row["setting"] for name in SHARED)
    return bonferroni(row["log10_p"], row["log10_p_scores"]) if shared else row["log10_p"]


def draw(found: dict, path: Path) -> None:
    """Two panels against the source's accuracy: triggers that copies keep, and what `decisive` gives."""
    figure, axes = new_figure(11, 4.8, 1, 2)
    copies = [row for row in found["rows"] if row["attack"] and not row["attack"].startswith("benign")]
    kept = lambda row: None if "runners-up" in row["setting"] else 100 * row["hits"] / row["m"]  # right ones miss there
    values = {"triggers that a copy keeps (%)": kept,
              "log10 p for a copy: T1, or the smaller of T1 and T1p": decisive}
    for ax, (label, value) in zip(axes, values.items()):
        for row in (row for row in copies if value(row) is not None):  # where T1 applies
            colour, mark = MARKS.get(row["attack"], OTHER)
            look = {"markersize": 5, "alpha": 0.45, "markeredgecolor": colour}
            look |= {"markersize": 8, "alpha": 1, "markeredgecolor": "k"} if row["setting"] == found["chosen"] else {}
            ax.plot(100 * row["source_accuracy"], value(row), mark, color=colour, **look)
        if found["benign_accuracy"]:
            ax.axvline(100 * found["benign_accuracy"], color="0.3", linewidth=1, linestyle=":")
        ax.set(xlabel="accuracy of the source (%); dotted: benign models", ylabel=label)
        ax.grid(alpha=0.3)
    axes[1].axhline(LOG_ALPHA, color="C3", linewidth=1, label="claimed below")
    for attack in dict.fromkeys(row["attack"] for row in copies):
        colour, mark = MARKS.get(attack, OTHER)
        axes[1].plot([], [], mark, color=colour, label=f"{attack} copy")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    title = "what survives theft, one point for each copy"
    figure.suptitle(f"{title}; outlined:\n{found['chosen']}" if found["chosen"] else title, fontsize=9)
    write_atomically(path, figure_png(figure, 130))


if __name__ == "__main__":
    main()
