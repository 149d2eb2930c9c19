"""A run and its attacks as one HTML page: `python -m utils.report RUN [-o report.html]`.

RUN is the folder of a run of train.py; the attacks are those of distill.py and extraction.py below it. The page holds
a verdict, the results, training curves, counts of the models' answers to the triggers, p-values, commitment and
settings. It has no script and needs no network. Triggers, seeds and commands are in it only with --show-triggers.
"""

import argparse
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import models
from utils.answers.answers import Classes, answers_of_model
from utils.ownership.claim import claim_sentence
from utils.ownership.commitment import Owner, read_owner
from utils.ownership.pvalues import either
from utils.ownership.verdict import ORDERS, OwnershipCase
from utils.pages import chart, check_page_file, clean, legend, png_image, render, shorten, write_page
from utils.runs.checkpoints import find_checkpoint, read_model
from utils.runs.networks import add_named_architectures
from utils.system.files import read_bounded, read_json, refuse_links, sha256_of_file
from utils.system.refusals import Parser, Refusal, refuse_in_one_sentence

ATTACKS = 60  # of a source, at most; the rest is counted
LARGEST = 1e30  # of a number that is drawn or written
ALPHA, DECIDES = 1e-3, -3  # the level of a claim, and its log10
TESTS = ("T1", "T1p", "T1_conservative", "T3", "p_subset")
COLUMNS = ["model", "test accuracy, %", "triggers", "T1", "T1p", "T1 cons.", "T3", "p_subset", "decision"]
CURVES = (("loss", "Training loss", "loss", 1.0), ("val_accuracy", "Validation accuracy", "accuracy, %", 100.0),
          ("trigger_accuracy", "Trigger accuracy", "answered as assigned, %", 100.0))
EMPTY, NO_TAG = "-", "[tag withheld]"
TAGS = ("message", "additional_message")  # settings that are a part of a folder's name
# settings that may hold such a name, or a seed
PLACES = ("init", "label_model", "on", "query_type", "source_checkpoint", "command")
COPIED = {"first": "half (first layers) clean", "last": "half (last layers) clean"}  # --teacher-bn where not itself

# ---- what folders say: they may come from somebody else, so everything is data ----


class Record(NamedTuple):
    """A run's folder; each of its files may be missing, then its part is empty.

    settings  of run.json
    process   the other entries of run.json: device, versions
    summary   summary.json, {} while the run is not finished
    rows      metrics.jsonl, one dict an epoch
    """

    folder: Path
    settings: dict
    process: dict
    summary: dict
    rows: list

    @property
    def is_attack(self) -> bool:
        return "attack" in self.settings

    @property
    def edits(self) -> bool:
        """Whether this attack only edits a model, in several strengths, and keeps none."""
        return self.text("attack").split(" ")[0] in ("prune", "quantize")

    @property
    def figures(self) -> dict:
        """{whether with clean BatchNorm statistics: figures} of the run's model and of its twin, {} if not finished."""
        clean = self.summary.get("clean")
        return ({False: self.summary} if self.summary else {}) | (
            {True: clean} if isinstance(clean, dict) and clean else {})

    def text(self, key: str, part: dict | None = None) -> str:
        """A setting as text of bounded length, "" where there is none; `part` is another part of the record."""
        value = (self.settings if part is None else part).get(key)
        return "" if value is None else shorten(value)

    def series(self, key: str, factor: float = 1.0) -> list[tuple[float, float]]:
        """[(epoch, factor times the value under `key`)] of the metrics, by epochs; rows without numbers left out."""
        points = ((number(row.get("epoch")), number(row.get(key))) for row in self.rows)
        return sorted({epoch: factor * value for epoch, value in points if None not in (epoch, value)}.items())


def number(value) -> float | None:
    """A finite number of a sensible size as float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if -LARGEST <= value <= LARGEST else None  # NaN is in no range


def count(value) -> int | None:
    """A whole number of at least 0; None for anything else."""
    return int(value) if isinstance(value, int) and number(value) is not None and value >= 0 else None


def dicts(value) -> list[dict]:
    """The dicts of a list; nothing of anything else."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


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
        rows = [json.loads(line) for line in read_bounded(path).splitlines() if line.strip()]
    except FileNotFoundError:
        rows = []
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{path} is damaged: restore it, or train the run again") from error
    return Record(folder, settings, about, read_json(folder / "summary.json") or {}, dicts(rows))


# ---- names, and what a page for others keeps to itself ----
#
# Whoever knows the seed and has the data can draw the triggers again. The seed stands in run.json, in the command, and
# by custom in the tags of folders (`-msg seed1`). So the functions below take `seeds`, the numbers as text that the
# page must not tell; with --show-triggers there are none, and nothing is withheld.


def shown_tag(text: str, seeds: frozenset) -> str:
    """A tag; one that holds a seed is withheld whole, because a gap would tell which number of the page the seed is."""
    numbers = {digits.lstrip("0") or "0" for digits in re.findall(r"\d+(?:\.\d+)?", text)}
    return NO_TAG if numbers & seeds else text


def folder_name(record: Record, seeds: frozenset) -> str:
    """The name of a run's folder, whose last part is the tag."""
    name, tag = record.folder.resolve().name, record.text("additional_message" if record.is_attack else "message")
    head = name[: len(name) - len(tag)]
    if not name.endswith(tag) or not (head.endswith("_") or head in ("extraction", "distillation")):
        return "renamed folder" if seeds else name
    return head + shown_tag(tag, seeds)


def model_name(record: Record, seeds: frozenset, clean_statistics: bool = False) -> str:
    """What tables and curves call a run's model, or its twin with clean BatchNorm statistics."""
    twin = ", clean statistics" if clean_statistics else ""
    if not record.is_attack:
        kind = record.text("train_type")
        return ("benign model" if kind == "none" else f"source ({kind})") + twin
    attack = record.text("attack", record.summary) or record.text("attack")
    parts = [attack if record.edits else f"{attack} copy", record.text("model_type")]
    statistics = record.text("teacher_bn")
    if statistics not in ("", "paper"):
        parts.append(f"of {COPIED.get(statistics, statistics)} statistics")
    return f"{', '.join(filter(None, parts))} ({folder_name(record, seeds)}){twin}"


def shown_setting(key: str, value, seeds: frozenset) -> str:
    """A setting's value as text."""
    if seeds and (value and key in PLACES or "seed" in key):
        return "withheld"
    if key == "command" and isinstance(value, list):
        return " ".join(map(str, value))
    return shown_tag(str(value), seeds) if key in TAGS else str(value)


# ---- the models' answers, and what T1 says of them ----


def outcomes(labels, triggers) -> list[str]:
    """What became of each trigger, from answers (m,): kept, the assigned label; lost, a true one; other."""
    kept = labels == triggers.labels.numpy()
    lost = (labels[:, None] == triggers.true_labels.numpy()).any(1)
    return ["kept" if k else "lost" if t else "other" for k, t in zip(kept, lost)]


def judge_family(source: Record, attacks: list[Record], seeds: frozenset):
    """Ask every model for its answers, on the CPU: (owner, case, models, not asked), empty without a checkpoint yet.

    models     [{"name", "record", "clean", "labels", "outcomes", "by_chance", "sentence", "curve"}]: the answers (m,)
               and what they are; how many hits chance gives, see the template, and `OwnershipCase.curve`, both None
               where T1 does not apply; and the decision of `utils.verify claim --trust-owner` without benign models
    not asked  a sentence for each model that could not be, as those of `read_family` for the terminal alone

    Raises Refusal where the source is damaged; a copy that is damaged is not asked.
    """
    if not (source.folder / "checkpoints" / "checkpoint_nat_best.pt").is_file():
        return None, None, [], []
    owner = read_owner(source.folder)
    case, classes = OwnershipCase(owner, [], ALPHA), Classes(owner.classes)
    wanted = [(record, twin) for record in (source, *attacks) if not record.edits
              for twin in (False, True) if not twin or True in record.figures]
    judged, not_asked = [], []
    for record, twin in tqdm(wanted, disable=None, unit="model", leave=False):
        select = "last" if record.text("select", record.summary or record.settings) == "last" else "val"
        try:
            path = find_checkpoint(record.folder, select, "clean" if twin else "paper")
            answers = answers_of_model(read_model(path), path, owner.triggers.images, classes)
        except Refusal as refusal:
            if record is source and not twin:
                raise
            not_asked.append(f"{record.folder} is not asked for answers: {refusal}")
            continue
        report = case.report(answers)
        judged.append({
            "name": model_name(record, seeds, twin), "record": record, "clean": twin,
            "labels": answers.labels, "outcomes": outcomes(answers.labels, owner.triggers),
            "by_chance": None if case.t1_fails else float(case.chances()[case.trials(answers)].sum()),
            "sentence": claim_sentence(report), "curve": report["curve"],
        })
    return owner, case, judged, not_asked


# ---- the table of source, copies and benign models ----


def decision(t1: float | None, t1p: float | None) -> str:
    """What the tests decide, from log10 p: T1 and T1p are two, so the smaller p counts twice (Bonferroni)."""
    if t1 is None:
        return EMPTY
    return "claimed" if either(t1, t1p) <= DECIDES else "not claimed"


def result_rows(source: Record, attacks: list[Record], seeds: frozenset) -> list[tuple]:
    """[("source", "copies" or "benign models", cells of `COLUMNS`), ...], as the summaries state them."""
    rows, found = [], {}
    for record in (source, *attacks):
        name, summary_rows = model_name(record, seeds), dicts(record.summary.get("rows"))
        group = "copies" if record.is_attack else "benign models" if source.text("train_type") == "none" else "source"
        for row in summary_rows:  # "benign none" is the row of a run without a watermark itself
            if str(row.get("model")).startswith("benign ") and row["model"] != "benign none":
                found.setdefault(row["model"], row)
        if not record.summary:
            epochs = count(record.settings.get("epoch"))
            progress = f"not finished: {len(record.rows)} of {'?' if epochs is None else epochs} epochs"
            rows.append((group, [name, progress, *[EMPTY] * (len(COLUMNS) - 2)]))
        elif record.edits:
            for row in summary_rows:
                ratio, bits = number(row.get("ratio")), count(row.get("bits"))
                if ratio is not None or bits is not None:
                    strength = f"{bits} bits" if ratio is None else f"{100 * ratio:g} % pruned"
                    rows.append((group, _cells(f"{name}: {strength}", row)))
        else:
            rows += [(group, _cells(model_name(record, seeds, twin), figures))
                     for twin, figures in record.figures.items()]
    return rows + [("benign models", _cells(f"benign model {i + 1}" if seeds else shorten(name), row))
                   for i, (name, row) in enumerate(found.items())]  # each once; their folders' names may tell a seed


def _cells(name: str, figures: dict) -> list[str]:
    share, p = number(figures.get("test_accuracy")), figures.get("log10_p")
    hits, m = count(figures.get("trigger_hits")), count(figures.get("trigger_size"))
    values = [number(p.get(key)) if isinstance(p, dict) else None for key in TESTS]
    return [name, EMPTY if share is None else f"{100 * share:.2f}", EMPTY if None in (hits, m) else f"{hits}/{m}",
            *(EMPTY if value is None else f"{value:.2f}".replace("-", "−") for value in values), decision(*values[:2])]


def other_sources(source: Record, attacks: list[Record]) -> int:
    """How many finished copies stole another source than the one whose checkpoints lie in its folder."""
    paths = source.folder.glob("checkpoints/checkpoint_[nl]a*.pt")  # nat_best and latest
    present = {sha256_of_file(path) for path in paths if path.is_file()}
    return sum(bool(a.summary) and a.text("source_sha256", a.summary) not in present for a in attacks)


def disagreements(judged: list[dict]) -> list[tuple]:
    """(model, hits of its summary.json, hits of its checkpoint) of each model where the two are not equal."""
    both = [(model["name"], count(model["record"].figures.get(model["clean"], {}).get("trigger_hits")),
             model["outcomes"].count("kept")) for model in judged]
    return [(name, stated, kept) for name, stated, kept in both if stated not in (None, kept)]


def counts_of_claims(rows: list[tuple]) -> dict:
    """{group: (claimed, decided)} of `result_rows`, the source first, without groups of none."""
    counts = {}
    for name in ("source", "copies", "benign models"):
        said = [cells[-1] for group, cells in rows if group == name and cells[-1] != EMPTY]
        counts |= {name: (said.count("claimed"), len(said))} if said else {}
    return counts


# ---- the page ----


def _training(source: Record, attacks: list[Record], seeds: frozenset, case) -> tuple[list, dict | None]:
    """(Charts of losses and accuracies by epoch of each run that trains, their legend)."""
    runs = [(model_name(record, seeds, prefix != ""), record, prefix) for record in (source, *attacks)
            for prefix in ("", "clean_") if record.series(f"{prefix}val_accuracy")]
    if not runs:
        return [], None
    charts, chance = [], []
    if case is not None and not case.t1_fails:
        percent = 100 * float(case.chances().mean())
        chance = [(percent, f"chance: {percent:.1f} % at most")]
    for key, title, unit, factor in CURVES:
        lines = [(name, record.series(prefix + key, factor)) for name, record, prefix in runs]
        limits = chance if key == "trigger_accuracy" else []
        charts.append(chart(title, "epoch", unit, lines, percent=factor == 100, limits=limits))
    return charts, legend([name for name, _, _ in runs])


def _query_chart(model: dict) -> dict:
    """log10 p against the number of queries."""
    curve, n = model["curve"], model["curve"]["queries"]
    return chart(model["name"], "queries", f"log10 p of {curve['test']}", [("median", list(zip(n, curve["median"])))],
                 band=list(zip(n, curve["low"], curve["high"])), limits=[(math.log10(ALPHA), f"alpha = {ALPHA:g}")])


def _cards(owner: Owner, judged: list[dict]) -> list[dict]:
    """The triggers with their labels and all answers, in the order of the names under which they are exported."""
    triggers, cards = owner.triggers, []
    short = lambda i: shorten(owner.classes[int(i)], 30)
    for place, i in enumerate(np.argsort(owner.names).tolist()):
        true = " + ".join(map(short, triggers.true_labels[i])) or "?"
        picture = png_image(triggers.images[i].permute(1, 2, 0).numpy(), f"trigger {place + 1}, a {true}")
        answers = [(model["name"], short(model["labels"][i]), model["outcomes"][i]) for model in judged]
        cards.append(picture | {"true": true, "assigned": short(triggers.labels[i]), "answers": answers})
    return cards


def run_page(folder: Path, show_triggers: bool) -> tuple[str, list[str]]:
    """(the page, sentences for the terminal on what is missing in it).

    With `show_triggers` triggers, seeds and commands are in the page. Raises Refusal where the source is damaged.
    """
    source, attacks, left_out = read_family(folder)
    records = [source, *attacks]
    seeds = frozenset(record.text("seed") or "0" for record in records if not show_triggers)
    owner, case, judged, not_asked = judge_family(source, attacks, seeds)
    rows = result_rows(source, attacks, seeds)
    training, training_legend = _training(source, attacks, seeds, case)
    counted = lambda model: [str(model["outcomes"].count(kind)) for kind in ("kept", "lost", "other")]
    by_chance = lambda model: EMPTY if model["by_chance"] is None else f"{model['by_chance']:.1f}"

    def side_by_side(part: str) -> list:
        parts = [getattr(record, part) for record in records]
        keys = sorted({key for one in parts for key in one})[:300]
        return [[shorten(key), *(shown_setting(key, one[key], seeds) if key in one else "" for one in parts)]
                for key in keys]

    text = render(
        title=f"Watermark report: {folder_name(source, seeds)}", text=source.text,
        ours=source.text("model_type") in models.NAMES, finished=bool(source.summary), attacks=len(attacks),
        attacks_finished=sum(bool(attack.summary) for attack in attacks), asked=case is not None,
        claims=counts_of_claims(rows), columns=COLUMNS, rows=[cells for _, cells in rows], decides=DECIDES,
        left_out=len(left_out), not_asked=len(not_asked),
        other_sources=other_sources(source, attacks), disagreements=disagreements(judged),
        training=training, legend=training_legend, models=judged, triggers=len(owner.triggers) if owner else 0,
        answers=[[m["name"], kept, by_chance(m), lost, other] for m in judged for kept, lost, other in [counted(m)]],
        no_true_labels=bool(owner) and owner.triggers.true_labels.shape[1] == 0,
        cards=_cards(owner, judged) if show_triggers and owner else [], alpha=f"{ALPHA:g}", orders=ORDERS,
        why_no_curve=case.t1_fails if case else "the source has no checkpoint yet",
        curves=[_query_chart(model) for model in judged if model["curve"]], uniform=bool(owner) and owner.uniform,
        commitment=owner and owner.record and owner.record | {
            "beacon_name": shown_tag(shorten(owner.record["beacon_name"]), seeds)},
        runs=["setting", "source", *(folder_name(record, seeds) for record in attacks)],
        settings=side_by_side("settings"), process=side_by_side("process"), secret=not show_triggers)
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
    check_page_file(flags.out, "--out")
    text, missing = run_page(flags.run, flags.show_triggers)
    path = flags.out or flags.run / "report.html"
    write_page(path, text, private=flags.show_triggers)
    for sentence in missing:
        print(f"not in the page: {clean(sentence)}")
    secret = "; it shows the triggers, keep it private" if flags.show_triggers else ""
    print(f"wrote {clean(path)}, {len(text.encode()) / 1e3:.0f} kB{secret}")


if __name__ == "__main__":
    main()
