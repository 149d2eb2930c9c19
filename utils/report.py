"""A run and its attacks as one HTML page: `python -m utils.report RUN [-o report.html]`.

RUN is the folder of a run of train.py; the attacks are those of distill.py and extraction.py below it. The page holds
a verdict, the results, training curves, counts of the models' answers to the triggers, p-values, commitment and
settings. It has no script and needs no network. Triggers, seeds and commands are in it only with --show-triggers.
"""

import argparse
import io
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from utils.answers.answers import Classes, answers_of_model
from utils.ownership.claim import claim_sentence
from utils.ownership.commitment import Owner, read_owner
from utils.ownership.pvalues import either
from utils.ownership.verdict import ORDERS, OwnershipCase
from utils.pages import chart, clean, data_uri, legend, render, shorten
from utils.runs.checkpoints import find_checkpoint, read_model
from utils.runs.networks import add_named_architectures
from utils.runs.folder import COLUMNS, number, row_cells
from utils.system.files import (
    check_output_file,
    read_bounded,
    read_json,
    refuse_links,
    sha256_of_file,
    write_atomically,
)
from utils.system.refusals import Parser, Refusal, refuse_in_one_sentence

ATTACKS = 60  # of a source, at most; the rest is counted
ALPHA, DECIDES = 1e-3, -3  # the level of a claim, and its log10
CURVES = (("loss", "Training loss", "loss", 1.0), ("val_accuracy", "Validation accuracy", "accuracy, %", 100.0),
          ("trigger_accuracy", "Trigger accuracy", "answered as assigned, %", 100.0))
# settings that may hold a part of a folder's name, and with it the seed
PLACES = ("init", "label_model", "on", "query_type", "source_checkpoint", "command", "message", "additional_message")


# ---- what folders say: they may come from somebody else, so everything is data ----


class Record(NamedTuple):
    """A run's folder; each of its files may be missing, then its part is empty.

    about    run.json: the settings and, beside them, the command, device and versions
    summary  summary.json, {} while the run is not finished
    rows     metrics.jsonl, one dict an epoch
    """

    folder: Path
    about: dict
    summary: dict
    rows: list

    @property
    def is_attack(self) -> bool:
        return "attack" in self.about

    @property
    def edits(self) -> bool:
        """Whether this attack only edits a model, in several strengths, and keeps none."""
        return self.about.get("attack") in ("prune", "quantize")

    @property
    def figures(self) -> dict:
        """{whether with clean BatchNorm statistics: figures} of the run's model and of its twin, {} if not finished."""
        of = {False: self.summary, True: self.summary.get("clean")}
        return {twin: figures for twin, figures in of.items() if isinstance(figures, dict) and figures}

    def text(self, key: str) -> str:
        """An entry of run.json as text of bounded length, "" where there is none."""
        value = self.about.get(key)
        return "" if value is None else shorten(value)

    def series(self, key: str, factor: float = 1.0) -> list[tuple[float, float]]:
        """[(epoch, factor times the value under `key`)] of the metrics, by epochs; rows without numbers left out."""
        points = ((number(row.get("epoch")), number(row.get(key))) for row in self.rows)
        return sorted({epoch: factor * value for epoch, value in points if None not in (epoch, value)}.items())


def dicts(value) -> list[dict]:
    """The dicts of a list; nothing of anything else."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def read_record(folder: Path) -> Record | None:
    """What a folder says; None where it holds no run. Raises Refusal for damaged files and symbolic links."""
    refuse_links(folder)
    about = read_json(folder / "run.json")
    if about is None:
        return None
    settings = about.pop("settings", None)
    if not isinstance(settings, dict):
        raise Refusal(f"{folder / 'run.json'} is damaged: it has no settings")
    path = folder / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in read_bounded(path).splitlines() if line.strip()] if path.exists() else []
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{path} is damaged: restore it, or train the run again") from error
    return Record(folder, about | settings, read_json(folder / "summary.json") or {}, dicts(rows))


def read_family(folder: Path) -> tuple[Record, list[Record], list[str]]:
    """A source, its attacks in the order of their names, and a sentence for each that is left out.

    The sentences name folders and files; they are for the owner's terminal, not for the page. Raises Refusal where
    there is no run, where it is an attack's, or where its own files are damaged; an attack that is damaged is left out.
    """
    source = read_record(folder)
    if source is None:
        raise Refusal(f"there is no run in {folder}: name the folder of a run of train.py")
    if source.is_attack:
        raise Refusal(f"{folder} is an attack's run: name its source's folder, {folder.resolve().parent}")
    attacks, left_out = [], []
    for path in sorted(p.parent for p in folder.glob("*/run.json")):
        try:
            attacks += [record for record in [read_record(path)] if record is not None and record.is_attack]
        except Refusal as refusal:
            left_out.append(str(refusal))
    left_out += [f"{record.folder}: a page shows {ATTACKS} attacks" for record in attacks[ATTACKS:]]
    return source, attacks[:ATTACKS], left_out


# ---- names, and what a page for others keeps to itself ----
#
# Whoever knows the seed and has the data can draw the triggers again. The seed stands in run.json, in the command, and
# by custom in the tags of folders (`-msg seed1`). So without --show-triggers a page is `secret`: it tells no number of
# a folder's name, because a gap for the seed alone would tell which number of the page it is.


def folder_name(record: Record, secret: bool) -> str:
    """The name of a run's folder."""
    name = record.folder.resolve().name
    return re.sub(r"\d+", "…", name) if secret else name


def model_name(record: Record, secret: bool, twin: bool = False) -> str:
    """What tables and curves call a run's model, or its twin with clean BatchNorm statistics."""
    end, kind, attack = ", clean statistics" if twin else "", record.text("train_type"), record.text("attack")
    if not record.is_attack:
        return ("benign model" if kind == "none" else f"source ({kind})") + end
    parts = [attack if record.edits else f"{attack} copy", record.text("model_type")]
    if record.text("teacher_bn") not in ("", "paper"):
        parts.append(f"--teacher-bn {record.text('teacher_bn')}")
    return f"{', '.join(filter(None, parts))} ({folder_name(record, secret)}){end}"


def shown_setting(key: str, value, secret: bool) -> str:
    """The value of an entry of run.json as text."""
    if secret and (value and key in PLACES or "seed" in key):
        return "withheld"
    return " ".join(map(str, value)) if key == "command" and isinstance(value, list) else str(value)


# ---- the models' answers, and what T1 says of them ----


def outcomes(labels, triggers) -> list[str]:
    """What became of each trigger, from answers (m,): kept, the assigned label; lost, a true one; other."""
    kept = labels == triggers.labels.numpy()
    lost = (labels[:, None] == triggers.true_labels.numpy()).any(1)
    return ["kept" if k else "lost" if t else "other" for k, t in zip(kept, lost)]


def judge_family(owner: Owner, case: OwnershipCase, records: list[Record], secret: bool):
    """Ask every model for its answers, on the CPU: (models, a sentence for the terminal on each that could not be).

    models  [{"name", "labels", "outcomes", "counts", "sentence", "curve"}]: the answers (m,), what they are and how
            many of each, with what chance gives; the decision of `utils.verify claim --trust-owner` without benign
            models; and `OwnershipCase.curve`, None where T1 does not apply

    Raises Refusal where the source, the first record, is damaged; a copy that is damaged is not asked.
    """
    wanted = [(record, twin) for record in records if not record.edits
              for twin in (False, True) if not twin or True in record.figures]
    judged, not_asked = [], []
    for record, twin in tqdm(wanted, disable=None, unit="model", leave=False):
        select = "last" if (record.summary or record.about).get("select") == "last" else "val"
        try:
            path = find_checkpoint(record.folder, select, "clean" if twin else "paper")
            answers = answers_of_model(read_model(path), path, owner.triggers.images, Classes(owner.classes))
        except Refusal as refusal:
            if record is records[0] and not twin:
                raise
            not_asked.append(f"{record.folder} is not asked for answers: {refusal}")
            continue
        report, of = case.report(answers), outcomes(answers.labels, owner.triggers)
        chance = "-" if case.t1_fails else f"{case.chances()[case.trials(answers)].sum():.1f}"
        judged.append({
            "name": model_name(record, secret, twin), "labels": answers.labels, "outcomes": of,
            "counts": [str(of.count("kept")), chance, str(of.count("lost")), str(of.count("other"))],
            "sentence": claim_sentence(report), "curve": report["curve"]})
    return judged, not_asked


# ---- the table of source, copies and benign models ----


def decision(row: dict) -> str:
    """What the tests decide, from log10 p: T1 and T1p are two, so the smaller p counts twice (Bonferroni)."""
    p = row.get("log10_p")
    t1, t1p = (number(p.get(test)) if isinstance(p, dict) else None for test in ("T1", "T1p"))
    return "-" if t1 is None else "claimed" if either(t1, t1p) <= DECIDES else "not claimed"


def result_rows(source: Record, attacks: list[Record], secret: bool) -> list[tuple]:
    """[("source", "copies" or "benign models", cells of `COLUMNS` and the decision), ...], as the summaries state them.
    """
    cells = lambda name, row: [*row_cells(row | {"model": name}), decision(row)]
    rows, benign = [], {}
    for record in (source, *attacks):
        name, summary_rows = model_name(record, secret), dicts(record.summary.get("rows"))
        group = "copies" if record.is_attack else "benign models" if source.text("train_type") == "none" else "source"
        for row in summary_rows:  # "benign none" is the row of a run without a watermark itself
            if str(row.get("model")).startswith("benign ") and row["model"] != "benign none":
                benign.setdefault(row["model"], row)
        if not record.summary:
            progress = f"not finished: {len(record.rows)} of {record.text('epoch') or '?'} epochs"
            rows.append((group, [name, progress, *["-"] * (len(COLUMNS) - 1)]))
        elif record.edits:
            for row in summary_rows:
                ratio, bits = number(row.get("ratio")), number(row.get("bits"))
                if ratio is not None or bits is not None:
                    strength = f"{bits} bits" if ratio is None else f"{100 * ratio:g} % pruned"
                    rows.append((group, cells(f"{name}: {strength}", row)))
        else:
            rows += [(group, cells(model_name(record, secret, twin), row)) for twin, row in record.figures.items()]
    return rows + [("benign models", cells(f"benign model {i + 1}" if secret else shorten(name), row))
                   for i, (name, row) in enumerate(benign.items())]  # each once; their folders' names may tell a seed


def counts_of_claims(rows: list[tuple]) -> dict:
    """{group: (claimed, decided)} of `result_rows`, the source first, without groups of none."""
    said = {name: [cells[-1] for group, cells in rows if group == name and cells[-1] != "-"]
            for name in ("source", "copies", "benign models")}
    return {name: (of.count("claimed"), len(of)) for name, of in said.items() if of}


# ---- the page ----


def training_charts(records: list[Record], secret: bool, chance: float | None) -> tuple[list, dict | None]:
    """(Charts of losses and accuracies by epoch of each run that trains, their legend).

    chance  what share of the triggers a model hits at most, in the mean, that knows nothing of them
    """
    runs = [(model_name(record, secret, prefix != ""), record, prefix) for record in records
            for prefix in ("", "clean_") if record.series(f"{prefix}val_accuracy")]
    limit = chance and (100 * chance, f"chance: {100 * chance:.1f} % at most")
    charts = []
    for key, title, unit, factor in CURVES if runs else ():
        lines = [(name, record.series(prefix + key, factor)) for name, record, prefix in runs]
        charts.append(chart(title, "epoch", unit, lines, limit if key == "trigger_accuracy" else None))
    return charts, legend([name for name, _, _ in runs]) if runs else None


def query_chart(model: dict) -> dict:
    """log10 p against the number of queries."""
    curve = model["curve"]
    lines = [(name, list(zip(curve["queries"], curve[key])))
             for name, key in (("median", "median"), ("5 % quantile", "low"), ("95 % quantile", "high"))]
    return chart(model["name"], "queries", f"log10 p of {curve['test']}", lines,
                 (math.log10(ALPHA), f"alpha = {ALPHA:g}"))


def cards(owner: Owner, judged: list[dict]) -> list[dict]:
    """The triggers with their labels and all answers, in the order of the names under which they are exported."""
    triggers, found = owner.triggers, []
    short = lambda i: shorten(owner.classes[int(i)], 30)
    for i in np.argsort(owner.names).tolist():
        Image.fromarray(triggers.images[i].permute(1, 2, 0).numpy()).save(picture := io.BytesIO(), format="png")
        found.append({"src": data_uri(picture.getvalue(), "png"), "assigned": short(triggers.labels[i]),
                      "true": " + ".join(map(short, triggers.true_labels[i])) or "?",
                      "answers": [(model["name"], short(model["labels"][i]), model["outcomes"][i])
                                  for model in judged]})
    return found


def run_page(folder: Path, show_triggers: bool) -> tuple[str, list[str]]:
    """(the page, sentences for the terminal on what is missing in it).

    With `show_triggers` triggers, seeds and commands are in the page. Raises Refusal where the source is damaged.
    """
    source, attacks, left_out = read_family(folder)
    records, secret, owner, case, judged, not_asked = [source, *attacks], not show_triggers, None, None, [], []
    if (folder / "checkpoints" / "checkpoint_nat_best.pt").is_file():
        owner = read_owner(folder)
        case = OwnershipCase(owner, [], ALPHA)
        judged, not_asked = judge_family(owner, case, records, secret)
    rows = result_rows(source, attacks, secret)
    chance = None if case is None or case.t1_fails else float(case.chances().mean())
    training, training_legend = training_charts(records, secret, chance)
    kept = [sha256_of_file(path) for path in folder.glob("checkpoints/checkpoint_[nl]a*.pt")]  # nat_best and latest
    stolen = [attack.summary.get("source_sha256") for attack in attacks if attack.summary]
    keys = sorted({key for record in records for key in record.about})[:300]
    text = render(
        title=f"Watermark report: {folder_name(source, secret)}", text=source.text, finished=bool(source.summary),
        attacks=len(attacks), attacks_finished=sum(bool(attack.summary) for attack in attacks), owner=owner,
        claims=counts_of_claims(rows), columns=[*COLUMNS, "decision"], rows=[cells for _, cells in rows],
        decides=DECIDES, left_out=len(left_out), not_asked=len(not_asked),
        other_sources=sum(other not in kept for other in stolen),
        training=training, legend=training_legend, models=judged,
        answers=[[model["name"], *model["counts"]] for model in judged],
        why_no_curve=case.t1_fails if case else "the source has no checkpoint yet",
        cards=cards(owner, judged) if show_triggers and owner else [], alpha=f"{ALPHA:g}", orders=ORDERS,
        curves=[query_chart(model) for model in judged if model["curve"]], secret=secret,
        runs=["setting", "source", *(folder_name(record, secret) for record in attacks)],
        settings=[[shorten(key), *(shown_setting(key, record.about[key], secret) if key in record.about else ""
                                   for record in records)] for key in keys])
    return text, left_out + not_asked


@refuse_in_one_sentence
def main(argv=None):
    parser = Parser(prog="python -m utils.report", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run of train.py")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.html", help="the page (default: RUN/report.html)")
    add_named_architectures(parser)
    parser.add_argument("--show-triggers", action="store_true",
                        help="put the secret triggers, seeds and commands into the page, which is then private")
    flags = parser.parse_args(argv)
    path = flags.out or flags.run / "report.html"
    if path.suffix.lower() not in (".html", ".htm"):  # it would replace something else
        raise Refusal(f"--out {path}: a page is HTML; name a file that ends in .html")
    check_output_file(flags.out, "--out")
    text, missing = run_page(flags.run, flags.show_triggers)
    write_atomically(path, text.encode(), private=flags.show_triggers)
    for sentence in missing:
        print(f"not in the page: {clean(sentence)}")
    secret = "; it shows the triggers, keep it private" if flags.show_triggers else ""
    print(f"wrote {clean(path)}, {len(text.encode()) / 1e3:.0f} kB{secret}")


if __name__ == "__main__":
    main()
