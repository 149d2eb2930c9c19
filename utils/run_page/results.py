"""The table of a run's page: source, copies and benign models as their summaries state them, and the paper's rows."""

from utils.pages.markup import element
from utils.pages.page import Section, note, paragraph
from utils.pages.tables import Cell, table
from utils.published.for_run import SETTINGS, Measured, paper_row
from utils.published.numbers import ACC, TRIG, P
from utils.run_page.judging import Judgement
from utils.run_page.names import Names
from utils.run_page.records import Family, Record, count, number
from utils.system.files import sha256_of_file

TESTS = (("T1", "T1"), ("T1_conservative", "T1 cons."), ("T3", "T3"), ("p_subset", "p_subset"))
DECIDES = -3  # log10 p of T1
EMPTY = "-"


def results_section(family: Family, judgement: Judgement | None, names: Names) -> Section:
    """The table, and remarks on what is missing or does not agree with the checkpoints."""
    classes = tuple(judgement.classes) if judgement else ()
    rows = [row for record in (family.source, *family.attacks) for row in _rows(record, family.source, classes, names)]
    rows += _benign_rows(family, classes, names)
    with_paper = any(paper for _, paper in rows)
    columns = ["model", "test accuracy, %", "triggers", *(title for _, title in TESTS), "T1 ≤ −3"]
    if with_paper:
        columns += ["paper: accuracy, %", "paper: triggers, %", "paper: log10 p", "paper's row"]
    body = [row + (_paper_cells(paper) if with_paper else []) for row, paper in rows]
    caption = "As the runs' summary.json state it. T1, T1 cons., T3 and p_subset are log10 of p-values."
    content = [
        table(caption, columns, body, range(1, 11)),
        paragraph("T1 is exact where the labels were drawn at random and committed to beforehand: the probability that "
                  "a model independent of them hits as many is at most 10 to the power of T1. T1 ≤ −3 decides. T3 and "
                  "p_subset compare with benign models and decide nothing."),
    ]
    if with_paper:
        content.append(paragraph(f"The paper's values are for {SETTINGS}; they can be compared only as far as this "
                                 "run is like that."))
    return Section("results", "Source, copies and benign models", content + _remarks(family, judgement))


def _rows(record: Record, source: Record, classes, names: Names) -> list[tuple[list, dict]]:
    """[(cells, paper's numbers)] of a run's models; one row that says so where it is not finished."""
    name = names.model(record)
    if not record.finished:
        return [([name, Cell(_progress(record), "absent"), *[EMPTY] * 6], {})]
    if record.edits:
        edits = record.summary.get("rows")
        rows = [row for row in edits if isinstance(row, dict)] if isinstance(edits, list) else []
        strengths = ((_strength(row), row) for row in rows)
        return [(_cells(f"{name}: {strength}", row), {}) for strength, row in strengths if strength]
    rows = []
    for twin, figures in record.figures:
        rows.append((_cells(names.model(record, bool(twin)), figures), _paper_of(record, source, classes, bool(twin))))
    return rows


def _progress(record: Record) -> str:
    wanted = count(record.settings.get("epoch"))
    return f"not finished: {len(record.rows)} of {'?' if wanted is None else wanted} epochs"


def _strength(row: dict) -> str:
    ratio, bits = number(row.get("ratio")), count(row.get("bits"))
    return f"{100 * ratio:g} % pruned" if ratio is not None else f"{bits} bits" if bits is not None else ""


def _cells(name: str, figures: dict) -> list:
    share = number(figures.get("test_accuracy"))
    hits, m = count(figures.get("trigger_hits")), count(figures.get("trigger_size"))
    p = figures.get("log10_p")
    p = p if isinstance(p, dict) else {}
    values = [number(p.get(key)) for key, _ in TESTS]
    decided = EMPTY if values[0] is None else Cell("yes", "strong") if values[0] <= DECIDES else "no"
    return [name, EMPTY if share is None else f"{100 * share:.2f}", EMPTY if None in (hits, m) else f"{hits}/{m}",
            *(EMPTY if value is None else _minus(f"{value:.2f}") for value in values), decided]


def _paper_of(record: Record, source: Record, classes, clean: bool, attack: str | None = None) -> dict:
    mixup = count(source.settings.get("num_mixup")) or 1
    is_attack = "attack" in record.settings
    if source.text("train_type") == "none":
        return {}
    kind = attack or (record.text("attack", record.summary) if is_attack else "source")
    run = Measured(
        source.text("dataset"), classes, source.text("train_type"), kind, mixup=mixup,
        images=record.text("dataset_source") if is_attack else "", model=record.text("model_type"),
        clean=clean or (is_attack and record.text("teacher_bn") == "clean"),
    )
    table_name, numbers = paper_row(run)
    return {"row": table_name, **numbers} if numbers else {}


def _benign_rows(family: Family, classes, names: Names) -> list[tuple[list, dict]]:
    """The benign models that any summary compares with, each once; their folders' names may tell a seed."""
    found = {}
    for record in (family.source, *family.attacks):
        rows = record.summary.get("rows")
        for row in rows if isinstance(rows, list) else []:
            # the row of a run without a watermark is "benign none", that of the run itself
            if isinstance(row, dict) and str(row.get("model")).startswith("benign ") and row["model"] != "benign none":
                found.setdefault(str(row["model"]), row)
    result = []
    for i, (name, row) in enumerate(found.items()):
        shown = f"benign model {i + 1}" if names.seeds else name
        result.append((_cells(shown, row), _paper_of(family.source, family.source, classes, False, "benign")))
    return result


def _paper_cells(paper: dict) -> list:
    shown = lambda pair: EMPTY if pair is None else _minus(f"{pair[0]:g}" + (f" ± {pair[1]:g}" if pair[1] else ""))
    return [*(shown(paper.get(column)) for column in (ACC, TRIG, P)), paper.get("row", EMPTY)]


def _remarks(family: Family, judgement: Judgement | None) -> list:
    remarks = []
    if not family.source.finished:
        remarks.append(note("The source's run is not finished; the same command of train.py goes on."))
    if not family.attacks and not family.left_out:
        remarks.append(note("There are no attacks on this source yet: distill.py and extraction.py make them."))
    if family.left_out:
        remarks.append(note(f"{len(family.left_out)} of the attacks are left out; what this command printed says why."))
    if judgement and judgement.not_asked:
        remarks.append(note(f"{len(judgement.not_asked)} of the models could not be asked for their answers; what this "
                            "command printed says why."))
    if family.source.finished:
        earlier = _copies_of_earlier_sources(family)
        if earlier:
            remarks.append(note(f"{earlier} of the copies stole another source than the one that is in this folder "
                                "now."))
    for judged in judgement.models if judgement else ():
        stated = count((judged.record.figures[judged.clean][1] if judged.record.finished else {}).get("trigger_hits"))
        if stated is not None and stated != judged.outcomes.count("kept"):
            remarks.append(note(element("strong", judged.name), f": its summary.json states {stated} hits, its "
                                f"checkpoint gives {judged.outcomes.count('kept')}. A few hits may differ on another "
                                "machine; more show that one of the two files was changed."))
    return remarks


def _copies_of_earlier_sources(family: Family) -> int:
    paths = family.source.folder.glob("checkpoints/checkpoint_[nl]a*.pt")  # nat_best and latest
    present = {sha256_of_file(path) for path in paths if path.is_file()}
    return sum(record.finished and record.summary.get("source_sha256") not in present for record in family.attacks)


def _minus(text: str) -> str:
    return text.replace("-", "−")
