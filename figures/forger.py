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
from figures.shared import experiment_parser, markdown_table, parse_with_folders, write_result
from utils.data.sets import load_data
from utils.ownership import pvalues
from utils.ownership.results import LOG_ALPHA
from utils.ownership.verdict import MIN_BANK
from utils.rivals import embedded_features as eef
from utils.rivals.dataset_inference import di_figures
from utils.runs.checkpoints import read_model
from utils.system.refusals import COUNT, refuse_in_one_sentence
from utils.training.metrics import accuracy, predict
from utils.watermark.prepared import labels_from_beacon
from utils.watermark.triggers import draw_triggers

M = 40  # triggers of a forged claim
COMMITMENTS = 100  # image commitments that a forger makes before the beacon
POINTS = 40  # private and unseen points of Dataset Inference each


@refuse_in_one_sentence
def main(argv=None):
    parser = experiment_parser("forger", __doc__)
    parser.add_argument("--tries", type=COUNT, default=10_000, help="seeds, and noise images, that the forger tries")
    args = parse_with_folders(parser, argv)
    innocent, bank, source, styled = train_models(args.dir)
    data, rows = load_data("folder", args.dir / "images-a"), []
    for name, suspect in innocent.items():
        about = {"suspect": name, "accuracy": accuracy(suspect, data.test.images, data.test.labels)}
        rows += [about | forged for forged in (
            forge_seeds(suspect, data, args.tries), forge_beacon(suspect, data),
            forge_single_label(suspect, bank, data, args.tries), forge_points(suspect, source, data),
            forge_images(suspect, styled, bank[0], data))]
    content = {"command": f"python -m figures.forger --tries {args.tries}", "torch": torch.__version__, "rows": rows}
    text = f"# Forged claims\n\n`{content['command']}`\n\n{forger_table(rows)}\n"
    write_result(args.out / "forger.json", content, text, indent=1)


def train_models(folder: Path) -> tuple:
    """({"poor", "good"}, innocent models of one half of the digits; models of the other half, the forger's: a bank, his
    source, his model of styled images), all frozen."""
    halves = {"a": folder / "images-a", "b": folder / "images-b"}
    write_image_halves(halves)
    model = lambda name, half, flags, seed: read_model(
        train_run(folder / "runs", halves[half], flags, name, seed))
    return ({"poor": model("poor", "b", "-tt none -nq 1 -ep 1", 1), "good": model("good", "b", BENIGN, 2)},
            [model(f"bank{i}", "a", BENIGN, 10 + i) for i in range(MIN_BANK)],
            model("source", "a", BENIGN, 3), model("styled", "a", SOURCES["EEF"], 4))


def forged_claim(method: str, tried: str, log10_p: float, persuades=False, log10_p_of_stranger=None) -> dict:
    """A row of the table: what the forger did, p for a judge who trusts him, and what a stranger says."""
    return {"method": method, "tried": tried, "log10_p": log10_p, "stranger_log10_p": log10_p_of_stranger,
            "stranger": persuades}


def drawn_triggers(data, answers, seed: int):
    """(triggers of a seed, the suspect's answers to them (m,)), from its `answers` to the held-out images."""
    triggers = draw_triggers(data.held_out, min(M, len(answers)), 1, len(data.classes), seed)
    return triggers, answers[(triggers.sources[:, :1] == data.held_out.indices).int().argmax(1)]


def t1(said, labels, triggers) -> float:
    """log10 p of T1 for answers and labels (m,) of triggers of ten classes."""
    return pvalues.label_randomisation(said.numpy(), labels.numpy(), triggers.true_labels.numpy(), 10)


def forge_seeds(suspect, data, tries: int) -> dict:
    """T1 with labels of a seed: the luckiest of many seeds."""
    answers, best = predict(suspect, data.held_out.images).argmax(1), 0.0
    for seed in tqdm(range(tries), desc="seeds", disable=None, leave=False):
        triggers, said = drawn_triggers(data, answers, seed)
        if int((said == triggers.labels).sum()) > 2:
            best = min(best, t1(said, triggers.labels, triggers))
    return forged_claim("margin, ERM: T1, labels of a seed", f"{tries} seeds", best)


def forge_beacon(suspect, data) -> dict:
    """T1 with labels of a beacon: the luckiest of some image commitments, all made before it."""
    triggers, said = drawn_triggers(data, predict(suspect, data.held_out.images).argmax(1), 0)
    records = [{"secret": f"{i:064x}", "sha256": f"{i:064x}", "classes": data.classes} for i in range(COMMITMENTS)]
    best = min(0.0, *(t1(said, labels_from_beacon(triggers, record, "5a" * 32), triggers) for record in records))
    return forged_claim("margin, ERM: T1, labels of a beacon", f"{COMMITMENTS} image commitments", best,
                        best <= LOG_ALPHA, best)


def forge_single_label(suspect, bank, data, tries: int) -> dict:
    """T2 with one label for all triggers, as EWE's: images of noise that the suspect alone gives that label."""
    noise = torch.randint(0, 256, (tries, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    answers = predict(suspect, noise).argmax(1)
    others = torch.stack([predict(model, noise).argmax(1) for model in bank])
    best, chosen = 0.0, 0
    for label in range(len(data.classes)):
        n = min(M, int(((answers == label) & (others != label).all(0)).sum()))
        if n:
            best, chosen = min((best, chosen), (pvalues.benign_rate(n, n, 0, MIN_BANK * n), n))
    return forged_claim("EWE: T2, one label for all", f"{tries} images of noise ({chosen} kept)", best)


def forge_points(suspect, source, data) -> dict:
    """Dataset Inference: as private he names the images of which the suspect is surest, as unseen the opposite ones."""
    order = torch.randperm(POINTS, generator=torch.Generator().manual_seed(0))
    sure = lambda part: predict(suspect, part.images).softmax(1).gather(1, part.labels[:, None])[:, 0].argsort()
    private = data.train.pick(sure(data.train)[-POINTS:][order])
    unseen = data.test.pick(sure(data.test)[:POINTS][order])
    own, his = di_figures([source, suspect], private, unseen, walk="blind")
    return forged_claim("DI: published test", f"one sorting of {len(data.train.labels)} images", his["log10_p"],
                        bool(his["claim"] and own["claim"]), his["log10_p"])


def forge_images(suspect, styled, benign_model, data) -> dict:
    """EEF: he compares the posteriors on the half of his styled images that suits him."""
    x, y = eef.style_images(data.train.images, 4).float().div(255), data.train.labels
    victim, benign, his = (eef.grad_sign_vector(model, x, y) for model in (styled, benign_model, suspect))
    learn = torch.arange(len(y)) % 2 == 0
    classifier, scaler = eef.train_classifier(victim[learn], benign[learn], epochs=20)
    of_suspect, of_benign = (eef.posterior(classifier, scaler, signs[~learn]).numpy() for signs in (his, benign))
    suits = (of_suspect - of_benign).argsort()[-(len(of_benign) // 2):]
    verdict = eef.compare_posteriors(of_suspect[suits], of_benign[suits])
    return forged_claim("EEF: published test", f"one sorting of {len(of_benign)} images", verdict["log10_p"],
                        verdict["claim"], verdict["log10_p"])


def forger_table(rows: list[dict]) -> str:
    head = ["innocent suspect", "method", "what the forger tried", "log10 p", "for a stranger", "persuades a stranger"]
    return markdown_table(head, [[
        f"{row['suspect']}, {100 * row['accuracy']:.1f} %", row["method"], row["tried"], f"{row['log10_p']:.2f}",
        "refused" if (p := row["stranger_log10_p"]) is None else f"{p:.2f}", "yes" if row["stranger"] else "no",
    ] for row in rows])


if __name__ == "__main__":
    main()
