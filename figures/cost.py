"""What an epoch costs against K, m, batch and width: `python -m figures.cost` writes figures/cost.json and cost.png."""

import argparse
import json
from pathlib import Path

from figures.shared import HERE
from utils.benchmark import OBJECTIVES, Contenders, describe_benchmark, measure_steps, set_up
from utils.system.files import write_atomically
from utils.system.machine import figure_png, new_figure
from utils.system.refusals import Refusal, refuse_in_one_sentence

# axis -> (flag of the benchmark, its values); the other flags are those of the command line
AXES = {
    "ascent steps K": ("steps", (0, 2, 5, 10)),
    "triggers m": ("num_query", (20, 100, 500)),
    "batch": ("batch_size", (64, 128, 256)),
    "width": ("width", (4, 8, 16)),
}
STYLE = {("official", "fp32"): "C3s-", ("ours", "fp32"): "C0o-", ("ours", "amp"): "C2^-"}


def draw(result, path) -> None:
    """Draw seconds an epoch against each axis; `result` is the content of cost.json."""
    figure, axes = new_figure(12, 3.4, 1, len(AXES))
    settings = result["settings"]
    figure.suptitle(
        f"seconds an epoch of margin training (49,000 images, estimated from steps): {settings['model']} width "
        f"{settings['width']}, batch {settings['batch_size']} + {settings['trigger_batch']}, K = {settings['steps']}, "
        f"{result['device']}, {result['threads']} thread(s)", fontsize=9)
    for ax, axis in zip(axes, AXES):
        for (rendering, precision), style in STYLE.items():
            points = [(r["value"], r["s_per_epoch"]) for r in result["rows"]
                      if (r["axis"], r["rendering"], r["precision"]) == (axis, rendering, precision)]
            ax.plot([x for x, _ in points], [y for _, y in points], style, label=f"{rendering} {precision}")
        ax.set_xlabel(axis)
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("s / epoch")
    axes[0].legend(fontsize=8)
    write_atomically(path, figure_png(figure))


@refuse_in_one_sentence
def main():
    """Measure the benchmark's margin rows along each of `AXES`, with its flags; Refusal for --objectives.

    Settings that two axes share are measured once. JSON and picture are written again after each setting, so that an
    interrupted sweep leaves what it has measured.
    """
    flags, device = set_up(description=__doc__, prog="figures.cost")
    if flags.objectives != OBJECTIVES:
        raise Refusal("--objectives: this measures margin steps alone; leave it out")
    path = Path(flags.json or HERE / "cost.json")
    result, measured = {**describe_benchmark(flags, device), "rows": []}, {}
    for axis, (flag, values) in AXES.items():
        for value in values:
            setting = vars(flags) | {flag: value}
            key = json.dumps(setting, sort_keys=True)
            if key not in measured:
                contenders = Contenders(argparse.Namespace(**setting), device)
                measured[key] = measure_steps(contenders, "margin")[0]
            result["rows"] += [{"axis": axis, "value": value, **row} for row in measured[key]]
            print(axis, value, ", ".join(f"{r['s_per_epoch']:.0f} s" for r in measured[key]), flush=True)
            write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
            draw(result, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
