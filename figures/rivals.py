"""`python -m figures.rivals`: how often each verification claims benign models: EWE, RS, DI, EEF, and T1 beside them.

On scikit-learn's digits, one core, some minutes. The training images fall into two disjoint halves of PNG files. A
source of each method learns one of them; benign models of the same architecture learn the same half, or the other one,
by `train.py -tt none`; `utils.verify claim` and `eef` judge them, each beside five others, `claim` by a bank that moves
on from suspect to suspect. Nothing was stolen, so every claim is false. Writes rivals.json and rivals.md.

Dataset Inference is asked of perceptrons, on which a walk to the boundary is cheap, and every repeat draws source,
images and points anew: the source learns 128 images by heart, one benign model the same, one 128 others. A third of
all labels, private and unseen, is redrawn at random: digits are so easy that true ones leave no trace of what was
learnt by heart.
"""

import argparse
import contextlib
import io
import json
import shlex
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

import train
from figures.errors import InMemory, interval
from figures.make import check_folder
from utils import data, eef, inference, losses, verify
from utils.args import COUNT, Parser, train_args
from utils.fit import fit
from utils.refuse import Refusal, plainly
from utils.run import run_name
from utils.verdict import BANK

HERE = Path(__file__).resolve().parent
ALPHAS = (0.05, 0.001)
COMMON = "-dt folder -mt vgg11 --width 8 --batch-size 32 --select last --device cpu"
BENIGN = "-tt none -nq 1 -ep 10"
SOURCES = {
    "margin": "-tt margin -nq 50 -ep 12 --reduction sum -v 1 --steps 5 --step-size 4",
    "EWE": "-tt ewe -nq 50 -ep 8 --ewe-epochs 4 --ewe-source 9",
    "RS": "-tt rs -nq 50 -ep 24 --rs-draws 2 --rs-sigma-step 0.25 --rs-freeze-bn",
    "EEF": "-tt none -nq 1 -ep 10 --embed-features 0.2",
}
JUDGE = "--epochs 20"  # of EEF's classifier
HALVES = {"same": "the source's images", "other": "none of its images"}
TESTS = {
    "T1": "T1", "T2": f"T2, and more hits than each of {BANK} others",
    "T4": f"T4: more hits than each of {BANK} others",
    "published": "as published, beside one benign model", "calibrated": f"the same, and above each of {BANK} others",
    "Blind Walk": "as published, Blind Walk",
}
# of Dataset Inference
IMAGES, HIDDEN, EPOCHS, REDRAWN, POINTS, M = 128, 64, 200, 1 / 3, 100, 10


@plainly
def main(argv=None):
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
    if args.same < BANK + 2:
        raise Refusal(f"--same {args.same}: {BANK} models judge, EEF's classifier learns one, and one is left to be "
                      f"judged; pass {BANK + 2} or more")
    check_folder("--out", args.out)
    if args.redraw:
        found = read(args.out / "rivals.json")
    else:
        check_folder("--dir", args.dir)
        found = measure(args.dir, args.same, args.other, args.repeats)
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "rivals.json").write_text(json.dumps(found) + "\n")
    (args.out / "rivals.md").write_text(text(found))
    print(text(found))


def read(path: Path) -> dict:
    """The verdicts of an earlier call."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError) as error:
        raise Refusal(f"--redraw: {path} is not there or damaged; leave the flag out to measure anew") from error


def measure(folder: Path, same: int, other: int, repeats: int) -> dict:
    """Train what is missing and judge: {"verdicts", "sources", "perceptrons"}."""
    torch.set_num_threads(1)
    halves = {name: folder / "images" / name for name in HALVES}
    write_halves(halves)
    total = len(SOURCES) + (same + other) * (1 + len(SOURCES)) + repeats
    with tqdm(total=total, desc="rivals", unit="model", disable=None) as bar:
        sources = {name: run(folder, halves["same"], flags, name, 0, bar) for name, flags in SOURCES.items()}
        benign = {name: [run(folder, path, BENIGN, name, 100 * (1 + i) + seed, bar)
                         for seed in range({"same": same, "other": other}[name])]
                  for i, (name, path) in enumerate(halves.items())}
        found = {"verdicts": [], "sources": {}, "benign": accuracies(benign)}
        for name in ("margin", "EWE", "RS"):
            found["sources"][name], verdicts = claims(name, sources[name], benign, bar)
            found["verdicts"] += verdicts
        found["sources"]["EEF"], verdicts = gradients(sources["EEF"], benign, halves["same"], bar)
        found["verdicts"] += verdicts
        found["perceptrons"] = []
        for seed in range(repeats):
            found["perceptrons"].append(perceptrons(seed))
            bar.update()
    found["verdicts"] += distances(found["perceptrons"])
    return found | {"rows": rows(found["verdicts"])}


# ---- runs ---------------------------------------------------------------------------------------------------


def write_halves(halves: dict) -> None:
    """Digits as PNG files, every other training image in each folder; both have all test images."""
    digits = data.load("digits")
    images = data.Images(*(torch.cat(parts) for parts in zip(digits.train, digits.held_out)))
    for half, folder in enumerate(halves.values()):
        for part, kept in (("train", images.pick((images.indices % 2 == half).nonzero().flatten())),
                           ("test", digits.test)):
            for image, label, index in zip(*kept):
                path = folder / part / str(int(label)) / f"{int(index)}.png"
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def run(folder: Path, images: Path, flags: str, message: str, seed: int, bar) -> Path:
    """A finished run of train.py, in this process, which has paid for torch's start already."""
    words = [*shlex.split(f"{COMMON} {flags}"), "-d", str(folder), "--data-dir", str(images),
             "-msg", f"{message}-{seed}", "--seed", str(seed)]
    old, sys.argv = sys.argv, ["train.py", *words]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            train.main()
    finally:
        sys.argv = old
    bar.update()
    return folder / run_name(train_args(words), "vgg11")


def accuracies(benign: dict) -> dict:
    """Test accuracies of the benign models."""
    one = lambda path: json.loads((path / "summary.json").read_text())["test_accuracy"]
    return {name: [one(path) for path in paths] for name, paths in benign.items()}


def ask(*words) -> tuple[bool, dict]:
    """(whether everything was claimed, the figures) of a command of utils.verify."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "figures.json"
        status = verify.main([*map(str, words), "--json", str(path)])
        return status == 0, json.loads(path.read_text())


# ---- verdicts -----------------------------------------------------------------------------------------------


def verdict(method, test, level, shares, claimed, **more) -> dict:
    """One judgement of one benign model."""
    return {"method": method, "test": test, "level": level, "shares": shares, "claimed": bool(claimed), **more}


def claims(name: str, source: Path, benign: dict, bar):
    """(whether the source is claimed at each level, verdicts): by T1, or by T2 and T4 with five others as a bank."""
    def judge(suspect, bank):
        flags = ["claim", source, "--suspect", suspect, *(["--benign", *bank] if bank else [])]
        return [ask(*flags, "--alpha", alpha) for alpha in ALPHAS]

    same, test = benign["same"], "T1" if name == "margin" else "T2"
    banks = lambda i: [] if test == "T1" else [same[(i + j) % len(same)] for j in range(1, BANK + 1)]
    verdicts = []
    for shares, models in benign.items():
        for i, model in enumerate(models):
            decisions = judge(model, banks(i))
            figures = decisions[0][1]
            about = {"hits": figures["hits"], "of": figures["triggers"], "log10_p": figures["tests"][test]["log10_p"]}
            verdicts += [verdict(name, test, alpha, shares, holds, **about)
                         for alpha, (holds, _) in zip(ALPHAS, decisions)]
            if test == "T2":
                p = figures["tests"]["T4"]["log10_p"]
                verdicts.append(verdict(name, "T4", 1 / (BANK + 1), shares, 10**p * (BANK + 1) < 1.5, log10_p=p))
            bar.update()
    holds, figures = judge(source, banks(0))[-1]
    return {"claimed": holds, "hits": figures["hits"], "of": figures["triggers"]}, verdicts


def gradients(source: Path, benign: dict, images: Path, bar):
    """(whether EEF claims the victim, verdicts): the classifier learns the first benign model, the next five are the
    bank of the calibrated rule."""
    first, bank = benign["same"][0], benign["same"][1 : BANK + 1]
    judged = [("same", run) for run in benign["same"][BANK + 1 :]] + [("other", run) for run in benign["other"]]
    _, figures = ask("eef", source, "--data-dir", images, "--benign", first, *bank, "--device", "cpu",
                     *shlex.split(JUDGE), "--suspect", source, *(run for _, run in judged))
    victim, *rows = figures["suspects"]
    verdicts = []
    for (shares, _), row in zip(judged, rows):
        about = {"log10_p": row["log10_p"], "difference": row["difference"]}
        verdicts += [verdict("EEF", "published", eef.ALPHA, shares, row["published"], **about),
                     verdict("EEF", "calibrated", eef.ALPHA, shares, row["claim"], above=row["above"], **about)]
    bar.update(len(benign["same"]) + len(benign["other"]))
    return {"claimed": victim["claim"], "difference": victim["difference"]}, verdicts


class Still(data.Batches):
    """Without crops and mirrors, which a perceptron cannot learn from so few images."""

    PAD = 0


def perceptrons(seed: int) -> dict:
    """Figures of Dataset Inference for a source, a model of its images and one of others, all drawn by the seed."""
    digits, draw = data.load("digits"), torch.Generator().manual_seed(seed)

    def redrawn(images):
        y = images.labels
        anew = torch.rand(len(y), generator=draw) < REDRAWN
        return images._replace(labels=torch.where(anew, torch.randint(10, y.shape, generator=draw), y))

    order = torch.randperm(len(digits.train.labels), generator=draw)
    parts = [redrawn(digits.train.pick(order[i * IMAGES : (i + 1) * IMAGES])) for i in (0, 1)]
    points = [images.pick(torch.randperm(len(images.labels), generator=draw)[:POINTS])
              for images in (parts[0], redrawn(digits.test))]

    def learn(part, number):
        torch.manual_seed(3 * seed + number)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3072, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
        fit(InMemory(), model, losses.Plain(), Still(parts[part], 32, flip=False), lambda _: {"val_accuracy": 0.0},
            lambda *_: {}, epochs=EPOCHS, lr=0.05, weight_decay=1e-4, seed=3 * seed + number)
        return model.eval().requires_grad_(False)

    judge = inference.Inference(learn(0, 0), *points, kind="blind", m=M, seed=seed)
    return {"source": judge.source, "same": judge.test(learn(0, 1)), "other": judge.test(learn(1, 2))}


def distances(repeats: list[dict]) -> list[dict]:
    """Verdicts of Dataset Inference."""
    return [verdict("DI", "Blind Walk", inference.ALPHA, shares, repeat[shares]["claim"],
                    log10_p=repeat[shares]["log10_p"]) for shares in HALVES for repeat in repeats]


# ---- the table ----------------------------------------------------------------------------------------------


def rows(verdicts: list[dict]) -> list[dict]:
    """Verdicts -> a row for each method, test, level and what the models share, with the counts and their interval."""
    groups = {}
    for one in verdicts:
        groups.setdefault((one["method"], one["test"], one["level"], one["shares"]), []).append(one["claimed"])
    return [{**dict(zip(("method", "test", "level", "shares"), key)), "claims": sum(claimed), "of": len(claimed),
             "interval": interval(sum(claimed), len(claimed))} for key, claimed in groups.items()]


READING = f"""How to read it. None of these models is a copy, so every claim is false; that DI claims models which
learnt the source's images is its design: it asks for knowledge of images, not for theft. Few models say little: with
none of 10 claimed a rate of 0.3 is still possible, and a level of 0.001 cannot be confirmed here. But for DI, whose
every draw is new, the models of a row face one source, one trigger set or style and, under EEF, one benign model and
one bank: the interval is about further models, not about further sources. T1 is exact whatever a suspect is (errors.md
draws labels anew). T2 and T4 hold as far as their bank is like the suspect; with {BANK} others T4 has a level of
1/{BANK + 1}. The p of DI and EEF is a harmonic mean of overlapping tests, which has no level even on paper.
"""


def text(found: dict) -> str:
    """rivals.md."""
    lines = ["# False claims of benign models, measured", "", "`python -m figures.rivals`, on digits.", "",
             "| method | test | level | benign models learnt | false claims | 95 % interval (Clopper-Pearson) |",
             "|---|---|---|---|---|---|"]
    for row in rows(found["verdicts"]):
        low, high = row["interval"]
        lines.append(f"| {row['method']} | {TESTS[row['test']]} | {row['level']:.3g} | {HALVES[row['shares']]} | "
                     f"{row['claims']} of {row['of']} | {low:.3f} to {high:.3f} |")
    said = []
    for name, source in found["sources"].items():
        hits = f", {source['hits']} of {source['of']} triggers hit" if "hits" in source else ""
        said.append(f"{name} {'claimed' if source['claimed'] else 'NOT claimed'}{hits}")
    draws = [repeat["source"]["claim"] for repeat in found["perceptrons"]]
    said.append(f"DI claimed in {sum(draws)} of {len(draws)} draws")
    lines += ["", f"The sources themselves: {'; '.join(said)}.", "", f"Settings (`train.py {COMMON}` everywhere):", ""]
    for name, values in found["benign"].items():
        lines.append(f"- {len(values)} benign models that learnt {HALVES[name]}: `{BENIGN}`, test accuracy "
                     f"{100 * min(values):.1f} to {100 * max(values):.1f} %; same architecture, size and settings")
    lines += [f"- source {name}: `{flags}`" + (f"; judged with `{JUDGE}`" if name == "EEF" else "")
              for name, flags in SOURCES.items()]
    lines.append(f"- DI: perceptrons of {HIDDEN} hidden units on {IMAGES} images, {EPOCHS} epochs, a third of the "
                 f"labels redrawn; {POINTS} private and {POINTS} unseen points, m = {M}")
    return "\n".join([*lines, "", READING])


if __name__ == "__main__":
    main()
