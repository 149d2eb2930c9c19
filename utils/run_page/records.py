"""What the folders of a run and of its attacks say, read as data: they may come from somebody else."""

import json
import math
from pathlib import Path
from typing import NamedTuple

from utils.pages.markup import shorten
from utils.system.files import read_json, refuse_links
from utils.system.refusals import Refusal
from utils.system.untrusted import read_bounded

ATTACKS = 60  # of a source, at most; the rest is counted
LARGEST = 1e30  # of a number that is drawn or written


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
    def finished(self) -> bool:
        return bool(self.summary)

    @property
    def edits(self) -> bool:
        """Whether this attack only edits a model, in several strengths, and keeps none."""
        return self.text("attack").split(" ")[0] in ("prune", "quantize")

    @property
    def select(self) -> str:
        """Which checkpoint the run reports."""
        return "last" if self.text("select", self.summary or self.settings) == "last" else "val"

    @property
    def figures(self) -> list[tuple[str, dict]]:
        """[("" or "clean", figures)] of the run's model and of its twin with clean BatchNorm statistics."""
        found = [("", self.summary)] if self.summary else []
        clean = self.summary.get("clean")
        return [*found, ("clean", clean)] if isinstance(clean, dict) and clean else found

    def text(self, key: str, part: dict | None = None) -> str:
        """A setting as text of bounded length, "" where there is none; `part` is another part of the record."""
        value = (self.settings if part is None else part).get(key)
        return "" if value is None else shorten(value)

    def series(self, key: str, factor: float = 1.0) -> list[tuple[float, float]]:
        """[(epoch, factor times the value under `key`)] of the metrics, by epochs; rows without numbers left out."""
        points = {}
        for row in self.rows:
            epoch, value = number(row.get("epoch")), number(row.get(key))
            if epoch is not None and value is not None:
                points[epoch] = factor * value
        return sorted(points.items())


class Family(NamedTuple):
    """A source, its attacks in the order of their names, and a sentence for each that is left out.

    These sentences name folders and files; they are for the owner's terminal, not for the page.
    """

    source: Record
    attacks: list[Record]
    left_out: list[str]


def number(value) -> float | None:
    """A finite number of a sensible size as float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if -LARGEST <= value <= LARGEST and not math.isnan(value) else None


def count(value) -> int | None:
    """A whole number of at least 0; None for anything else."""
    return int(value) if isinstance(value, int) and number(value) is not None and value >= 0 else None


def read_family(run) -> Family:
    """The run in a folder and the attacks below it.

    Raises Refusal where there is no run, where it is an attack's, or where its own files are damaged; an attack that
    is damaged is left out.
    """
    folder = Path(run)
    source = read_record(folder)
    if source is None:
        raise Refusal(f"there is no run in {folder}: name the folder of a run of train.py")
    if "attack" in source.settings:
        raise Refusal(f"{folder} is an attack's run: name its source's folder, {folder.resolve().parent}")
    attacks, left_out = [], []
    for path in sorted(p.parent for p in folder.glob("*/run.json")):
        try:
            record = read_record(path)
        except Refusal as refusal:
            left_out.append(str(refusal))
            continue
        if record is not None and "attack" in record.settings:
            attacks.append(record)
    left_out += [f"{record.folder}: a page shows {ATTACKS} attacks" for record in attacks[ATTACKS:]]
    return Family(source, attacks[:ATTACKS], left_out)


def read_record(folder: Path) -> Record | None:
    """What a folder says; None where it holds no run. Raises Refusal for damaged files and symbolic links."""
    refuse_links(folder)
    about = read_json(folder / "run.json")
    if about is None:
        return None
    settings = about.get("settings")
    if not isinstance(settings, dict):
        raise Refusal(f"{folder / 'run.json'} is damaged: it has no settings")
    process = {key: value for key, value in about.items() if key != "settings"}
    return Record(folder, settings, process, read_json(folder / "summary.json") or {}, _rows(folder / "metrics.jsonl"))


def _rows(path: Path) -> list[dict]:
    try:
        lines = read_bounded(path).splitlines()
    except FileNotFoundError:
        return []
    try:
        rows = [json.loads(line) for line in lines if line.strip()]
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{path} is damaged: restore it, or train the run again") from error
    return [row for row in rows if isinstance(row, dict)]
