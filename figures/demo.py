"""`python -m figures.demo`: watermark, steal, prove, in minutes on a CPU, on scikit-learn's digits.

It trains a benign model, a source whose triggers are learnt by ERM and one with the margin method, extracts both with
soft, hard and reg, and makes one table and one picture. The settings are the demo's own, not the paper's, because
digits are so well separated that eps = 5/255 has no effect: VGG-11 of a quarter of the width, triggers that are means
of two digits, eps = 20/255, lambda = 1 (Eq. 4), 12 epochs, last checkpoints.
"""

import json
import shlex
import sys
from pathlib import Path

import torch

import extraction
import train
from utils.ownership.table import format_table
from utils.system.flags import Parser
from utils.system.pictures import new_figure
from utils.system.refusals import refuse_in_one_sentence

COMMON = "-dt digits -nq 50 -nm 2 --width 16 --batch-size 32 -ep 12 --select last"
WATERMARK = "--reduction sum -v 1"
MARGIN = "--steps 5 --step-size 4"
ATTACKS = ("soft", "hard", "reg")
DECIDE = -3  # log10 p of T1 at which a theft counts as shown


@refuse_in_one_sentence
def main(argv=None):
    """Run what is missing, print the table and draw the picture; a second call continues an interrupted one."""
    parser = Parser(prog="python -m figures.demo", description=__doc__.splitlines()[0])
    parser.add_argument("-d", "--dir", default="experiments/demo", help="folder of the demo's runs")
    parser.add_argument("--seed", type=int, default=0, help="seed of all runs")
    args = parser.parse_args(argv)
    torch.set_num_threads(2)  # results depend on the number of threads: sums in another order, other last bits
    common = f"-d {shlex.quote(args.dir)} {COMMON} --seed {args.seed} --device cpu"
    name = "digits_vgg11_{}_50_"
    benign = Path(args.dir) / name.format("none")

    call(train, f"{common} -mt vgg11 -tt none")
    call(train, f"{common} -mt vgg11 -tt base {WATERMARK} --benign {shlex.quote(str(benign))}")
    call(train, f"{common} -mt vgg11 -tt margin {WATERMARK} {MARGIN} --benign {shlex.quote(str(benign))}")
    for kind in ("base", "margin"):
        for attack in ATTACKS:
            flags = f"-tt {kind} -tmt vgg11 -dmt vgg11 -at {attack} -admsg _{attack}"
            call(extraction, f"{common} {flags} --benign {shlex.quote(str(benign))}")

    summaries = {("none", "benign"): read(benign)}
    for kind in ("base", "margin"):
        folder = Path(args.dir) / name.format(kind)
        summaries[kind, "source"] = read(folder)
        for attack in ATTACKS:
            summaries[kind, attack] = read(folder / f"extraction_{attack}")
    titles = {"none": "no watermark", "base": "ERM", "margin": "margin"}
    rows = [summary | {"model": f"{titles[kind]}: {what}"} for (kind, what), summary in summaries.items()]
    print("\n" + format_table(rows))
    print(verdict(summaries))
    picture = Path(args.dir) / "demo.png"
    draw(summaries, picture)
    (Path(args.dir) / "demo.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(f"picture: {picture}")


def call(script, flags: str) -> None:
    """Run an entry script in this process as if it were called with these flags; prints the command."""
    print(f"\n$ python {script.__name__}.py {flags}", flush=True)
    sys.argv = [f"{script.__name__}.py", *shlex.split(flags)]
    script.main()


def read(folder: Path) -> dict:
    """The summary of the run in a folder."""
    return json.loads((folder / "summary.json").read_text())


def verdict(summaries) -> str:
    """What the table shows, in words that follow from its numbers; summaries {(kind, model): summary}."""
    lines = []
    for kind, title in (("base", "ERM"), ("margin", "margin")):
        shown = [a for a in ATTACKS if summaries[kind, a]["log10_p"]["T1"] <= DECIDE]
        missed = [a for a in ATTACKS if a not in shown]
        text = f"{title} watermark: theft shown (T1, p <= 0.001) for {', '.join(shown) or 'no attack'}"
        lines.append(text + (f"; not for {', '.join(missed)}" if missed else ""))
    p = summaries["none", "benign"]["log10_p"]["T1"]
    lines.append(f"benign model: {'WRONGLY claimed' if p <= DECIDE else 'not claimed'} (log10 p = {p:.2f})")
    return "\n".join(lines)


def draw(summaries, path: Path) -> None:
    """Draw the trigger accuracy of source and surrogates, ERM beside margin."""
    models = ("source", *ATTACKS)
    figure, (ax,) = new_figure(6, 3.4, 1, 1)
    styles = ((-0.2, "base", "ERM", "#E69F00", "//"), (0.2, "margin", "margin", "#0072B2", ""))
    for shift, kind, title, colour, hatch in styles:
        shares = [100 * summaries[kind, m]["trigger_hits"] / summaries[kind, m]["trigger_size"] for m in models]
        bars = ax.bar([i + shift for i in range(len(models))], shares, 0.38, label=title, color=colour, hatch=hatch)
        ax.bar_label(bars, fmt="%.0f", fontsize=8)
    ax.axhline(100 / 8, color="0.3", linewidth=1, linestyle=":", label="chance of a wrong answer (1/8)")
    ax.set_xticks(range(len(models)), ["source", *(f"{attack}\nsurrogate" for attack in ATTACKS)])
    ax.set_ylabel("trigger accuracy (%)")
    ax.set_ylim(0, 118)
    ax.set_title("Digits: does the watermark survive theft?", fontsize=10)
    ax.legend(fontsize=8, ncols=3, loc="upper right")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
