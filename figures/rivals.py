"""`python -m figures.rivals`: how often each verification claims benign models: EWE, RS, DI, EEF, and T1 beside them.

On scikit-learn's digits, one core, some minutes. The training images are split into two disjoint halves of PNG files. A
source of each method is trained on one half; benign models of the same architecture are trained on the same half or on
the other one, by `train.py -tt none`; `utils.verify claim` and `eef` test them, T2 and EEF beside five others.
Nothing was stolen, so every claim is false. Dataset Inference is measured on perceptrons instead, on which a walk to
the boundary is cheap. Writes rivals.json and rivals.md; finished runs are used as they are.
"""

import contextlib
import io
import shlex
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

import train
from figures.shared import call, experiment_parser, interval, markdown_table, parse_with_folders, write_result
from figures.toy import PointBatches, train_in_memory
from utils.data.sets import Images, load_data
from utils.flags import source_folder, train_flags
from utils.ownership.verdict import MIN_BANK
from utils.rivals.dataset_inference import DI_ALPHA, di_figures
from utils.rivals.embedded_features import EEF_ALPHA
from utils.system.files import read_json
from utils.system.refusals import refuse_in_one_sentence
from utils.training.loop import PlainObjective
from utils.verify import main as verify_main

ALPHAS = (0.05, 0.001)
COMMON = "-dt folder -mt vgg11 --width 8 --batch-size 32 --select last --device cpu"
BENIGN = "-tt none -nq 1 -ep 10"
SOURCES = {
    "margin": "-tt margin -nq 50 -ep 12 --reduction sum -v 1 --steps 5 --step-size 4",
    "EWE": "-tt ewe -nq 50 -ep 8 --ewe-epochs 4 --ewe-source 9",
    "RS": "-tt rs -nq 50 -ep 24 --rs-draws 2 --rs-sigma-step 0.25 --rs-freeze-bn",
    "EEF": "-tt none -nq 1 -ep 10 --embed-features 0.2",
}
EEF_FLAGS = "--epochs 20"  # of utils.verify eef
# what a benign model shares with the source: the same half of the training images, or the other one
HALVES = {"same": "the source's images", "other": "none of its images"}
SEEDS = {"same": range(100, 116), "other": range(200, 210)}  # of the benign models
# perceptrons: training images, hidden units, epochs; private and as many unseen points; scores of one t-test
PERCEPTRON_IMAGES, HIDDEN, PERCEPTRON_EPOCHS, PERCEPTRON_POINTS, PERCEPTRON_M = 128, 64, 200, 100, 10
REPEATS, REDRAWN = 12, 1 / 3  # draws of Dataset Inference, two models each; share of random labels


@refuse_in_one_sentence
def main(argv=None):
    parser = experiment_parser("rivals", __doc__)
    args = parse_with_folders(parser, argv)
    figures = measure_false_claims(args.dir)
    figures["rows"] = count_verdicts(figures["verdicts"])
    write_result(args.out / "rivals.json", figures, rivals_markdown(figures))


def measure_false_claims(folder: Path) -> dict:
    """Train the models that are missing in `folder` and test them; the content of rivals.json."""
    torch.set_num_threads(1)
    halves = {name: folder / "images" / name for name in HALVES}
    write_image_halves(halves)
    wanted = [(name, 0, "same", flags) for name, flags in SOURCES.items()]
    wanted += [(half, seed, half, BENIGN) for half, seeds in SEEDS.items() for seed in seeds]
    runs = {(name, seed): train_run(folder, halves[half], flags, name, seed)
            for name, seed, half, flags in tqdm(wanted, desc="models", disable=None)}
    benign = {half: [runs[half, seed] for seed in seeds] for half, seeds in SEEDS.items()}
    accuracy = lambda run: read_json(run / "summary.json")["test_accuracy"]
    sources, verdicts = {}, []
    for name in SOURCES:
        source = runs[name, 0]
        sources[name], found = (eef_verdicts(source, benign, halves["same"]) if name == "EEF"
                                else trigger_verdicts(name, source, benign))
        verdicts += found
    perceptrons = [perceptron_figures(seed) for seed in tqdm(range(REPEATS), desc="DI", disable=None)]
    verdicts += [verdict_row("DI", "Blind Walk", DI_ALPHA, shares, found[shares]["claim"],
                             log10_p=found[shares]["log10_p"]) for shares in HALVES for found in perceptrons]
    return {"verdicts": verdicts, "sources": sources,
            "benign": {half: list(map(accuracy, own)) for half, own in benign.items()},
            "perceptrons": perceptrons}


# ---- images and runs of train.py on them ----


def write_image_halves(halves: dict) -> None:
    """Write digits as PNG files into the two folders of `halves`: every other training image each, all test images.

    Held-out images count as training images; train.py splits them off again.
    """
    digits = load_data("digits")
    images = Images(*(torch.cat(parts) for parts in zip(digits.train, digits.held_out)))
    for half, folder in enumerate(halves.values()):
        own_half = images.pick((images.indices % 2 == half).nonzero().flatten())
        for part, content in (("train", own_half), ("test", digits.test)):
            for image, label, index in zip(*content):
                path = folder / part / str(int(label)) / f"{int(index)}.png"
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def train_run(folder: Path, images: Path, flags: str, message: str, seed: int) -> Path:
    """The folder of a finished run of train.py with `flags`, on the images in the folder `images`."""
    words = f"{COMMON} {flags} -d {shlex.quote(str(folder))} --data-dir {shlex.quote(str(images))}"
    words += f" -msg {message}-{seed} --seed {seed}"
    call(train, words, quiet=True)
    flags = train_flags(shlex.split(words))
    return source_folder(flags, flags.model_type)


# ---- verdicts of utils.verify: T1, T2, T4 and EEF ----


def ask_verify(*words) -> tuple[bool, dict]:
    """(whether all suspects were claimed, the JSON that it writes) of a command of utils.verify."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "figures.json"
        return verify_main([*map(str, words), "--json", str(path)]) == 0, read_json(path)


def verdict_row(method, test, level, shares, claimed, **more) -> dict:
    """The verdict of one test at one level on one benign model; `shares` is a key of HALVES."""
    return {"method": method, "test": test, "level": level, "shares": shares, "claimed": bool(claimed), **more}


def trigger_verdicts(name: str, source: Path, benign: dict):
    """(figures of the source `name`, verdicts on all models of `benign`) of `utils.verify claim`.

    By the owner's T1 on the margin source, else by T2 and T4 with five other models of the source's images as the bank,
    which changes from suspect to suspect, so that no model is compared with itself.
    """
    same, test, level = benign["same"], "T1" if name == "margin" else "T2", 1 / (MIN_BANK + 1)

    def decide(suspect, i):
        bank = ["--benign", *(same[(i + j) % len(same)] for j in range(1, MIN_BANK + 1))] if test == "T2" else []
        flags = ["claim", source, "--suspect", suspect, "--trust-owner", *bank, *(["--test", test] * (test == "T1"))]
        return [ask_verify(*flags, "--alpha", alpha) for alpha in ALPHAS]

    verdicts = []
    for shares, suspects in benign.items():
        for i, suspect in enumerate(tqdm(suspects, desc=f"{name}, {shares}", disable=None, leave=False)):
            decisions = decide(suspect, i)
            figures = decisions[0][1]
            more = {"hits": figures["hits"], "of": figures["triggers"], "log10_p": figures["tests"][test]["log10_p"]}
            verdicts += [verdict_row(name, test, alpha, shares, holds, **more)
                         for alpha, (holds, _) in zip(ALPHAS, decisions)]
            if test == "T2":
                t4 = figures["tests"]["T4"]["log10_p"]
                verdicts.append(verdict_row(name, "T4", level, shares, 10**t4 < 1.5 * level, log10_p=t4))
    holds, figures = decide(source, 0)[-1]
    return {"claimed": holds, "hits": figures["hits"], "of": figures["triggers"]}, verdicts


def eef_verdicts(source: Path, benign: dict, images: Path):
    """(figures of the victim, verdicts on benign models) of `utils.verify eef`.

    The classifier is trained on the first model of the source's images; the next five are the bank of the calibrated
    rule; all others are suspects.
    """
    first, bank = benign["same"][0], benign["same"][1 : MIN_BANK + 1]
    suspects = [("same", run) for run in benign["same"][MIN_BANK + 1 :]] + [("other", run) for run in benign["other"]]
    _, figures = ask_verify("eef", source, "--data-dir", images, "--benign", first, *bank, "--device", "cpu",
                            *shlex.split(EEF_FLAGS), "--suspect", source, *(run for _, run in suspects))
    victim, *rows = figures["suspects"]
    verdicts = []
    for (shares, _), row in zip(suspects, rows):
        more = {"log10_p": row["log10_p"], "difference": row["difference"]}
        verdicts += [verdict_row("EEF", "published", EEF_ALPHA, shares, row["published"], **more),
                     verdict_row("EEF", "calibrated", EEF_ALPHA, shares, row["claim"], above=row["above"], **more)]
    return {"claimed": victim["claim"], "difference": victim["difference"]}, verdicts


# ---- Dataset Inference on perceptrons ----


def perceptron_figures(seed: int) -> dict:
    """Dataset Inference on a source, a model of the same images and one of others: {"source", "same", "other"}.

    The seed draws images, labels, points and models. The source memorises `PERCEPTRON_IMAGES` images, one benign model
    the same images, another one as many others. A third of all labels, private and unseen, is replaced at random:
    digits are so easy that with true labels a model's distances show nothing of what it has memorised. The figures are
    those of `di_figures`.
    """
    digits, draw = load_data("digits"), torch.Generator().manual_seed(seed)

    def redrawn(images):
        y = images.labels
        is_redrawn = torch.rand(len(y), generator=draw) < REDRAWN
        return images._replace(labels=torch.where(is_redrawn, torch.randint(10, y.shape, generator=draw), y))

    order = torch.randperm(len(digits.train.labels), generator=draw)
    parts = [redrawn(digits.train.pick(order[i * PERCEPTRON_IMAGES : (i + 1) * PERCEPTRON_IMAGES])) for i in (0, 1)]
    points = [images.pick(torch.randperm(len(images.labels), generator=draw)[:PERCEPTRON_POINTS])
              for images in (parts[0], redrawn(digits.test))]

    def perceptron(part, number):
        torch.manual_seed(3 * seed + number)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3072, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
        # without crops: a perceptron does not learn from so few images if they are augmented
        batches = PointBatches(parts[part].images.float().div(255), parts[part].labels, 32)
        return train_in_memory(model, PlainObjective(), batches, epochs=PERCEPTRON_EPOCHS, lr=0.05,
                               seed=3 * seed + number)

    models = [perceptron(0, 0), perceptron(0, 1), perceptron(1, 2)]
    return dict(zip(("source", "same", "other"), di_figures(models, *points, walk="blind", m=PERCEPTRON_M, seed=seed)))


# ---- rivals.md ----

TESTS = {
    "T1": "T1", "T2": f"T2, and more hits than each of {MIN_BANK} others",
    "T4": f"T4: more hits than each of {MIN_BANK} others",
    "published": "beside one benign model alone",
    "calibrated": f"the same, and above each of {MIN_BANK} others",
    "Blind Walk": "Blind Walk",
}
READING = f"""How to read it. None of these models is a copy, so every claim is false; that DI claims models which
learnt the source's images is its design: it asks for knowledge of images, not for theft. Few models say little: with
none of 10 claimed a rate of 0.3 is still possible, and a level of 0.001 cannot be confirmed here. But for DI, whose
every draw is new, the models of a row face one source, one trigger set or style and, under EEF, one benign model and
one bank: the interval is about further models, not about further sources. T1 is exact whatever a suspect is (null.md
draws labels anew). T2 and T4 hold as far as their bank is like the suspect; with {MIN_BANK} others T4 has a level of
1/{MIN_BANK + 1}. The p of DI and EEF is a harmonic mean of overlapping tests, which has no level even on paper.
"""


def count_verdicts(verdicts: list[dict]) -> list[dict]:
    """Rows of `verdict_row` -> a row for each method, test, level and half of the images, with counts and interval."""
    groups = {}
    for row in verdicts:
        groups.setdefault((row["method"], row["test"], row["level"], row["shares"]), []).append(row["claimed"])
    return [{**dict(zip(("method", "test", "level", "shares"), key)), "claims": sum(claimed), "of": len(claimed),
             "interval": interval(sum(claimed), len(claimed))} for key, claimed in groups.items()]


def rivals_markdown(figures: dict) -> str:
    """The content of rivals.md; `figures` is that of rivals.json."""
    rows = [[row["method"], TESTS[row["test"]], f"{row['level']:.3g}", HALVES[row["shares"]],
             f"{row['claims']} of {row['of']}", "{:.3f} to {:.3f}".format(*row["interval"])]
            for row in figures["rows"]]
    claims = []
    for name, source in figures["sources"].items():
        hits = f", {source['hits']} of {source['of']} triggers hit" if "hits" in source else ""
        claims.append(f"{name} {'claimed' if source['claimed'] else 'NOT claimed'}{hits}")
    draws = [repeat["source"]["claim"] for repeat in figures["perceptrons"]]
    benign = [f"- {len(values)} benign models that learnt {HALVES[name]}: `{BENIGN}`, test accuracy "
              f"{100 * min(values):.1f} to {100 * max(values):.1f} %; same architecture, size and settings"
              for name, values in figures["benign"].items()]
    sources = [f"- source {name}: `{flags}`" + (f"; judged with `{EEF_FLAGS}`" if name == "EEF" else "")
               for name, flags in SOURCES.items()]
    points = PERCEPTRON_POINTS
    return "\n".join([
        "# False claims of benign models, measured", "", "`python -m figures.rivals`, on digits.", "",
        markdown_table(["method", "test", "level", "benign models learnt", "false claims",
                        "95 % interval (Clopper-Pearson)"], rows), "",
        f"The sources themselves: {'; '.join(claims)}; DI claimed in {sum(draws)} of {len(draws)} draws.", "",
        f"Settings (`train.py {COMMON}` everywhere):", "", *benign, *sources,
        f"- DI: perceptrons of {HIDDEN} hidden units on {PERCEPTRON_IMAGES} images, {PERCEPTRON_EPOCHS} epochs, a "
        f"third of the labels redrawn; {points} private and {points} unseen points, m = {PERCEPTRON_M}", "",
        *([figures["note"], ""] if "note" in figures else []), READING])


if __name__ == "__main__":
    main()
