"""AKH: does a suspect repeat the source's mistakes? `python -m utils.verify akh RUN --benign ... --suspect ...`.

The Anna Karenina heuristic of QuRD (Godinot et al., AAAI 2025): models that are right are alike, each errs in its own
way. Asked are test images that the source answers wrongly; counted is how often a suspect gives the same wrong label.
The authors compare with a threshold on the distance of the answers. Here a suspect is compared with benign models,
because models of the same data share mistakes.

The test, for one benign model: the images are those that source, suspect and benign model all answer wrongly (a weak
model would meet more wrong labels on others), and on which exactly one of the latter two gives the source's label. H0:
on each of these n images, independently, it is the suspect with probability at most t / (1 + t), t = `TOLERANCE`, so
that p = P(Bin(n, t / (1 + t)) >= k) is exact under H0; k of n are the suspect's. No two models are equally like a
third, and with enough images odds of 1 would be rejected for every other model. A claim must reject H0 for each benign
model, at level `AKH_ALPHA` (largest p: no correction is needed).

The images are the sample and the models are fixed: p is no probability that an honest model is claimed. Only the rank
speaks of models, 1 / (B + 1) at best, if the suspect, had it copied nothing, were exchangeable with the benign ones.
Images from the training set would compare memories instead of mistakes.
"""

import math

import numpy as np

from utils.ownership import pvalues
from utils.rivals.source import add_verification, read_others, read_source
from utils.system.files import write_json
from utils.system.machine import choose_device
from utils.system.refusals import Refusal
from utils.training.metrics import predict

AKH_ALPHA, TOLERANCE = 0.001, 1.25  # level of a claim; odds of honest models, chosen on those of figures/akh.md


def shared_mistakes(true, source, suspect, benign) -> tuple[int, int]:
    """(k, n), counted from labels (N,) of the same images, the true ones and those of three models.

    n images that all three models answer wrongly and on which exactly one of suspect and benign model has the source's
    label; on k of them it is the suspect.
    """
    all_wrong = (source != true) & (suspect != true) & (benign != true)
    suspect_has, benign_has = (all_wrong & (labels == source) for labels in (suspect, benign))
    return int((suspect_has & ~benign_has).sum()), int((suspect_has ^ benign_has).sum())


def same_label_share(true, source, model) -> float:
    """Of the images that source and model both answer wrongly, the share with one label, 0 of none; labels (N,)."""
    both_wrong = (source != true) & (model != true)
    return float((model == source)[both_wrong].mean()) if both_wrong.any() else 0.0


def akh_figures(true, source, suspect, benign, tolerance: float = TOLERANCE) -> dict:
    """The figures of one suspect beside a list of benign models, all as labels (N,) of the same images.

    "k", "n", "log10_p" are of the benign model with the largest p, whose position is "nearest"; "share" is
    `same_label_share` of the suspect, "benign_share" the largest of the bank, "log10_rank" T4 of these.
    """
    counts = [shared_mistakes(true, source, suspect, model) for model in benign]
    log10_p = [pvalues.binomial(k, n, tolerance / (1 + tolerance)) for k, n in counts]
    nearest = int(np.argmax(log10_p))
    (k, n), p = counts[nearest], log10_p[nearest]
    share, *shares = (same_label_share(true, source, model) for model in (suspect, *benign))
    return {"k": k, "n": n, "log10_p": p, "nearest": nearest, "share": share, "benign_share": max(shares),
            "log10_rank": pvalues.rank(share, shares), "claim": p <= math.log10(AKH_ALPHA)}


def add_akh(parts) -> None:
    p = add_verification(parts, "akh", run_akh, "does a suspect repeat the source's mistakes on test images?",
                         "the source: a run folder of train.py, or its checkpoint")
    p.add_argument("--benign", nargs="+", required=True, metavar="RUN",
                   help="models of train.py -tt none of other seeds, as like the source as an honest suspect could be; "
                   "a claim must beat each of them")


def run_akh(flags) -> int:
    """Print a row for each suspect; returns 0 where every suspect is claimed, else 1."""
    device = choose_device(flags.device)
    source, data = read_source(flags.run, flags.data_dir, device)
    benign = read_others("--benign", flags.benign, source, data.classes, device)
    suspects = read_others("--suspect", flags.suspect, source, data.classes, device)
    answers = lambda model, images: predict(model, images).argmax(1).cpu()
    given = answers(source, data.test.images)
    wrong = (given != data.test.labels).nonzero().flatten()
    if not len(wrong):
        raise Refusal(f"{flags.run} answers all {len(given)} test images of {data.name} rightly, so there is no "
                      "mistake to share: judge by triggers (utils.verify claim)")
    asked = data.test.pick(wrong)
    true, labels = asked.labels.numpy(), given[wrong].numpy()
    bank = [answers(model, asked.images).numpy() for model in benign]
    # a model counts once however often it is named
    named, bank = zip(*{row.tobytes(): (run, row) for run, row in zip(flags.benign, bank)}.values())
    rows = [{"model": run} | akh_figures(true, labels, answers(model, asked.images).numpy(), bank)
            for run, model in zip(flags.suspect, suspects)]
    wide = max(len(str(name)) for name in (*flags.suspect, "suspect"))
    print(f"The source answers {len(true)} of {len(given)} test images wrongly; these are asked.\n"
          f"{'suspect':<{wide}}  same label  benign at most  k of n         log10 p  verdict")
    for row in rows:
        print(f"{row['model']:<{wide}}  {100 * row['share']:>8.1f} %{100 * row['benign_share']:>14.1f} %  "
              f"{row['k']:>4} of {row['n']:<5}{row['log10_p']:>11.2f}  {'claim' if row['claim'] else 'inconclusive'}")
    print("Same label: of what this model and the source both answer wrongly. k of n: beside the benign model that is\n"
          f"hardest to beat. A claim (p <= {AKH_ALPHA:g}, odds above {TOLERANCE:g}) says that the suspect repeats the\n"
          "source's mistakes more than any model of --benign does. Copies do so, and models of its seed or ancestor.\n"
          f"p is exact over images; over models nothing below 1/{len(bank) + 1} is shown. "
          "Inconclusive is not innocent.")
    if flags.json:
        settings = {"benign": list(named), "alpha": AKH_ALPHA, "tolerance": TOLERANCE, "images": len(given),
                    "notes": data.notes}
        write_json(flags.json, {"settings": settings, "mistakes": len(true), "suspects": rows}, private=True)
    return 0 if all(row["claim"] for row in rows) else 1
