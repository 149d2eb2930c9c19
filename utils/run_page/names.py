"""What a page calls things, and what it keeps to itself.

Whoever knows the seed and has the data can draw the triggers again. The seed stands in run.json, in the command, and by
custom in the tags of folders (`-msg seed1`), so a page that may be shown to others withholds it everywhere.
"""

import re
from typing import NamedTuple

from utils.run_page.records import Record

TAGS = ("message", "additional_message")  # settings that are a part of a folder's name
# settings that may hold such a name, or a seed; the image commitment holds that of the preparation, and its salt
PLACES = ("init", "label_model", "on", "query_type", "source_checkpoint", "command", "image_commitment")
WITHHELD, NO_TAG = "withheld", "[tag withheld]"


COPIED = {"first": "half (first layers) clean", "last": "half (last layers) clean"}  # --teacher-bn where not itself


class Names(NamedTuple):
    """Names of runs for a page that must not tell `seeds`, numbers as text; nothing is withheld where there are none.

    A tag that holds a seed is withheld whole: a gap in it would tell which number of the page the seed is.
    """

    seeds: frozenset

    @classmethod
    def of(cls, records: list[Record], secret: bool) -> "Names":
        """The names for a page on these runs; `secret`: the page may be seen by others."""
        return cls(frozenset(record.text("seed") or "0" for record in records if secret))

    def tag(self, text: str) -> str:
        """A tag, or what stands for one that holds a seed."""
        numbers = {number.lstrip("0") or "0" for number in re.findall(r"\d+(?:\.\d+)?", text)}
        return NO_TAG if numbers & self.seeds else text

    def folder(self, record: Record) -> str:
        """The name of a run's folder, whose last part is the tag."""
        name, attack = record.folder.resolve().name, "attack" in record.settings
        tag = record.text("additional_message" if attack else "message")
        head = name[: len(name) - len(tag)]
        if not name.endswith(tag) or not (head.endswith("_") or head in ("extraction", "distillation")):
            return name if not self.seeds else "renamed folder"
        return head + self.tag(tag)

    def model(self, record: Record, clean: bool = False) -> str:
        """What tables and curves call a run's model; `clean`: its twin with clean BatchNorm statistics."""
        twin = ", clean statistics" if clean else ""
        if "attack" not in record.settings:
            kind = record.text("train_type")
            return ("benign model" if kind == "none" else f"source ({kind})") + twin
        attack = record.text("attack", record.summary) or record.text("attack")
        parts = [attack if record.edits else f"{attack} copy"]
        parts += [part for part in [record.text("model_type")] if part]
        statistics = record.text("teacher_bn")
        parts += [f"of {COPIED.get(statistics, statistics)} statistics"] if statistics not in ("", "paper") else []
        return f"{', '.join(parts)} ({self.folder(record)}){twin}"

    def setting(self, key: str, value) -> str:
        """A setting's value as text."""
        if self.seeds and value and key in PLACES or self.seeds and "seed" in key:
            return WITHHELD
        if key == "command" and isinstance(value, list):
            return " ".join(map(str, value))
        return self.tag(str(value)) if key in TAGS else str(value)
