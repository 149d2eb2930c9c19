"""What a thief's defences cost and gain: `python -m figures.defences RUN ... --data-dir DIR`.

RUN are folders of finished extractions or distillations. Each copy answers test images and its source's triggers under
every defence of `utils.attacks.defences`; the thresholds are those of the test images. Prints and writes
figures/defences.md and .json: for each defence and kind of copy the accuracy, with a refused image counted as wrong,
the triggers answered as assigned, log10 p of T1, and how many of the copies are claimed. T1 counts a refused trigger as
a miss; beside it stands T1 of the answered ones alone, which is as exact where the judge has asked himself.
"""

import statistics
from pathlib import Path

import torch

from figures.shared import DECIDE, HERE, markdown_table, write_result
from utils.analyze import FinishedRun
from utils.attacks.defences import DEFENCES, queries_of
from utils.ownership.pvalues import label_randomisation
from utils.system.files import check_output_file, read_json
from utils.system.machine import choose_device
from utils.system.refusals import Parser, Refusal, refuse_in_one_sentence
from utils.training.metrics import predict
from utils.watermark.carriers import last_features


@refuse_in_one_sentence
def main(argv=None):
    """Measure the named copies under every defence, print the table and write the files."""
    parser = Parser(prog="python -m figures.defences", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished attacks")
    parser.add_argument("--data-dir", default="data", help="folder of the source's data set")
    parser.add_argument("--json", default=str(HERE / "defences.json"), help="results; the table lies beside it")
    args = parser.parse_args(argv)
    check_output_file(args.json, "--json")
    rows = [row for folder in args.runs for row in rows_of_copy(folder, args.data_dir)]
    command = "python -m figures.defences " + " ".join([*args.runs, "--data-dir", args.data_dir])
    text = f"# Defences of a thief\n\n`{command}`\n\n{defences_table(rows)}\n"
    write_result(Path(args.json), {"command": command, "torch": torch.__version__, "rows": rows}, text, indent=1)


def rows_of_copy(folder, data_dir) -> list[dict]:
    """A row for each defence of one copy; Refusal for a run that is no surrogate."""
    summary = read_json(Path(folder) / "summary.json") or {}
    if summary.get("role") != "surrogate":
        raise Refusal(f"{folder} is no finished run of distill.py or extraction.py: name the copies of a source")
    run = FinishedRun(folder, data_dir, None, choose_device("cpu"))
    training = last_features(run.model, run.train.images)
    usual, triggers = (queries_of(predict(run.model, of.images).softmax(1), last_features(run.model, of.images),
                                  training) for of in (run.test, run.triggers))
    classes, t = usual.probabilities.shape[1], run.triggers
    rows = []
    for defence in DEFENCES:
        generator = torch.Generator().manual_seed(0)
        on_test, on_triggers = (defence.answer(queries, usual, generator) for queries in (usual, triggers))
        t1 = lambda count_missing, labels=on_triggers: label_randomisation(
            labels.numpy(), t.labels.numpy(), t.true_labels.numpy(), classes, candidates=t.candidates.numpy(),
            count_missing=count_missing)
        rows.append({
            "defence": defence.name, "copy": str(folder), "attack": summary["attack"], "seed": summary["seed"],
            "accuracy": float((on_test == run.test.labels).double().mean()),
            "hits": int((on_triggers == t.labels).sum()), "refused": int((on_triggers < 0).sum()), "m": len(t),
            "log10_p": t1(True), "log10_p_answered": t1(False),
        })
    return rows


def defences_table(rows: list[dict]) -> str:
    """Markdown: a line for each defence and attack, over copies."""
    groups, lines, order = {}, [], list(dict.fromkeys(row["defence"] for row in rows))
    for row in rows:
        groups.setdefault((row["defence"], row["attack"]), []).append(row)
    for (name, attack), own in sorted(groups.items(), key=lambda group: order.index(group[0][0])):
        hits = ", ".join(f"{row['hits']}" + (f" ({row['refused']})" if row["refused"] else "") for row in own)
        p, answered = (", ".join(f"{row[key]:.2f}" for row in own) for key in ("log10_p", "log10_p_answered"))
        lines.append([name, f"{len(own)} {attack}", f"{100 * statistics.mean(row['accuracy'] for row in own):.2f}",
                      f"{hits} of {own[0]['m']}", p, f"{sum(row['log10_p'] <= DECIDE for row in own)} of {len(own)}",
                      answered if any(row["refused"] for row in own) else ""])
    return markdown_table(["defence", "copies", "accuracy %", "triggers of m (refused)", "T1 of each", "claimed",
                           "T1 without refused ones"], lines)


if __name__ == "__main__":
    main()
