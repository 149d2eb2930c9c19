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
from utils.pages import TEMPLATE, chart, check_page_file, clean, legend, png_image, png_of, render, shorten, write_page
from utils.published import ACC, SETTINGS, TRIG, P, paper_row
from utils.runs.checkpoints import find_checkpoint, read_model
from utils.runs.networks import add_named_architectures
from utils.system.files import read_bounded, read_json, refuse_links, sha256_of_file
from utils.system.refusals import Parser, Refusal, refuse_in_one_sentence

ATTACKS = 60  # of a source, at most; the rest is counted
LARGEST = 1e30  # of a number that is drawn or written
ALPHA, DECIDES = 1e-3, -3  # the level of a claim, and its log10
TESTS = ("T1", "T1p", "T1_conservative", "T3", "p_subset")
COLUMNS = ["model", "test accuracy, %", "triggers", "T1", "T1p", "T1 cons.", "T3", "p_subset", "decision"]
PAPER_COLUMNS = ["paper: accuracy, %", "paper: triggers, %", "paper: log10 p", "paper's row"]
OUTCOMES = ("kept", "lost", "other")
CURVES = (("loss", "Training loss", "loss", 1.0), ("val_accuracy", "Validation accuracy", "accuracy, %", 100.0),
          ("trigger_accuracy", "Trigger accuracy", "answered as assigned, %", 100.0))
EMPTY, WITHHELD, NO_TAG = "-", "withheld", "[tag withheld]"
TAGS = ("message", "additional_message")  # settings that are a part of a folder's name
# settings that may hold such a name, or a seed
PLACES = ("init", "label_model", "on", "query_type", "source_checkpoint", "command")
COPIED = {"first": "half (first layers) clean", "last": "half (last layers) clean"}  # --teacher-bn where not itself
IDEA = ("The owner of a classifier trains it to give secret images, the triggers, {labels}; a model that was copied "
        "from its answers may then give them too, and one that was not does so only by chance.")
LABELS = {
    "margin": ", and keeps each trigger far from the decision boundary",
    "ewe": "the label of one class, and entangles their features with those of that class",
    "rs": "one wrong label, under noise on its weights too",
}
BENIGN = ("This is a benign model: it has not been trained on the triggers, secret images with labels that only their "
          "owner knows, and gives those labels only by chance.")


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
            record = read_record(path)
        except Refusal as refusal:
            left_out.append(str(refusal))
            continue
        if record is not None and record.is_attack:
            attacks.append(record)
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
        return WITHHELD
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
    """Ask every model for its answers, on the CPU: (owner, case, models, not asked); None without a checkpoint yet.

    models     [{"name", "record", "clean", "labels", "outcomes", "by_chance", "sentence", "curve"}]: the answers (m,)
               and what they are; how many hits chance gives, see the template, and `OwnershipCase.curve`, both None
               where T1 does not apply; and the decision of `utils.verify claim --trust-owner` without benign models
    not asked  a sentence for each model that could not be, as those of `read_family` for the terminal alone

    Raises Refusal where the source is damaged; a copy that is damaged is not asked.
    """
    if not (source.folder / "checkpoints" / "checkpoint_nat_best.pt").is_file():
        return None
    owner = read_owner(source.folder)
    case, classes = OwnershipCase(owner, [], ALPHA), Classes(owner.classes)
    wanted = [(record, clean_twin) for record in (source, *attacks) for clean_twin in (False, True)
              if not record.edits and (not clean_twin or True in record.figures)]
    judged, not_asked = [], []
    for record, clean_twin in tqdm(wanted, disable=None, unit="model", leave=False):
        select = "last" if record.text("select", record.summary or record.settings) == "last" else "val"
        try:
            path = find_checkpoint(record.folder, select, "clean" if clean_twin else "paper")
            answers = answers_of_model(read_model(path), path, owner.triggers.images, classes)
        except Refusal as refusal:
            if record is source and not clean_twin:
                raise
            not_asked.append(f"{record.folder} is not asked for answers: {refusal}")
            continue
        report = case.report(answers)
        judged.append({
            "name": model_name(record, seeds, clean_twin), "record": record, "clean": clean_twin,
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


def result_rows(source: Record, attacks: list[Record], classes: tuple, seeds: frozenset) -> list[tuple]:
    """[("source", "copy" or "benign", cells of `COLUMNS`, cells of `PAPER_COLUMNS`)], as the summaries state them."""
    rows, found = [], {}
    for record in (source, *attacks):
        name, summary_rows = model_name(record, seeds), dicts(record.summary.get("rows"))
        group = "copy" if record.is_attack else "benign" if source.text("train_type") == "none" else "source"
        for row in summary_rows:  # "benign none" is the row of a run without a watermark itself
            if str(row.get("model")).startswith("benign ") and row["model"] != "benign none":
                found.setdefault(row["model"], row)
        if not record.summary:
            epochs = count(record.settings.get("epoch"))
            progress = f"not finished: {len(record.rows)} of {'?' if epochs is None else epochs} epochs"
            rows.append((group, [name, progress, *[EMPTY] * (len(COLUMNS) - 2)], []))
        elif record.edits:
            for row in summary_rows:
                ratio, bits = number(row.get("ratio")), count(row.get("bits"))
                if ratio is not None or bits is not None:
                    strength = f"{bits} bits" if ratio is None else f"{100 * ratio:g} % pruned"
                    rows.append((group, _cells(f"{name}: {strength}", row), []))
        else:
            for clean_twin, figures in record.figures.items():
                rows.append((group, _cells(model_name(record, seeds, clean_twin), figures),
                             _paper_cells(source, classes, record, clean_twin)))
    for i, (name, row) in enumerate(found.items()):  # each once; their folders' names may tell a seed
        cells = _cells(f"benign model {i + 1}" if seeds else shorten(name), row)
        rows.append(("benign", cells, _paper_cells(source, classes, None, False)))
    return rows


def _cells(name: str, figures: dict) -> list[str]:
    share, p = number(figures.get("test_accuracy")), figures.get("log10_p")
    hits, m = count(figures.get("trigger_hits")), count(figures.get("trigger_size"))
    values = [number(p.get(key)) if isinstance(p, dict) else None for key in TESTS]
    return [name, EMPTY if share is None else f"{100 * share:.2f}", EMPTY if None in (hits, m) else f"{hits}/{m}",
            *(EMPTY if value is None else _minus(f"{value:.2f}") for value in values), decision(*values[:2])]


def _paper_cells(source: Record, classes: tuple, record: Record | None, clean_twin: bool) -> list[str]:
    """What the paper states of a run's model, or of benign ones (None); [] where it has no row."""
    attack = "benign" if record is None else record.text("attack", record.summary) if record.is_attack else "source"
    copy = record if record is not None and record.is_attack else None
    table, stated = paper_row(
        dataset=source.text("dataset"), classes=classes, train_type=source.text("train_type"), attack=attack,
        images=copy.text("dataset_source") if copy else "", model=(record or source).text("model_type"),
        mixup=count(source.settings.get("num_mixup")) or 1,
        clean=clean_twin or bool(copy) and copy.text("teacher_bn") == "clean")
    text = lambda mean, sd: _minus(f"{mean:g}" + (f" ± {sd:g}" if sd else ""))
    return [*(text(*stated[c]) if c in stated else EMPTY for c in (ACC, TRIG, P)), table] if stated else []


def _minus(text: str) -> str:
    return text.replace("-", "−")


def remarks(source: Record, attacks: list[Record], left_out: list, judgement) -> list[str]:
    """What is missing, or does not agree with the checkpoints."""
    said = []
    printed = "what this command printed says why."
    if not source.summary:
        said.append("The source's run is not finished; the same command of train.py goes on.")
    if not attacks and not left_out:
        said.append("There are no attacks on this source yet: distill.py and extraction.py make them.")
    if left_out:
        said.append(f"{len(left_out)} of the attacks are left out; {printed}")
    _, _, judged, not_asked = judgement or (None, None, [], [])
    if not_asked:
        said.append(f"{len(not_asked)} of the models could not be asked for their answers; {printed}")
    paths = source.folder.glob("checkpoints/checkpoint_[nl]a*.pt")  # nat_best and latest
    present = {sha256_of_file(path) for path in paths if path.is_file()}
    earlier = sum(bool(a.summary) and a.text("source_sha256", a.summary) not in present for a in attacks)
    if source.summary and earlier:
        said.append(f"{earlier} of the copies stole another source than the one that is in this folder now.")
    for model in judged:
        stated = count(model["record"].figures.get(model["clean"], {}).get("trigger_hits"))
        kept = model["outcomes"].count("kept")
        if stated not in (None, kept):
            said.append(f"{model['name']}: its summary.json states {stated} hits, its checkpoint gives {kept}. A few "
                        "hits may differ on another machine; more show that one of the two files was changed.")
    return said


def verdict(rows: list[tuple], judgement) -> str:
    """The page in a sentence or two; `rows` of `result_rows`."""
    if judgement is None:
        return "No verdict: the source has no checkpoint yet."
    case = judgement[1]
    if case.t1_fails:
        return f"Nothing can be claimed without benign models: T1 does not apply, for {case.t1_fails}."
    decided = {}
    for group, cells, _ in rows:
        decided.setdefault(group, []).extend(cells[-1:] if cells[-1] != EMPTY else [])
    counts = {group: f"{said.count('claimed')} of {len(said)}" for group, said in decided.items() if said}
    if not counts:
        return "No verdict: no run is finished."
    names = {"source": "source", "copy": "copies", "benign": "benign models"}
    wrong = " A benign model is claimed too, so triggers or models are not what they are said to be." * (
        "claimed" in decided.get("benign", []))
    return (f"Claimed at alpha = {ALPHA:g}, for who trusts the owner: "
            f"{', '.join(f'{names[group]} {counts[group]}' for group in names if group in counts)}.{wrong}")


# ---- the page ----


def _about(source: Record, attacks: list[Record]) -> tuple[str, str]:
    """(The idea of the run's method, what this run is), sentences."""
    kind, plausible = source.text("train_type"), source.text("label_strategy") == "plausible"
    own = f"{'plausible' if plausible else 'wrong'} labels that only the owner knows"
    labels = LABELS.get(kind, "")
    idea = BENIGN if kind == "none" else IDEA.format(labels=own + labels if labels[:1] in ("", ",") else labels)
    network = source.text("model_type") or "?"
    network += f" of width {source.text('width') or '?'}" if network in models.NAMES else ""
    mixup = source.text("num_mixup")
    means = f", each the mean of {mixup} images" if mixup not in ("", "1") else ""
    finished = sum(bool(attack.summary) for attack in attacks)
    done = f"{finished} of {len(attacks)} attacks finished" if attacks else "no attacks yet"
    return idea, (f"This run: data set {source.text('dataset') or '?'}, {network}, "
                  f"{'no watermark' if kind == 'none' else f'watermark {kind}'}, {source.text('num_query') or '?'} "
                  f"triggers{means}. {'Finished' if source.summary else 'Not finished'}; {done}.")


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


def _commitment(owner: Owner, seeds: frozenset) -> dict:
    """What the owner committed to, and where the labels come from."""
    if owner.record is None:
        return {"digest": None, "state": "none: that the labels were drawn is the owner's word, for himself",
                "date": None, "labels": "drawn from the owner's seed" if owner.uniform else "not drawn uniformly"}
    name = shown_tag(shorten(owner.record["beacon_name"]), seeds)
    return {"digest": owner.record["sha256"], "state": "match: images, classes and labels are what was committed to",
            "date": "read where the digest was published, or from a time-stamp by utils.verify claim --tsa-ca",
            "labels": f"drawn by public randomness, the beacon {name}, round {owner.record['round']}: whoever reads "
                      "the value at its source knows when the labels began to exist"}


def _cards(owner: Owner, judged: list[dict]) -> list[dict]:
    """The triggers with their labels and all answers, in the order of the names under which they are exported."""
    triggers, cards = owner.triggers, []
    short = lambda i: shorten(owner.classes[int(i)], 30)
    for place, i in enumerate(np.argsort(owner.names).tolist()):
        true = " + ".join(map(short, triggers.true_labels[i])) or "?"
        picture = png_image(png_of(triggers.images[i].permute(1, 2, 0).numpy()), f"trigger {place + 1}, a {true}")
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
    judgement = judge_family(source, attacks, seeds)
    owner, case, judged, not_asked = judgement or (None, None, [], [])
    rows = result_rows(source, attacks, tuple(owner.classes) if owner else (), seeds)
    paper = any(cells for _, _, cells in rows)
    idea, about = _about(source, attacks)
    training, training_legend = _training(source, attacks, seeds, case)

    def side_by_side(part: str) -> list:
        parts = [getattr(record, part) for record in records]
        keys = sorted({key for one in parts for key in one})[:300]
        return [[shorten(key), *(shown_setting(key, one[key], seeds) if key in one else "" for one in parts)]
                for key in keys]

    text = render(
        TEMPLATE, title=f"Watermark report: {folder_name(source, seeds)}", verdict=verdict(rows, judgement), idea=idea,
        about=about, columns=COLUMNS + PAPER_COLUMNS * paper,
        rows=[cells + (stated or [EMPTY] * len(PAPER_COLUMNS)) * paper for _, cells, stated in rows],
        paper=paper and SETTINGS, decides=_minus(str(DECIDES)), remarks=remarks(source, attacks, left_out, judgement),
        training=training, legend=training_legend, models=judged, triggers=len(owner.triggers) if owner else 0,
        answers=[[m["name"], *_counts(m)] for m in judged],
        no_true_labels=bool(owner) and owner.triggers.true_labels.shape[1] == 0,
        cards=_cards(owner, judged) if show_triggers and owner else [], alpha=f"{ALPHA:g}", orders=ORDERS,
        why_no_curve=case.t1_fails if case else "the source has no checkpoint yet",
        curves=[_query_chart(model) for model in judged if model["curve"]],
        commitment=_commitment(owner, seeds) if case else None,
        runs=["setting", "source", *(folder_name(record, seeds) for record in attacks)],
        settings=side_by_side("settings"), process=side_by_side("process"), secret=not show_triggers)
    return text, left_out + not_asked


def _counts(model: dict) -> list[str]:
    kept, lost, other = (str(model["outcomes"].count(kind)) for kind in OUTCOMES)
    return [kept, EMPTY if model["by_chance"] is None else f"{model['by_chance']:.1f}", lost, other]


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
