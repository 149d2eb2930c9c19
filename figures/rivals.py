"""`python -m figures.rivals`: how often each verification claims benign models: EWE, RS, DI, EEF, and T1 beside them.

On scikit-learn's digits, one core, some minutes. The training images are split into two disjoint halves of PNG files. A
source of each method is trained on one half; benign models of the same architecture are trained on the same half or on
the other one, by `train.py -tt none`; `utils.verify claim` and `eef` test them, each beside five other models.
Nothing was stolen, so every claim is false. Dataset Inference is measured on perceptrons instead, see
`figures.false_claims.perceptrons`. Writes rivals.json and rivals.md; finished runs are used as they are.
"""

import argparse
import json
from pathlib import Path

import torch
from tqdm import tqdm

from figures.false_claims.perceptrons import di_verdicts, perceptron_figures
from figures.false_claims.runs import benign_accuracies, train_run, write_image_halves
from figures.false_claims.settings import BENIGN, HALVES, SOURCES
from figures.false_claims.table import count_verdicts, rivals_markdown
from figures.false_claims.verdicts import eef_verdicts, trigger_verdicts
from figures.make import check_folder
from utils.ownership.verdict import MIN_BANK
from utils.system.refusals import COUNT, Parser, Refusal, refuse_in_one_sentence

HERE = Path(__file__).resolve().parent


@refuse_in_one_sentence
def main(argv=None):
    """Measure the false claims or read them, and write rivals.json and rivals.md."""
    parser = Parser(prog="python -m figures.rivals", description=__doc__.splitlines()[0], allow_abbrev=False,
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("-d", "--dir", type=Path, default="experiments/rivals",
                        help="folder of the runs; finished ones are taken as they are")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of rivals.json and rivals.md")
    parser.add_argument("--same", type=COUNT, default=16, help="benign models of the source's images")
    parser.add_argument("--other", type=COUNT, default=10, help="benign models of other images")
    parser.add_argument("--repeats", type=COUNT, default=12, help="draws of Dataset Inference: two models each")
    parser.add_argument("--redraw", action="store_true", help="write rivals.md from the verdicts in OUT/rivals.json")
    args = parser.parse_args(argv)
    if args.same < MIN_BANK + 2:
        raise Refusal(f"--same {args.same}: {MIN_BANK} models judge, EEF's classifier learns one, and one is left to "
                      f"be judged; pass {MIN_BANK + 2} or more")
    check_folder("--out", args.out)
    if args.redraw:
        figures = read_verdicts(args.out / "rivals.json")
    else:
        check_folder("--dir", args.dir)
        figures = measure_false_claims(args.dir, args.same, args.other, args.repeats)
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "rivals.json").write_text(json.dumps(figures) + "\n")
    (args.out / "rivals.md").write_text(rivals_markdown(figures))
    print(rivals_markdown(figures))


def read_verdicts(path: Path) -> dict:
    """The content of an earlier call's rivals.json; Refusal where it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError) as error:
        raise Refusal(f"--redraw: {path} is not there or damaged; leave the flag out to measure anew") from error


def measure_false_claims(folder: Path, same: int, other: int, repeats: int) -> dict:
    """Train the models that are missing and test them; the content of rivals.json.

    same, other  numbers of benign models trained on the source's half of the images, and on the other half
    repeats      draws of Dataset Inference
    """
    torch.set_num_threads(1)
    halves = {name: folder / "images" / name for name in HALVES}
    write_image_halves(halves)
    total = len(SOURCES) + (same + other) * (1 + len(SOURCES)) + repeats
    with tqdm(total=total, desc="rivals", unit="model", disable=None) as bar:
        sources = {name: train_run(folder, halves["same"], flags, name, 0, bar) for name, flags in SOURCES.items()}
        benign = {name: [train_run(folder, path, BENIGN, name, 100 * (1 + i) + seed, bar)
                         for seed in range({"same": same, "other": other}[name])]
                  for i, (name, path) in enumerate(halves.items())}
        figures = {"verdicts": [], "sources": {}, "benign": benign_accuracies(benign)}
        for name in ("margin", "EWE", "RS"):
            figures["sources"][name], verdicts = trigger_verdicts(name, sources[name], benign, bar)
            figures["verdicts"] += verdicts
        figures["sources"]["EEF"], verdicts = eef_verdicts(sources["EEF"], benign, halves["same"], bar)
        figures["verdicts"] += verdicts
        figures["perceptrons"] = []
        for seed in range(repeats):
            figures["perceptrons"].append(perceptron_figures(seed))
            bar.update()
    figures["verdicts"] += di_verdicts(figures["perceptrons"])
    return figures | {"rows": count_verdicts(figures["verdicts"])}


if __name__ == "__main__":
    main()
