"""`python -m figures.demo`: watermark, steal, prove, in a minute or two on a CPU, on scikit-learn's digits.

It trains a benign model, a source whose triggers are learnt by ERM and one with the margin method, copies both with
soft labels and the margin source with hard ones too, and makes one table. The settings are the demo's
own, not the paper's, because digits are so well separated that eps = 5/255 has no effect: VGG-11 of an eighth of the
width, triggers that are means of two digits, eps = 20/255 in two steps, lambda = 1 (Eq. 4), 12 epochs, last
checkpoints. Eight settings were tried on seed 0 and two on seeds 0 to 2 (with 50 triggers the soft copy of one of three
ERM sources was claimed too); these are confirmed on seeds 3 to 9, with one thread:
`python -m figures.demo --seeds 0 1 2 3 4 5 6 7 8 9` adds rows to demo_seeds.json and demo_seeds.md.
"""

import os
import shlex
import time
from pathlib import Path

import torch
from tqdm import tqdm

import extraction
import train
from figures.rows import WATERMARK_NAMES
from figures.shared import HERE, call, figure_parser, markdown_table, write_result
from utils.ownership.pvalues import bonferroni
from utils.ownership.results import LOG_ALPHA
from utils.runs.folder import format_table
from utils.system.files import read_json
from utils.system.refusals import SEED, refuse_in_one_sentence

M = 25  # triggers
COMMON = f"-dt digits -nq {M} -nm 2 --width 8 --batch-size 32 -ep 12 --select last"
WATERMARK = "--reduction sum -v 1 --trigger-batch 10"
MARGIN = "--steps 2 --step-size 10"
COPIES = (("base", "soft"), ("margin", "soft"), ("margin", "hard"))


@refuse_in_one_sentence
def main(argv=None):
    """Run what is missing and print the table; a second call continues an interrupted one."""
    parser = figure_parser("demo", __doc__)
    parser.add_argument("-d", "--dir", type=Path, default="experiments/demo", help="folder of the demo's runs")
    parser.add_argument("--seeds", type=SEED, nargs="+", metavar="S",
                        help="run these seeds instead, in folders of their own below DIR, and add their rows to --out")
    parser.add_argument("--out", type=Path, default=HERE / "demo_seeds.json", help="rows of --seeds; a .md beside it")
    args = parser.parse_args(argv)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(2)  # sums in another order have other last bits, so results depend on the number
    if args.seeds:
        confirm(args)
        return
    found = run(args.dir, 0)
    rows = [figures | {"model": f"{WATERMARK_NAMES[kind]}: {what}"} for (kind, what), figures in found.items()]
    print("\n" + format_table(rows))
    print(verdict(found))


def run(folder: Path, seed: int, quiet: bool = False) -> dict:
    """{(-tt, "source" or attack): summary} of the demo's six trainings in `folder`; finished ones are only read."""
    common = f"-d {shlex.quote(str(folder))} {COMMON} --seed {seed} --device cpu"
    of = lambda kind: folder / f"digits_vgg11_{kind}_{M}_"
    against = f"--benign {shlex.quote(str(of('none')))}"
    call(train, f"{common} -mt vgg11 -tt none", quiet)
    call(train, f"{common} -mt vgg11 -tt base {WATERMARK} {against}", quiet)
    call(train, f"{common} -mt vgg11 -tt margin {WATERMARK} {MARGIN} {against}", quiet)
    for kind, attack in COPIES:
        flags = f"{common} -tt {kind} -tmt vgg11 -dmt vgg11 -at {attack} -admsg _{attack} {against}"
        call(extraction, flags, quiet)
    places = {("none", "benign"): of("none"), ("base", "source"): of("base"), ("margin", "source"): of("margin")}
    places |= {(kind, attack): of(kind) / f"extraction_{attack}" for kind, attack in COPIES}
    order = sorted(places, key=lambda place: list(WATERMARK_NAMES).index(place[0]))  # each source before its copies
    return {place: read_json(places[place] / "summary.json") for place in order}


def log10_p(figures: dict) -> float:
    """log10 p of T1 and T1p together: the smaller p, doubled."""
    return bonferroni(figures["log10_p"]["T1"], figures["log10_p"]["T1p"])


def verdict(found: dict) -> str:
    """One line that says what was shown, what was not and what it costs, from the numbers of `run`."""
    names = {("margin", "soft"): "the margin source's soft copy", ("margin", "hard"): "its hard copy",
             ("base", "soft"): "the ERM source's soft copy", ("none", "benign"): "the benign model"}
    wrongly = lambda key: " WRONGLY" if key == ("none", "benign") and log10_p(found[key]) <= LOG_ALPHA else ""
    p = lambda key: f"10^{log10_p(found[key]):.1f}" if log10_p(found[key]) <= -0.05 else "1"
    said = lambda keys: ", ".join(f"{names[key]}{wrongly(key)} (p = {p(key)})" for key in keys)
    claimed = [key for key in names if log10_p(found[key]) <= LOG_ALPHA]
    others = [key for key in names if key not in claimed]
    price = 100 * (found["none", "benign"]["test_accuracy"] - found["margin", "source"]["test_accuracy"])
    return (f"Claimed as copies (p <= 0.001): {said(claimed) or 'none'}. Not claimed: {said(others) or 'none'}. The "
            f"margin watermark costs {price:.0f} points of accuracy.")


def confirm(args) -> None:
    """Run `args.seeds` quietly, one after the other, and add a row for each to `args.out` and the table beside it."""
    path = Path(str(args.out).removesuffix(".json") + ".json")
    table = read_json(path) or {"command": "python -m figures.demo --seeds 0 1 2 3 4 5 6 7 8 9", "rows": []}
    about = {"torch": torch.__version__.split("+")[0], "threads": torch.get_num_threads()}
    for seed in tqdm(args.seeds, desc="seeds", disable=None):
        began = time.monotonic()
        found = run(seed_folder(args.dir, seed), seed, quiet=True)
        row = about | {"seed": seed, "seconds": round(time.monotonic() - began)}
        for (kind, what), figures in found.items():
            row[f"{WATERMARK_NAMES[kind]}: {what}"] = {
                "test_accuracy": figures["test_accuracy"], "hits": figures["trigger_hits"],
                "T1": figures["log10_p"]["T1"], "T1p": figures["log10_p"]["T1p"], "log10_p": log10_p(figures)}
        same = lambda old, row=row: all(old[key] == row[key] for key in ("torch", "threads", "seed"))
        table["rows"] = [old for old in table["rows"] if not same(old)] + [row]
        table["rows"].sort(key=lambda row: (row["torch"], row["threads"], row["seed"]))
        write_result(path, table, seeds_markdown(table), indent=2)


def seed_folder(folder: Path, seed: int) -> Path:
    """The folder below `folder` of a seed's runs with this build of torch and this number of threads."""
    return folder / f"{torch.__version__.split('+')[0]}-{torch.get_num_threads()}-{seed}"


def seeds_markdown(table: dict) -> str:
    """demo_seeds.md: a row for each build, number of threads and seed; log10 p of T1 and T1p, the smaller doubled."""
    models, rows = ["margin: soft", "margin: hard", "ERM: soft", "no watermark: benign"], []
    for row in table["rows"]:
        accuracy = ", ".join(f"{100 * row[m]['test_accuracy']:.1f}" for m in (models[-1], "margin: source"))
        bold = {m: "**" if row[m]["log10_p"] <= LOG_ALPHA else "" for m in models}
        rows.append([row["torch"], row["threads"], row["seed"], accuracy,
                     *(f"{row[m]['hits']}, {bold[m]}{row[m]['log10_p']:.2f}{bold[m]}" for m in models)])
    counts = [f"{m} {sum(row[m]['log10_p'] <= LOG_ALPHA for row in table['rows'])}" for m in models]
    return (f"# The demo on ten seeds\n\n`{table['command']}`. Cells: hits of {M} triggers, log10 p of T1 and T1p, the "
            "smaller p doubled; bold: claimed, p <= 0.001. Accuracies: benign model, margin source.\n\n"
            + markdown_table(["torch", "threads", "seed", "accuracy %", *models], rows)
            + f"\n\nClaimed, of {len(rows)} rows: {', '.join(counts)}.\n")


if __name__ == "__main__":
    main()
