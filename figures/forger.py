"""What a dishonest owner can forge against an innocent model, by which verification: `python -m figures.forger`.

On scikit-learn's digits, minutes on one core. The forger has one half of the training images, and asks two innocent
models of the other half, a poor and a good one, as often as he likes, before he publishes anything. For each method the
script makes the forged claim that costs him least and prints its p-value, what he tried, and whether a stranger is
persuaded. Writes forger.json and forger.md; finished runs are used as they are.
"""

import json
from pathlib import Path

import torch
from tqdm import tqdm

from figures.make import check_folder
from figures.rivals import BENIGN, SOURCES, train_run, write_image_halves
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
from utils.system.files import write_atomically
from utils.system.refusals import COUNT, Parser, refuse_in_one_sentence
from utils.training.metrics import accuracy, predict
from utils.watermark.prepared import labels_from_beacon
from utils.watermark.triggers import draw_triggers

HERE = Path(__file__).resolve().parent
M = 40  # triggers of a forged claim
COMMITMENTS = 100  # image commitments that a forger makes before the beacon
POINTS = 40  # private and unseen points of Dataset Inference each
DECIDE = -3  # log10 p at which a claim holds


@refuse_in_one_sentence
def main(argv=None):
    """Train what is missing, forge each claim, print the table and write the files."""
    parser = Parser(prog="python -m figures.forger", description=__doc__.splitlines()[0])
    parser.add_argument("-d", "--dir", type=Path, default=Path("experiments/forger"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of forger.json and forger.md")
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
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out / "forger.json", (json.dumps(content, indent=1) + "\n").encode())
    table = forger_table(rows)
    write_atomically(args.out / "forger.md", f"# Forged claims\n\n`{content['command']}`\n\n{table}\n".encode())
    print(table)


def train_models(folder: Path) -> dict:
    """{"poor", "good": innocent models of one half of the digits; "bank": models of the other, the forger's half;
    "source", "styled": his own ones}, frozen."""
    halves = {"a": folder / "images-a", "b": folder / "images-b"}
    write_image_halves(halves)
    wanted = {"poor": ("b", "-tt none -nq 1 -ep 1", 1), "good": ("b", BENIGN, 2), "source": ("a", BENIGN, 3),
              "styled": ("a", SOURCES["EEF"], 4)}
    wanted |= {f"bank{i}": ("a", BENIGN, 10 + i) for i in range(MIN_BANK)}
    models = {}
    with tqdm(total=len(wanted), desc="models", unit="run", disable=None, leave=False) as bar:
        for name, (half, flags, seed) in wanted.items():
            run = train_run(folder / "runs", halves[half], flags, name, seed, bar)
            models[name] = read_model(find_checkpoint(run, None))
    bank = [models.pop(f"bank{i}") for i in range(MIN_BANK)]
    return models | {"bank": bank}


def forge_seeds(suspect, models, data, tries: int) -> dict:
    """T1 with labels of a seed: the luckiest of many seeds. RS draws its labels so, too."""
    answers = predict(suspect, data.held_out.images).argmax(1)
    of_index = dict(zip(data.held_out.indices.tolist(), answers.tolist()))
    m = min(M, len(answers))
    best = 0.0
    for seed in tqdm(range(tries), desc="seeds", disable=None, leave=False):
        triggers, _ = draw_triggers(data.held_out, m, 1, len(data.classes), seed)
        said = torch.tensor([of_index[i] for i in triggers.sources[:, 0].tolist()])
        if int((said == triggers.labels).sum()) > 2:
            best = min(best, _t1(said, triggers.labels, triggers))
    return {"method": "margin, ERM, RS: T1, labels of a seed", "tried": f"{tries} seeds", "log10_p": best,
            "stranger_log10_p": None, "stranger": False}


def forge_beacon(suspect, models, data, tries: int) -> dict:
    """T1 with labels of a beacon: the luckiest of some image commitments, all made before it."""
    answers = predict(suspect, data.held_out.images).argmax(1)
    triggers, _ = draw_triggers(data.held_out, min(M, len(answers)), 1, len(data.classes), 0)
    of_index = dict(zip(data.held_out.indices.tolist(), answers.tolist()))
    said = torch.tensor([of_index[i] for i in triggers.sources[:, 0].tolist()])
    found = []
    for i in range(COMMITMENTS):
        record = {"secret": f"{i:064x}", "sha256": f"{i:064x}", "classes": data.classes}
        drawn = labels_from_beacon(triggers, record, "5a" * 32)
        found.append(_t1(said, drawn, triggers))
    return {"method": "margin, ERM: T1, labels of a beacon", "tried": f"{COMMITMENTS} image commitments",
            "log10_p": min(found), "stranger_log10_p": min(found), "stranger": min(found) <= DECIDE}


def _t1(said, labels, triggers) -> float:
    return pvalues.label_randomisation(said.numpy(), labels.numpy(), triggers.true_labels.numpy(), 10)


def forge_single_label(suspect, models, data, tries: int) -> dict:
    """T2 with one label for all triggers, as EWE's: images of noise that the suspect alone gives that label."""
    noise = torch.randint(0, 256, (tries, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    answers = predict(suspect, noise).argmax(1)
    others = torch.stack([predict(model, noise).argmax(1) for model in models["bank"]])
    best, chosen = 0.0, 0
    for label in range(len(data.classes)):
        rows = ((answers == label) & (others != label).all(0)).nonzero().flatten()[:M]
        if len(rows):
            p = pvalues.benign_rate(len(rows), len(rows), 0, MIN_BANK * len(rows))
            best, chosen = min((best, chosen), (p, len(rows)))
    return {"method": "EWE: T2, one label for all", "tried": f"{tries} images of noise ({chosen} kept)",
            "log10_p": best, "stranger_log10_p": None, "stranger": False}


def forge_points(suspect, models, data, tries: int) -> dict:
    """Dataset Inference: as private he names the images of which the suspect is surest, as unseen the opposite ones."""
    order = torch.randperm(POINTS, generator=torch.Generator().manual_seed(0))
    sure = lambda part: predict(suspect, part.images).softmax(1).gather(1, part.labels[:, None])[:, 0].argsort()
    private = data.train.pick(sure(data.train)[-POINTS:][order])
    unseen = data.test.pick(sure(data.test)[:POINTS][order])
    source, found = di_figures([models["source"], suspect], private, unseen, walk="blind")
    return {"method": "DI: published test", "tried": f"one sorting of {len(data.train.labels)} images",
            "log10_p": found["log10_p"], "stranger_log10_p": found["log10_p"],
            "stranger": bool(found["claim"] and source["claim"])}


def forge_images(suspect, models, data, tries: int) -> dict:
    """EEF: he compares the posteriors on the half of his styled images that suits him."""
    x, y = style_images(data.train.images, 4).float().div(255), data.train.labels
    signs = {name: grad_sign_vector(model, x, y) for name, model in
             (("victim", models["styled"]), ("benign", models["bank"][0]), ("suspect", suspect))}
    learn = torch.arange(len(y)) % 2 == 0
    classifier, scaler = train_classifier(signs["victim"][learn], signs["benign"][learn], epochs=20)
    of_suspect, of_benign = (posterior(classifier, scaler, signs[name][~learn]).numpy()
                             for name in ("suspect", "benign"))
    suits = (of_suspect - of_benign).argsort()[-(len(of_benign) // 2):]
    verdict = compare_posteriors(of_suspect[suits], of_benign[suits])
    return {"method": "EEF: published test", "tried": f"one sorting of {len(of_benign)} images",
            "log10_p": verdict["log10_p"], "stranger_log10_p": verdict["log10_p"], "stranger": verdict["claim"]}


def forger_table(rows: list[dict]) -> str:
    """Markdown, a line for each suspect and method."""
    lines = ["| innocent suspect | method | what the forger tried | log10 p | for a stranger | persuades a stranger |",
             "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        p = row["stranger_log10_p"]
        lines.append(f"| {row['suspect']}, {100 * row['accuracy']:.1f} % | {row['method']} | {row['tried']} | "
                     f"{row['log10_p']:.2f} | {'refused' if p is None else f'{p:.2f}'} | "
                     f"{'yes' if row['stranger'] else 'no'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
