"""A run and its attacks as one HTML page: `python -m utils.report RUN [-o report.html]`.

RUN is the folder of a run of train.py; the attacks are those of distill.py and extraction.py below it. The page holds
a verdict, a table of the models, curves of their training, and the settings. It has no script and needs no network.
The picture of the triggers, seeds and commands are in it only with --show-triggers.
"""

import base64
import functools
import hashlib
import io
import json
import re
import warnings
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import models
from utils.ownership.pvalues import bonferroni
from utils.ownership.results import LOG_ALPHA, hashes_of_source, is_stale
from utils.runs.folder import COLUMNS, finite_number, row_cells
from utils.system.files import check_output_file, read_bounded, read_json, refuse_links, write_atomically
from utils.system.machine import new_figure
from utils.system.refusals import Parser, Refusal, printable, refuse_in_one_sentence

TEMPLATE = Path(__file__).with_name("report.html.j2")
ATTACKS = 60  # of a source, at most; the rest is counted
ROWS = 200  # of a summary, at most
RECORD_LIMIT = 512 << 10  # bytes of a run.json or summary.json; those of 60 attacks are in memory at once
EPOCHS = 10_000  # of a run, at most
POINTS = 300  # of a curve, about
CURVES = (("loss", "Training loss", "loss", 1.0), ("val_accuracy", "Validation accuracy", "accuracy, %", 100.0),
          ("trigger_accuracy", "Trigger accuracy", "answered as assigned, %", 100.0))
COLOURS = ("#0b57a4", "#a33b00", "#00664d", "#8a2a6b", "#1a1a1a", "#6b5200")  # at least 5:1 on white
DASHES, MARKERS = ("-", "--", ":", "-.", (0, (6, 1, 1, 1))), "os^Dx"  # 6 and 5 and 5: 30 looks, 25 without colour
SVG = {  # equal bytes at each call, text as text, and a name's $ no formula
    "svg.hashsalt": "margin", "svg.fonttype": "none", "text.parse_math": False, "font.size": 10,
    "font.family": ["sans-serif"], "font.sans-serif": ["DejaVu Sans"],
}
# settings that may hold a part of a folder's name, and with it the seed
PLACES = ("init", "label_model", "on", "query_type", "command", "message", "additional_message")


# ---- what folders say: they may come from somebody else, so everything is data ----


def shorten(text) -> str:
    """Text of at most 120 characters, for what files say."""
    text = str(text)
    return text if len(text) <= 120 else text[:119] + "…"


class Record(NamedTuple):
    """A run's folder; each of its files may be missing, then its part is empty.

    about    run.json: the settings and, beside them, the command, device and versions
    summary  summary.json, {} while the run is not finished
    rows     metrics.jsonl, of each epoch the numbers that are drawn
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
        return self.summary.get("role") == "edited"

    def text(self, key: str) -> str:
        """An entry of run.json as text of bounded length, "" where there is none."""
        value = self.about.get(key)
        return "" if value is None else shorten(value)

    def series(self, key: str, factor: float = 1.0) -> list[tuple[float, float]]:
        """[(epoch, factor times the value under `key`)] of the metrics, by epochs; rows without numbers left out.

        Of many epochs about `POINTS` are given, the last one among them.
        """
        found = sorted({row["epoch"]: factor * row[key] for row in self.rows if {"epoch", key} <= row.keys()}.items())
        return [*found[: -1 : max(1, len(found) // POINTS)], *found[-1:]]


def read_record(folder: Path) -> Record | None:
    """What a folder says; None where it holds no run. Raises Refusal for damaged files and symbolic links."""
    refuse_links(folder)
    about = read_json(folder / "run.json", RECORD_LIMIT)
    if about is None:
        return None
    settings = about.pop("settings", None)
    if not isinstance(settings, dict):
        raise Refusal(f"{folder / 'run.json'} is damaged: it has no settings")
    path = folder / "metrics.jsonl"
    lines = [line for line in read_bounded(path).splitlines() if line.strip()] if path.exists() else []
    if len(lines) > EPOCHS:
        raise Refusal(f"{path} has {len(lines)} epochs; a page shows runs of {EPOCHS} at most")
    drawn, rows = ("epoch", *(prefix + key for key, *_ in CURVES for prefix in ("", "clean_"))), []
    try:
        for row in map(json.loads, lines):
            numbers = {key: finite_number(row.get(key)) for key in drawn} if isinstance(row, dict) else {}
            rows.append({key: number for key, number in numbers.items() if number is not None})
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{path} is damaged: restore it, or train the run again") from error
    return Record(folder, about | settings, read_json(folder / "summary.json", RECORD_LIMIT) or {}, rows)


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
        if len(attacks) == ATTACKS:
            left_out.append(f"{path}: a page shows {ATTACKS} attacks")
            continue
        try:
            attacks += [record for record in [read_record(path)] if record is not None and record.is_attack]
        except Refusal as refusal:
            left_out.append(str(refusal))
    return source, attacks, left_out


# ---- names, and what a page for others keeps to itself ----
#
# Whoever knows the seed and has the data can draw the triggers again. The seed stands in run.json, in the command, and
# by custom in the tags of folders (`-msg seed1`). So without --show-triggers a page is `secret`: it tells no number of
# a folder's name but those of networks, because a gap for the seed alone would tell which number of the page it is.


def folder_name(record: Record, secret: bool) -> str:
    """The name of a run's folder."""
    name, networks = record.folder.resolve().name, "|".join(models.NAMES)
    return re.sub(rf"({networks})(?!\d)|\d+", lambda found: found[1] or "…", name) if secret else name


def model_name(record: Record, secret: bool, twin: bool = False) -> str:
    """What table and curves call a run's model, or its twin with clean BatchNorm statistics."""
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


# ---- the table of source, copies and benign models ----


def decision(row: dict) -> str:
    """What the tests decide, from log10 p: T1 and T1p are two, so the smaller p counts twice (Bonferroni)."""
    p = row.get("log10_p")
    t1, t1p = (finite_number(p.get(test)) if isinstance(p, dict) else None for test in ("T1", "T1p"))
    return "-" if t1 is None else "claimed" if bonferroni(t1, t1p) <= LOG_ALPHA else "not claimed"


def result_rows(source: Record, attacks: list[Record], secret: bool) -> list[tuple]:
    """[("source", "copies", "edited models" or "benign models", cells of `COLUMNS` and the decision), ...], as the
    summaries state them.
    """
    cells = lambda name, row: [*row_cells(row | {"model": name}), decision(row)]
    rows, benign = [], {}
    for record in (source, *attacks):
        name, listed = model_name(record, secret), record.summary.get("rows")
        summary_rows = [row for row in listed[:ROWS] if isinstance(row, dict)] if isinstance(listed, list) else []
        group = "copies" if record.is_attack else "benign models" if source.text("train_type") == "none" else "source"
        for row in summary_rows:  # "benign none" is the row of a run without a watermark itself
            if str(row.get("model")).startswith("benign ") and row["model"] != "benign none":
                shown = cells(row["model"], row)  # folders of several may have one name
                benign.setdefault((*shown[:3], shown[-1]), row)
        if not record.summary:
            progress = f"not finished: {len(record.rows)} of {record.text('epoch') or '?'} epochs"
            rows.append((group, [name, progress, *["-"] * (len(COLUMNS) - 1)]))
        elif record.edits:
            for row in summary_rows:
                ratio, bits = finite_number(row.get("ratio")), finite_number(row.get("bits"))
                if ratio is not None or bits is not None:
                    strength = f"{bits} bits" if ratio is None else f"{100 * ratio:g} % pruned"
                    rows.append(("edited models", cells(f"{name}: {strength}", row)))
        else:
            rows.append((group, cells(name, record.summary)))
            if isinstance(clean_figures := record.summary.get("clean"), dict) and clean_figures:
                rows.append((group, cells(model_name(record, secret, twin=True), clean_figures)))
    return rows + [("benign models", cells(f"benign model {i + 1}" if secret else shorten(row["model"]), row))
                   for i, row in enumerate(benign.values())]  # each once; their folders' names may tell a seed


def counts_of_claims(rows: list[tuple]) -> dict:
    """{group: (claimed, decided)} of `result_rows`, the source first, without groups of none."""
    said = {name: [cells[-1] for group, cells in rows if group == name and cells[-1] != "-"]
            for name in ("source", "copies", "edited models", "benign models")}
    return {name: (of.count("claimed"), len(of)) for name, of in said.items() if of}


# ---- curves ----


def chart(title: str, y_label: str, lines: list) -> dict:
    """Curves against epochs as an image of a page: {"title", "src", "alt"}; "src" is "" without a line.

    lines  [(name, [(epoch, y), ...] by rising epoch), ...]; the n-th has the n-th look, as in `legend`; y in % is in
           [0, 100]
    """
    drawn = [(name, points, look(i)) for i, (name, points) in enumerate(lines) if points]
    if not drawn:
        return {"title": title, "src": ""}
    figure, (ax,) = new_figure(4.4, 3.1, 1, 1)
    for _, points, style in drawn:
        ax.plot(*zip(*points), **style, markevery=max(1, len(points) // 9))
    if "%" in y_label:
        ax.set_ylim(-3, 103)
    ax.set(xlabel="epoch", ylabel=y_label)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#dcdcdc")
    ends = "; ".join(f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points, _ in drawn)
    return {"title": title, "src": svg_uri(figure), "alt": f"Chart: {title}, {y_label} against epoch. {ends}"}


def legend(names: list) -> dict:
    """The looks of the lines of charts with their names, one below the other: an image, {"src", "alt"}."""
    from matplotlib.lines import Line2D

    figure, _ = new_figure(7, 0.1 + 0.22 * len(names))
    figure.legend([Line2D([], [], **look(i)) for i in range(len(names))], [shorten(printable(name)) for name in names],
                  loc="center left", frameon=False, handlelength=4, borderpad=0)
    return {"src": svg_uri(figure), "alt": "The lines: " + "; ".join(names)}


def look(i: int) -> dict:
    """The look of the i-th line; colour, dash and mark differ, so that colour is not needed."""
    return {"color": COLOURS[i % len(COLOURS)], "ls": DASHES[i % len(DASHES)], "lw": 1.8, "markersize": 5,
            "marker": MARKERS[i % len(MARKERS)], "fillstyle": "none" if i // len(MARKERS) % 2 else "full"}


def svg_uri(figure) -> str:
    """A figure as the address under which a page finds it in itself."""
    figure.savefig(buffer := io.BytesIO(), format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def training_charts(records: list[Record], secret: bool) -> tuple[list, dict | None]:
    """(Charts of losses and accuracies by epoch of each run that trains, their legend); [] and None without any."""
    import matplotlib  # not before a command began, which makes sure that matplotlib can be imported

    runs = [(model_name(record, secret, prefix != ""), record, prefix) for record in records
            for prefix in ("", "clean_") if record.series(f"{prefix}val_accuracy")]
    if not runs:
        return [], None
    with matplotlib.rc_context(SVG), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of scripts that the font lacks; the reader's browser has them
        charts = [chart(title, unit, [(name, record.series(prefix + key, factor)) for name, record, prefix in runs])
                  for key, title, unit, factor in CURVES]
        return charts, legend([name for name, _, _ in runs])


# ---- the page ----


def render(**values) -> str:
    """The page that the template makes of values; each is escaped, and made `printable`.

    Every picture lies in the page, so its Content-Security-Policy forbids all but those and its own style sheet.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
        finalize=lambda value: value if hasattr(value, "__html__") else printable(str(value)),
    )
    environment.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return environment.get_template(TEMPLATE.name).render(**values)


def run_page(folder: Path, show_triggers: bool) -> tuple[str, list[str]]:
    """(the page, sentences for the terminal on what is missing in it).

    With `show_triggers` triggers, seeds and commands are in the page. Raises Refusal where the source is damaged.
    """
    source, attacks, left_out = read_family(folder)
    records, secret, picture = [source, *attacks], not show_triggers, folder / "trigger.png"
    rows = result_rows(source, attacks, secret)
    training, training_legend = training_charts(records, secret)
    finished = [attack.summary for attack in attacks if attack.summary]
    hashes = functools.cache(hashes_of_source)
    keys = sorted({key for record in records for key in record.about})[:300]
    triggers = base64.b64encode(read_bounded(picture)).decode() if show_triggers and picture.exists() else ""
    text = render(
        title=f"Watermark report: {folder_name(source, secret)}", text=source.text, finished=bool(source.summary),
        attacks=len(attacks), attacks_finished=len(finished),
        other_sources=sum(is_stale(summary, folder, hashes) for summary in finished),
        claims=counts_of_claims(rows), decides=LOG_ALPHA, columns=[*COLUMNS, "decision"],
        rows=[cells for _, cells in rows], left_out=len(left_out), training=training, legend=training_legend,
        triggers=triggers, secret=secret,
        runs=["setting", "source", *(folder_name(record, secret) for record in attacks)],
        settings=[[shorten(key), *(shown_setting(key, record.about[key], secret) if key in record.about else ""
                                   for record in records)] for key in keys])
    return text, left_out


@refuse_in_one_sentence
def main(argv=None):
    parser = Parser(prog="python -m utils.report", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run of train.py")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.html", help="the page (default: RUN/report.html)")
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
        print(f"not in the page: {printable(' '.join(sentence.split()))}")  # on one line, whatever names hold
    secret = "; it shows the triggers, keep it private" if flags.show_triggers else ""
    print(f"wrote {printable(str(path))}, {len(text.encode()) / 1e3:.0f} kB{secret}")


if __name__ == "__main__":
    main()
