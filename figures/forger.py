"""What a dishonest owner can forge against an innocent model, by which verification: `python -m figures.forger`.

On scikit-learn's digits, minutes on one core. The forger has one half of the training images, and asks two innocent
models of the other half, a poor and a good one, as often as he likes, before he publishes anything. For each method the
script makes the forged claim that costs him least and prints its p-value, what he tried, and whether a stranger is
persuaded. Writes forger.json and forger.md; finished runs are used as they are.
"""

from pathlib import Path

import torch
from tqdm import tqdm

from figures.rivals import BENIGN, SOURCES, train_run, write_image_halves
from figures.shared import DECIDE, check_folder, experiment_parser, markdown_table, write_result
from utils.data.sets import load_data
from utils.ownership import pvalues
from utils.ownership.verdict import MIN_BANK
from utils.rivals.dataset_inference import di_figures
from utils.rivals.embedded_features import (
    compare_posteriors,
    grad_sign_vector,
    posterior,
    style_images,
    train_classifier,
)
from utils.runs.checkpoints import find_checkpoint, read_model
from utils.system.refusals import COUNT, refuse_in_one_sentence
from utils.training.metrics import accuracy, predict
from utils.watermark.prepared import labels_from_beacon
from utils.watermark.triggers import draw_triggers

M = 40  # triggers of a forged claim
COMMITMENTS = 100  # image commitments that a forger makes before the beacon
POINTS = 40  # private and unseen points of Dataset Inference each


@refuse_in_one_sentence
def main(argv=None):
    """Train what is missing, forge each claim, print the table and write the files."""
    parser = experiment_parser("forger", __doc__)
    parser.add_argument("--tries", type=COUNT, default=10_000, help="seeds, and noise images, that the forger tries")
    args = parser.parse_args(argv)
    check_folder("-d", args.dir)
    check_folder("--out", args.out)
    models = train_models(args.dir)
    data = load_data("folder", args.dir / "images-a")
    rows = []
    for name in ("poor", "good"):
        suspect = models[name]
        about = {"suspect": name, "accuracy": accuracy(suspect, data.test.images, data.test.labels)}
        for forge in (forge_seeds, forge_beacon, forge_single_label, forge_points, forge_images):
            rows.append(about | forge(suspect, models, data, args.tries))
    content = {"command": f"python -m figures.forger --tries {args.tries}", "torch": torch.__version__, "rows": rows}
    text = f"# Forged claims\n\n`{content['command']}`\n\n{forger_table(rows)}\n"
    write_result(args.out / "forger.json", content, text, indent=1)


def train_models(folder: Path) -> dict:
    """{"poor", "good": innocent models of one half of the digits; "bank": models of the other, the forger's half;
    "source", "styled": his own ones}, frozen."""
    halves = {"a": folder / "images-a", "b": folder / "images-b"}
    write_image_halves(halves)
    wanted = {"poor": ("b", "-tt none -nq 1 -ep 1", 1), "good": ("b", BENIGN, 2), "source": ("a", BENIGN, 3),
              "styled": ("a", SOURCES["EEF"], 4), **{f"bank{i}": ("a", BENIGN, 10 + i) for i in range(MIN_BANK)}}
    models = {}
    for name, (half, flags, seed) in tqdm(wanted.items(), desc="models", unit="run", disable=None, leave=False):
        models[name] = read_model(find_checkpoint(train_run(folder / "runs", halves[half], flags, name, seed), None))
    return {"bank": [models.pop(f"bank{i}") for i in range(MIN_BANK)]} | models


def found(method: str, tried: str, log10_p: float, stranger: bool, log10_p_of_stranger: float | None = None) -> dict:
    """A row of the table: what the forger did, p for a judge who trusts him, and what a stranger says."""
    return {"method": method, "tried": tried, "log10_p": log10_p, "stranger_log10_p": log10_p_of_stranger,
            "stranger": stranger}


def answers_by_index(suspect, data):
    """The suspect's answers to the held-out images, at the positions of their indices in the data set; -1 elsewhere."""
    answers = torch.full((int(data.held_out.indices.max()) + 1,), -1)
    answers[data.held_out.indices] = predict(suspect, data.held_out.images).argmax(1)
    return answers


def t1(said, labels, triggers) -> float:
    """log10 p of T1 for answers and labels (m,) of triggers of ten classes."""
    return pvalues.label_randomisation(said.numpy(), labels.numpy(), triggers.true_labels.numpy(), 10)


def forge_seeds(suspect, models, data, tries: int) -> dict:
    """T1 with labels of a seed: the luckiest of many seeds. RS draws its labels so, too."""
    answers, best, m = answers_by_index(suspect, data), 0.0, min(M, len(data.held_out.labels))
    for seed in tqdm(range(tries), desc="seeds", disable=None, leave=False):
        triggers, _ = draw_triggers(data.held_out, m, 1, len(data.classes), seed)
        said = answers[triggers.sources[:, 0]]
        if int((said == triggers.labels).sum()) > 2:
            best = min(best, t1(said, triggers.labels, triggers))
    return found("margin, ERM, RS: T1, labels of a seed", f"{tries} seeds", best, False)


def forge_beacon(suspect, models, data, tries: int) -> dict:
    """T1 with labels of a beacon: the luckiest of some image commitments, all made before it."""
    triggers, _ = draw_triggers(data.held_out, min(M, len(data.held_out.labels)), 1, len(data.classes), 0)
    said, best = answers_by_index(suspect, data)[triggers.sources[:, 0]], 0.0
    for i in range(COMMITMENTS):
        record = {"secret": f"{i:064x}", "sha256": f"{i:064x}", "classes": data.classes}
        best = min(best, t1(said, labels_from_beacon(triggers, record, "5a" * 32), triggers))
    return found("margin, ERM: T1, labels of a beacon", f"{COMMITMENTS} image commitments", best, best <= DECIDE, best)


def forge_single_label(suspect, models, data, tries: int) -> dict:
    """T2 with one label for all triggers, as EWE's: images of noise that the suspect alone gives that label."""
    noise = torch.randint(0, 256, (tries, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    answers = predict(suspect, noise).argmax(1)
    others = torch.stack([predict(model, noise).argmax(1) for model in models["bank"]])
    best, chosen = 0.0, 0
    for label in range(len(data.classes)):
        n = min(M, int(((answers == label) & (others != label).all(0)).sum()))
        if n:
            best, chosen = min((best, chosen), (pvalues.benign_rate(n, n, 0, MIN_BANK * n), n))
    return found("EWE: T2, one label for all", f"{tries} images of noise ({chosen} kept)", best, False)


def forge_points(suspect, models, data, tries: int) -> dict:
    """Dataset Inference: as private he names the images of which the suspect is surest, as unseen the opposite ones."""
    order = torch.randperm(POINTS, generator=torch.Generator().manual_seed(0))
    sure = lambda part: predict(suspect, part.images).softmax(1).gather(1, part.labels[:, None])[:, 0].argsort()
    private = data.train.pick(sure(data.train)[-POINTS:][order])
    unseen = data.test.pick(sure(data.test)[:POINTS][order])
    source, his = di_figures([models["source"], suspect], private, unseen, walk="blind")
    return found("DI: published test", f"one sorting of {len(data.train.labels)} images", his["log10_p"],
                 bool(his["claim"] and source["claim"]), his["log10_p"])


def forge_images(suspect, models, data, tries: int) -> dict:
    """EEF: he compares the posteriors on the half of his styled images that suits him."""
    x, y = style_images(data.train.images, 4).float().div(255), data.train.labels
    victim, benign, his = (grad_sign_vector(model, x, y) for model in (models["styled"], models["bank"][0], suspect))
    learn = torch.arange(len(y)) % 2 == 0
    classifier, scaler = train_classifier(victim[learn], benign[learn], epochs=20)
    of_suspect, of_benign = (posterior(classifier, scaler, signs[~learn]).numpy() for signs in (his, benign))
    suits = (of_suspect - of_benign).argsort()[-(len(of_benign) // 2):]
    verdict = compare_posteriors(of_suspect[suits], of_benign[suits])
    return found("EEF: published test", f"one sorting of {len(of_benign)} images", verdict["log10_p"],
                 verdict["claim"], verdict["log10_p"])


def forger_table(rows: list[dict]) -> str:
    """Markdown, a line for each suspect and method."""
    head = ["innocent suspect", "method", "what the forger tried", "log10 p", "for a stranger", "persuades a stranger"]
    return markdown_table(head, [[
        f"{row['suspect']}, {100 * row['accuracy']:.1f} %", row["method"], row["tried"], f"{row['log10_p']:.2f}",
        "refused" if (p := row["stranger_log10_p"]) is None else f"{p:.2f}", "yes" if row["stranger"] else "no",
    ] for row in rows])


if __name__ == "__main__":
    main()
