"""`python -m figures.null`: the null of T1 and T1p, simulated: labels drawn anew, and models that never saw any.

Four suspects stay fixed: a good model of the digits, a poor one (one epoch), one that answers a constant, and the good
one with its answers permuted among the triggers. Each draw takes another secret and beacon, draws the labels by
`labels_from_beacon`, as train.py does, and tests the answers of the four. Labels are among the C - 1 wrong classes, or
among k = 2 candidates, the two most probable classes of the good model, which knows them best. An exact test gives a p
of at most alpha in a share alpha of the draws, or in fewer. Writes null.json and null.md.
"""

import hashlib
from dataclasses import replace

import numpy as np
import torch
from tqdm import tqdm

import train
from figures.shared import call, experiment_parser, interval, markdown_table, parse_with_folders, write_result
from utils.data.sets import load_data
from utils.ownership import pvalues
from utils.runs.checkpoints import find_checkpoint, read_model
from utils.system.refusals import COUNT, refuse_in_one_sentence
from utils.training.metrics import accuracy, predict
from utils.watermark.prepared import commitment_digest, labels_from_beacon
from utils.watermark.triggers import TriggerSet, draw_triggers

M, ALPHAS = 60, (0.1, 0.05, 0.01, 0.001)
TRAIN = "-dt digits -tt none -nq 60 -mt vgg11 --width 8 --batch-size 32 --select last --device cpu"
TESTS = ("T1", "T1p", "both")  # both: twice the smaller p, as `claim` decides


@refuse_in_one_sentence
def main(argv=None):
    parser = experiment_parser("null", __doc__)
    parser.add_argument("--draws", type=COUNT, default=1000, help="draws of all labels")
    args = parse_with_folders(parser, argv)
    torch.set_num_threads(1)
    data, probabilities, about = load_data("digits"), {}, {}
    triggers = draw_triggers(data.held_out, M, 1, len(data.classes), 0)
    for name, epochs, seed in (("good", 10, 1), ("poor", 1, 2)):
        call(train, f"-d {args.dir} {TRAIN} -ep {epochs} --seed {seed} -msg {name}")
        model = read_model(find_checkpoint(args.dir / f"digits_vgg11_none_60_{name}", "last"))
        about[name] = accuracy(model, data.test.images, data.test.labels)
        probabilities[name] = predict(model, triggers.images).double().softmax(1).numpy()
    log10_p = simulate_null(triggers, suspects_of(**probabilities), data.classes, args.draws)
    content = {"command": f"python -m figures.null --draws {args.draws}", "torch": torch.__version__.split("+")[0],
               "triggers": M, "accuracy": about, "log10_p": log10_p}
    write_result(args.out / "null.json", content, null_markdown(content))


def suspects_of(good, poor) -> dict:
    """{name: probabilities (m, C)} of the four suspects; `good` and `poor` are those of two models."""
    order = np.random.default_rng(0).permutation(len(good))
    constant = np.full_like(good, 0.01 / (good.shape[1] - 1))
    constant[:, 3] = 0.99
    return {"good": good, "poor": poor, "constant": constant, "permuted": good[order]}


def simulate_null(triggers: TriggerSet, suspects: dict, classes: list[str], draws: int) -> dict:
    """{draw: {suspect: {test: [log10 p of each draw]}}}, draw "C - 1" or "k = 2", test one of `TESTS`."""
    two = torch.from_numpy(np.argsort(-suspects["good"], axis=1, kind="stable")[:, :2].copy())
    true, found = triggers.true_labels.numpy(), {}
    for kind, candidates in (("C - 1", None), ("k = 2", two)):
        t = replace(triggers, candidates=candidates)
        found[kind] = {name: {test: [] for test in TESTS} for name in suspects}
        for i in tqdm(range(draws), desc=kind, unit="draw", disable=None, leave=False):
            random = [hashlib.sha256(f"{what} {i}".encode()).hexdigest() for what in ("secret", "beacon")]
            record = {"secret": random[0], "classes": classes, "mean": [0.0] * 3, "std": [1.0] * 3,
                      "beacon_name": "simulated", "round": i}
            record["sha256"] = commitment_digest(t, record)
            labels = labels_from_beacon(t, record, random[1]).numpy()
            for name, p in suspects.items():
                t1 = pvalues.label_randomisation(p.argmax(1), labels, true, len(classes), candidates=t.candidates)
                t1p = pvalues.score_randomisation(p, labels, true, t.candidates)
                for test, log10_p in zip(TESTS, (t1, t1p, pvalues.bonferroni(t1, t1p))):
                    found[kind][name][test].append(round(log10_p, 4))
    return found


def null_markdown(content: dict) -> str:
    """Markdown: the share of draws with p <= alpha, with its 95 % interval (Clopper-Pearson)."""
    about, rows = content["accuracy"], []
    for kind, suspects in content["log10_p"].items():
        for name, tests in suspects.items():
            for test, log10_p in tests.items():
                n, cells = len(log10_p), []
                for k in (int((np.array(log10_p) <= np.log10(alpha) + 1e-4).sum()) for alpha in ALPHAS):
                    cells.append("{:.4f} ({:.4f} to {:.4f})".format(k / n, *interval(k, n)))
                rows.append([kind, name, test, *cells])
    head = ["labels among", "suspect", "test", *(f"alpha {alpha:g}" for alpha in ALPHAS)]
    return (f"# T1 and T1p under H0\n\n`{content['command']}`, torch {content['torch']}, CPU, one thread; digits, "
            f"{content['triggers']} triggers; accuracy of the good model {100 * about['good']:.1f} %, of the poor one "
            f"{100 * about['poor']:.1f} %. Share of draws with p <= alpha, and its 95 % interval.\n\n"
            + markdown_table(head, rows) + "\n")


if __name__ == "__main__":
    main()
