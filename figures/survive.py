"""Which settings of a watermark survive theft, and at what accuracy: `python -m figures.survive`.

Prints a line for each setting of the search that figures/survive.json holds, and draws the source's accuracy against
what its copies keep, every copy a point: figures/survive.png. New runs are tabulated by figures.rows.
"""

import json
from statistics import mean

from figures.shared import HERE, figure_parser
from utils.ownership.pvalues import bonferroni
from utils.ownership.results import LOG_ALPHA
from utils.system.files import write_atomically
from utils.system.machine import figure_png, new_figure
from utils.system.refusals import refuse_in_one_sentence

MARKS = {"soft": ("#0072B2", "o"), "hard": ("#E69F00", "s"), "reg": ("#009E73", "^"), "margin": ("#7F3C8D", "D"),
         "finetune ftal": ("#D55E00", "X")}
OTHER = ("0.4", "P")


@refuse_in_one_sentence
def main(argv=None):
    figure_parser("survive", __doc__).parse_args(argv)
    found = json.loads((HERE / "survive.json").read_text())
    print(format_settings(found))
    write_atomically(HERE / "survive.png", draw(found))


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
            seeds.setdefault(row["seed"], []).append(100 * row[key])
        return f"{mean(map(mean, seeds.values())):.2f} %"

    for name, rows in groups.items():
        claimed = sum(p <= LOG_ALPHA for p in map(decisive, rows))
        copy = "" if rows[0]["attack"] is None else f", copy {percent(rows, 'copy_accuracy')}"
        hits, seeds = (", ".join(str(row[key]) for row in rows) for key in ("hits", "seed"))
        lines.append(f"{name}: source {percent(rows, 'source_accuracy')}{copy}, hits {hits} of {rows[0]['m']}, claimed "
                     f"{claimed} of {len(rows)} (seeds {seeds})")
    return "\n".join(lines)


def decisive(row: dict) -> float:
    """log10 p of T1, or for shared draws, which hits tell little of, the smaller of T1 and T1p, doubled."""
    shared = any(f"{name} labels" in row["setting"] for name in ("paired", "runners-up"))
    return bonferroni(row["log10_p"], row["log10_p_scores"]) if shared else row["log10_p"]


def draw(found: dict) -> bytes:
    """A PNG, two panels against the source's accuracy: triggers that copies keep, and what `decisive` gives."""
    figure, axes = new_figure(11, 4.8, 1, 2)
    copies = [row for row in found["rows"] if row["attack"] and not row["attack"].startswith("benign")]
    kept = lambda row: None if "runners-up" in row["setting"] else 100 * row["hits"] / row["m"]  # right ones miss there
    values = {"triggers that a copy keeps (%)": kept,
              "log10 p: T1, or the smaller of T1, T1p, doubled": decisive}
    for ax, (label, value) in zip(axes, values.items()):
        for row in (row for row in copies if value(row) is not None):  # where T1 applies
            colour, mark = MARKS.get(row["attack"], OTHER)
            look = {"markersize": 5, "alpha": 0.45, "markeredgecolor": colour}
            look |= {"markersize": 8, "alpha": 1, "markeredgecolor": "k"} if row["setting"] == found["chosen"] else {}
            ax.plot(100 * row["source_accuracy"], value(row), mark, color=colour, **look)
        ax.axvline(100 * found["benign_accuracy"], color="0.3", linewidth=1, linestyle=":")
        ax.set(xlabel="accuracy of the source (%); dotted: benign models", ylabel=label)
        ax.grid(alpha=0.3)
    axes[1].axhline(LOG_ALPHA, color="C3", linewidth=1, label="claimed below")
    for attack in dict.fromkeys(row["attack"] for row in copies):
        colour, mark = MARKS.get(attack, OTHER)
        axes[1].plot([], [], mark, color=colour, label=f"{attack} copy")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.suptitle(f"what survives theft, one point for each copy; outlined:\n{found['chosen']}", fontsize=9)
    return figure_png(figure, 130)


if __name__ == "__main__":
    main()
