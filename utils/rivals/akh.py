"""AKH: does a suspect repeat the source's mistakes? `python -m utils.verify akh RUN --benign ... --suspect ...`.

The Anna Karenina heuristic of QuRD (Godinot et al., AAAI 2025): models that are right are alike, each errs in its own
way. Asked are test images that the source answers wrongly; counted is how often a suspect gives the same wrong label.
Nothing is embedded or trained, so no accuracy is lost; labels are enough. The authors compare with a threshold on the
distance of the answers. Here a suspect is compared with benign models, because models of the same data share mistakes.

The test, for one benign model: the images are those that source, suspect and benign model all answer wrongly, and on
which exactly one of the latter two gives the source's label. Requiring that all three err takes out that a weak model
meets more wrong labels. H0: on each of these n images, independently, it is the suspect with probability at most
t / (1 + t), so that p = P(Bin(n, t / (1 + t)) >= k) is exact under H0; k of n are the suspect's.
t is `TOLERANCE`: no two models are equally like a third, and with enough images odds of 1 would be rejected for every
other model. A claim must reject H0 for each benign model, at level `AKH_ALPHA` (largest p: no correction is needed).

What this does not say. The images are the sample and the models are fixed: p is no probability that an honest model is
claimed. Only the rank speaks of models, 1 / (B + 1) at best, and only where the suspect, had it copied nothing, would
be exchangeable with the benign models. So they must be as like the source as an honest suspect could be: same data and
as many of it, same architecture, trained in the same way, by other seeds. Models of one family are alike: copies of
what the source was fine-tuned from, and models of its very seed and data. Images from the training set would compare
memories instead of mistakes; the command asks test images alone. Test images in a suspect's training work against a
claim.
"""

import math
from pathlib import Path

import numpy as np

from utils.ownership import pvalues
from utils.rivals.source import read_source
from utils.runs.checkpoints import find_checkpoint, read_benign, read_model
from utils.runs.networks import add_named_architectures
from utils.system.files import check_output_file, write_json
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


def akh_log10_p(k: int, n: int, tolerance: float = TOLERANCE) -> float:
    """log10 P(Bin(n, tolerance / (1 + tolerance)) >= k), k and n as of `shared_mistakes`."""
    return pvalues.binomial(k, n, tolerance / (1 + tolerance))


def same_label_share(true, source, model) -> float:
    """Of the images that source and model both answer wrongly, the share in [0, 1] with one label; 0 if there are none.

    Arguments: labels (N,).
    """
    both_wrong = (source != true) & (model != true)
    return float((model == source)[both_wrong].mean()) if both_wrong.any() else 0.0


def akh_figures(true, source, suspect, benign, tolerance: float = TOLERANCE) -> dict:
    """The figures of one suspect beside a list of benign models, all as labels (N,) of the same images.

    "k", "n", "log10_p"  of the benign model with the largest p, whose position is "nearest"
    "share"      `same_label_share` of the suspect, "benign_share" the largest of the bank
    "log10_rank" of that share among the bank's (T4)
    "claim"      log10_p is at or below that of `AKH_ALPHA`
    """
    counts = [shared_mistakes(true, source, suspect, model) for model in benign]
    log10_p = [akh_log10_p(*pair, tolerance) for pair in counts]
    nearest = int(np.argmax(log10_p))
    share, *shares = (same_label_share(true, source, model) for model in (suspect, *benign))
    return {"k": counts[nearest][0], "n": counts[nearest][1], "log10_p": log10_p[nearest], "nearest": nearest,
            "share": share, "benign_share": max(shares), "log10_rank": pvalues.rank(share, shares),
            "claim": log10_p[nearest] <= math.log10(AKH_ALPHA)}


def add_akh(parts) -> None:
    """Declare the command `akh` and its flags; `parts` are the subparsers of utils.verify."""
    p = parts.add_parser("akh", help="does a suspect repeat the source's mistakes on test images?")
    p.set_defaults(call=run_akh)
    p.add_argument("run", metavar="RUN", help="the source: a run folder of train.py, or its checkpoint")
    p.add_argument("--benign", nargs="+", required=True, metavar="RUN",
                   help="models of train.py -tt none of other seeds, as like the source as an honest suspect could be; "
                   "a claim must beat each of them")
    p.add_argument("--suspect", nargs="+", required=True, metavar="RUN", help="run folders or checkpoints")
    add_named_architectures(p)
    p.add_argument("--data-dir", default="data", help="folder of the source's data set; its test images are asked")
    p.add_argument("--skip-bad-images", action="store_true", help="go on without unreadable images")
    p.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu", "mps"), help="where to compute")
    p.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")


def run_akh(flags) -> int:
    """Print a row for each suspect; returns 0 where every suspect is claimed, else 1."""
    check_output_file(flags.json, "--json")
    device = choose_device(flags.device)
    source, data = read_source(flags.run, flags.data_dir, flags.skip_bad_images, device)
    models = {"--benign": [(run, read_benign(run, device)) for run in flags.benign],
              "--suspect": [(run, read_model(find_checkpoint(run, None), device)) for run in flags.suspect]}
    for flag, pairs in models.items():
        for run, model in pairs:
            if (model.num_classes, model.size) != (source.num_classes, source.size):
                raise Refusal(f"{flag} {run} tells {model.num_classes} classes of {model.size} pixels apart and the "
                              f"source {source.num_classes} of {source.size}: name models of the source's task")
    answers = lambda model, images: predict(model, images).argmax(1).cpu()
    given = answers(source, data.test.images)
    wrong = (given != data.test.labels).nonzero().flatten()
    if not len(wrong):
        raise Refusal(f"{flags.run} answers all {len(given)} test images of {data.name} rightly, so there is no "
                      "mistake to share: judge by triggers (utils.verify claim)")
    asked = data.test.pick(wrong)
    true, labels = asked.labels.numpy(), given[wrong].numpy()
    benign, suspects = ([answers(model, asked.images).numpy() for _, model in pairs] for pairs in models.values())
    rows = [{"model": run} | akh_figures(true, labels, suspect, benign)
            for run, suspect in zip(flags.suspect, suspects)]
    print(_table(rows, len(true), len(given), flags.benign))
    if flags.json:
        settings = {"benign": flags.benign, "alpha": AKH_ALPHA, "tolerance": TOLERANCE, "images": len(given)}
        write_json(flags.json, {"settings": settings, "mistakes": len(true), "suspects": rows}, private=True)
    return 0 if all(row["claim"] for row in rows) else 1


def _table(rows: list[dict], mistakes: int, images: int, bank: list) -> str:
    """The rows as text, followed by what a claim says and does not."""
    wide = max(len(str(row["model"])) for row in [*rows, {"model": "suspect"}])
    lines = [f"The source answers {mistakes} of {images} test images wrongly; these are asked.",
             f"{'suspect':<{wide}}  same label  benign at most  k of n         log10 p  verdict"]
    for row in rows:
        lines.append(f"{row['model']:<{wide}}  {100 * row['share']:>8.1f} %{100 * row['benign_share']:>14.1f} %  "
                     f"{row['k']:>4} of {row['n']:<5}{row['log10_p']:>11.2f}  "
                     + ("claim" if row["claim"] else "inconclusive"))
    lines += [
        "Same label: of what this model and the source both answer wrongly. k of n: beside the benign model that is",
        f"hardest to beat. A claim (p <= {AKH_ALPHA:g}, odds above {TOLERANCE:g}) says that the suspect repeats the",
        "source's mistakes more than any model of --benign does. Copies do so, and models of its seed or ancestor.",
        f"p is exact over images; over models nothing below 1/{len(bank) + 1} is shown. Inconclusive is not innocent."]
    return "\n".join(lines)
