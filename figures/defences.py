"""What a thief's defences cost and gain: `python -m figures.defences RUN ... --data-dir DIR`.

RUN are folders of finished extractions, distillations or sources. Each model answers test images and the source's
triggers as a thief would serve it who wants it to miss them. He does not know the triggers, but which images that he is
asked are usual: how certain his copy is, and how near they are to his training images (`DEFENCES`; an answer that is
refused is -1). Or he changes each image first (`TRANSFORMATIONS`), as in the lists of removals of Lukas et al. ("SoK:
How Robust is Image Classification Deep Neural Network Watermarking?", S&P 2022). Thresholds are of the test images.
Prints and writes figures/defences.md and .json: for each of them and kind of model the accuracy, with a refused image
counted as wrong, the triggers answered as assigned, log10 p of T1, where probabilities are given of T1p too, and how
many are claimed: by T1, or by the smaller of both, doubled. T1 counts a refused trigger as a miss; beside it stands T1
of the answered ones alone, which is as exact where the judge has asked himself.
"""

import io
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import gaussian_blur

from figures.shared import HERE, figure_parser, join_numbers, markdown_table, write_result
from utils.analyze import FinishedRun
from utils.ownership.pvalues import bonferroni, label_randomisation, score_randomisation
from utils.ownership.results import LOG_ALPHA
from utils.system.files import check_output_file, read_json
from utils.system.machine import choose_device
from utils.system.refusals import Refusal, refuse_in_one_sentence
from utils.training.metrics import predict
from utils.watermark.carriers import cosines, last_features


class Queries(NamedTuple):
    """What the thief knows of N queries.

    probabilities  (N, C) of his copy
    entropy        (N,) of these, in nats
    distance       (N,) 1 - cosine to the nearest of his training images, in the copy's features
    """

    probabilities: torch.Tensor
    entropy: torch.Tensor
    distance: torch.Tensor


def queries_of(probabilities, features, training_features) -> Queries:
    """What is known of queries with features (N, D), when those of the training images are (M, D)."""
    p = probabilities.double()
    return Queries(p, torch.special.entr(p).sum(1), 1 - cosines(features, training_features).amax(1))


def rounded(digits: int) -> Callable:
    """Probabilities rounded to some digits; of equal ones the first counts."""
    return lambda queries, usual, generator: (queries.probabilities * 10**digits).round().argmax(1)


def noisy(sd: float) -> Callable:
    """Gaussian noise of standard deviation `sd` on each probability."""
    noise = lambda p, generator: torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return lambda queries, usual, generator: (
        queries.probabilities + sd * noise(queries.probabilities, generator)).argmax(1)


def unusual(measure: str, share: float, instead: Callable) -> Callable:
    """`instead(queries, generator)` where "entropy" or "distance" is above all but a share of natural images'."""
    return lambda queries, usual, generator: torch.where(
        getattr(queries, measure) > getattr(usual, measure).quantile(1 - share), instead(queries, generator),
        queries.probabilities.argmax(1))


def refuse(queries, generator):
    return torch.full((len(queries.entropy),), -1)


def random_label(queries, generator):
    n, classes = queries.probabilities.shape
    return torch.randint(classes, (n,), generator=generator)


def one_of_two(queries, generator):
    """One of the two most probable classes, by a coin."""
    two = queries.probabilities.topk(2, dim=1).indices
    return two.gather(1, torch.randint(2, (len(two), 1), generator=generator))[:, 0]


UNUSUAL = (
    ("refuses the {:.0%} least certain", "entropy", refuse, (0.05, 0.2)),
    ("random label for the {:.0%} least certain", "entropy", random_label, (0.05, 0.2)),
    ("one of the two most probable for the {:.0%} least certain", "entropy", one_of_two, (0.05, 0.2, 0.5)),
    ("refuses the {:.0%} farthest from his training images", "distance", refuse, (0.05, 0.2)),
    ("random label for the {:.0%} farthest", "distance", random_label, (0.05, 0.2)),
)
# name -> (queries, usual, generator) -> labels (N,); `usual` are `Queries` of natural images, for thresholds
DEFENCES = {
    # the most probable label; so do answers without probabilities, from a cache, or after a delay
    "none; labels only, cached, delayed": lambda queries, usual, generator: queries.probabilities.argmax(1),
    "rounded to one digit": rounded(1), "noise of sd 0.1": noisy(0.1), "noise of sd 0.3": noisy(0.3),
} | {name.format(share): unusual(measure, share, instead)
     for name, measure, instead, shares in UNUSUAL for share in shares}


# ---- before the copy sees an image ----


def jpeg(quality: int) -> Callable:
    """Each image through a JPEG file of this quality (Guo et al., ICLR 2018)."""

    def through_files(images):
        changed = []
        for image in images:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file := io.BytesIO(), "JPEG", quality=quality)
            changed.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
        return [torch.stack(changed)]

    return through_files


def blurred(sd: float) -> Callable:
    """A Gaussian of this standard deviation, in pixels, over 5 x 5 (a smoothing of Xu et al., NDSS 2018)."""
    return lambda images: [gaussian_blur(images, 5, sd)]


def fewer_levels(bits: int) -> Callable:
    """Channels of `bits` bits, 0 and 255 kept (the squeezed depth of Xu et al., NDSS 2018)."""
    most = 2**bits - 1
    return lambda images: [(images.float().div(255).mul(most).round() * (255 / most)).round().to(torch.uint8)]


# name -> images uint8 (N, 3, S, S) -> a list of such, over which the copy's probabilities are averaged
TRANSFORMATIONS = {
    "no transformation": lambda images: [images],
    "JPEG of quality 75": jpeg(75), "JPEG of quality 30": jpeg(30), "blur of sd 1 pixel": blurred(1.0),
    "4 bits a channel": fewer_levels(4), "2 bits a channel": fewer_levels(2),
    "mean with the mirror image": lambda images: [images, images.flip(-1)],
}


# ---- the experiment ----


@refuse_in_one_sentence
def main(argv=None):
    parser = figure_parser("defences", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs")
    parser.add_argument("--data-dir", default="data", help="folder of the source's data set")
    parser.add_argument("--json", default=str(HERE / "defences.json"), help="results; the table lies beside it")
    args = parser.parse_args(argv)
    check_output_file(args.json, "--json", ".json")
    rows = [row for folder in args.runs for row in rows_of_copy(folder, args.data_dir)]
    where = [] if args.json == parser.get_default("json") else ["--json", args.json]
    command = "python -m figures.defences " + " ".join([*args.runs, "--data-dir", args.data_dir, *where])
    text = f"# Defences of a thief\n\n`{command}`\n\n{defences_table(rows)}\n"
    write_result(Path(args.json), {"command": command, "torch": torch.__version__, "rows": rows}, text, indent=1)


def rows_of_copy(folder, data_dir) -> list[dict]:
    """A row for each defence and transformation of one model; Refusal for a run that is no source or copy."""
    summary = read_json(Path(folder) / "summary.json") or {}
    if summary.get("role") not in ("surrogate", "source"):
        raise Refusal(f"{folder} is no finished run of distill.py or extraction.py, nor of a source: name copies")
    if (summary.get("log10_p") or {}).get("T1") is None:
        raise Refusal(f"{folder}: T1 does not apply, for the labels of its triggers were not drawn at random: name a "
                      "source of -tt margin or base with such labels, or a copy of one")
    run = FinishedRun(folder, data_dir, choose_device("cpu"))
    t, parts = run.triggers, (run.test, run.triggers)
    training = last_features(run.model, run.train.images)
    usual, triggers = (queries_of(predict(run.model, of.images).softmax(1), last_features(run.model, of.images),
                                  training) for of in parts)
    answers = {}  # name -> (labels of the test images, labels of the triggers, probabilities of the triggers or None)
    for name, answer in DEFENCES.items():
        generator = torch.Generator().manual_seed(0)
        answers[name] = *(answer(queries, usual, generator) for queries in (usual, triggers)), None
    for name, change in TRANSFORMATIONS.items():
        test, own = (torch.stack([predict(run.model, view).softmax(1) for view in change(of.images[:])])
                     .mean(0).double() for of in parts)
        answers[name] = test.argmax(1), own.argmax(1), own
    rows, classes = [], usual.probabilities.shape[1]
    about = {"copy": str(folder), "attack": summary.get("attack") or "source", "seed": summary["seed"]}
    for name, (on_test, on_triggers, scores) in answers.items():
        t1 = lambda count_missing, labels=on_triggers: label_randomisation(
            labels.numpy(), t.labels.numpy(), t.true_labels.numpy(), classes, candidates=t.candidates.numpy(),
            groups=t.groups.numpy(), count_missing=count_missing)
        rows.append({
            "defence": name, **about, "accuracy": float((on_test == run.test.labels).double().mean()),
            "hits": int((on_triggers == t.labels).sum()), "refused": int((on_triggers < 0).sum()), "m": len(t),
            "log10_p": t1(True), "log10_p_answered": t1(False),
            "log10_p_scores": None if scores is None else score_randomisation(
                scores.numpy(), t.labels.numpy(), t.true_labels.numpy(), t.candidates.numpy(), t.groups.numpy()),
        })
    return rows


def defences_table(rows: list[dict]) -> str:
    """Markdown: a line for each defence or transformation and attack, over copies."""
    groups, lines, order = {}, [], list(dict.fromkeys(row["defence"] for row in rows))
    for row in rows:
        groups.setdefault((row["defence"], row["attack"]), []).append(row)
    for (name, attack), own in sorted(groups.items(), key=lambda group: order.index(group[0][0])):
        hits = ", ".join(f"{row['hits']}" + (f" ({row['refused']})" if row["refused"] else "") for row in own)
        t1p = [row.get("log10_p_scores") for row in own]
        claimed = sum(bonferroni(row["log10_p"], p) <= LOG_ALPHA for row, p in zip(own, t1p))
        answered = join_numbers(row["log10_p_answered"] for row in own) if any(row["refused"] for row in own) else ""
        lines.append([name, f"{len(own)} {attack}", f"{100 * statistics.mean(row['accuracy'] for row in own):.2f}",
                      f"{hits} of {own[0]['m']}", join_numbers(row["log10_p"] for row in own),
                      "" if t1p.count(None) else join_numbers(t1p), f"{claimed} of {len(own)}", answered])
    return markdown_table(["defence", "copies", "accuracy %", "triggers of m (refused)", "T1 of each", "T1p of each",
                           "claimed", "T1 without refused ones"], lines)


if __name__ == "__main__":
    main()
