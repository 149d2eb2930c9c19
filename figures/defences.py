"""What a thief's defences cost and gain: `python -m figures.defences RUN ... --data-dir DIR`.

RUN are folders of finished extractions, distillations or sources. Each model answers test images and the source's
triggers under every defence and after every transformation of `utils.attacks.defences`; the thresholds are those of the
test images. Prints and writes figures/defences.md and .json: for each of them and kind of model the accuracy, with a
refused image counted as wrong, the triggers answered as assigned, log10 p of T1, where probabilities are given of T1p
too, and how many are claimed: by T1, or by the smaller of both, doubled. T1 counts a refused trigger as a miss; beside
it stands T1 of the answered ones alone, which is as exact where the judge has asked himself.
"""

import statistics
from pathlib import Path

import torch

from figures.shared import DECIDE, HERE, join_numbers, markdown_table, write_result
from utils.analyze import FinishedRun
from utils.attacks.defences import DEFENCES, TRANSFORMATIONS, queries_of
from utils.ownership.pvalues import either, label_randomisation, score_randomisation
from utils.system.files import check_output_file, read_json
from utils.system.machine import choose_device
from utils.system.refusals import Parser, Refusal, refuse_in_one_sentence
from utils.training.metrics import predict
from utils.watermark.carriers import last_features


@refuse_in_one_sentence
def main(argv=None):
    """Measure the named copies under every defence, print the table and write the files."""
    parser = Parser(prog="python -m figures.defences", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs")
    parser.add_argument("--data-dir", default="data", help="folder of the source's data set")
    parser.add_argument("--json", default=str(HERE / "defences.json"), help="results; the table lies beside it")
    args = parser.parse_args(argv)
    check_output_file(args.json, "--json")
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
    run = FinishedRun(folder, data_dir, None, choose_device("cpu"))
    t, parts = run.triggers, (run.test, run.triggers)
    training = last_features(run.model, run.train.images)
    usual, triggers = (queries_of(predict(run.model, of.images).softmax(1), last_features(run.model, of.images),
                                  training) for of in parts)
    answers = {}  # name -> (labels of the test images, labels of the triggers, probabilities of the triggers or None)
    for defence in DEFENCES:
        generator = torch.Generator().manual_seed(0)
        answers[defence.name] = *(defence.answer(queries, usual, generator) for queries in (usual, triggers)), None
    for name, change in TRANSFORMATIONS.items():
        test, own = (torch.stack([predict(run.model, view).softmax(1) for view in change(of.images)]).mean(0).double()
                     for of in parts)
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
        claimed = sum(either(row["log10_p"], p) <= DECIDE for row, p in zip(own, t1p))
        answered = join_numbers(row["log10_p_answered"] for row in own) if any(row["refused"] for row in own) else ""
        lines.append([name, f"{len(own)} {attack}", f"{100 * statistics.mean(row['accuracy'] for row in own):.2f}",
                      f"{hits} of {own[0]['m']}", join_numbers(row["log10_p"] for row in own),
                      "" if t1p.count(None) else join_numbers(t1p), f"{claimed} of {len(own)}", answered])
    return markdown_table(["defence", "copies", "accuracy %", "triggers of m (refused)", "T1 of each", "T1p of each",
                           "claimed", "T1 without refused ones"], lines)


if __name__ == "__main__":
    main()
