"""The answers of a server as they come, kept in a private file, so that a half-asked list is not begun anew."""

import json
import os
import time
from pathlib import Path

from utils.answers.answers import Answer
from utils.system.files import ANSWERS_LIMIT, open_private, read_bounded
from utils.system.refusals import Refusal


class HalfAsked:
    """Answers {name of an image: Answer} of one list of images, a line of JSON each; `path` None keeps nothing.

    Reading takes the whole lines: the last one may have been cut off. Raises Refusal for a file of something else.
    """

    def __init__(self, path: Path | None, names: list[str], classes: int):
        self.path, self.answers, self.sentence = path, {}, None
        if path is None or not path.exists():
            return
        for line in read_bounded(path, ANSWERS_LIMIT).split(b"\n")[:-1]:
            self._read(line, names, classes)
        if self.answers:
            written = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
            self.sentence = (f"{len(self.answers)} of {len(names)} answers are from before an interruption, the last "
                             f"of {written}")

    def _read(self, line: bytes, names, classes: int) -> None:
        try:
            name, label, probabilities = json.loads(line)
            fits = name in names and type(label) is int and 0 <= label < classes
            if probabilities is not None:
                probabilities = [float(p) for p in probabilities]
                fits &= len(probabilities) == classes
            if not fits:
                raise ValueError
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise Refusal(f"{self.path} is damaged: remove it, and the server is asked for all images again") from error
        self.answers[name] = Answer(label, probabilities)

    def add(self, name: str, answer: Answer) -> None:
        """Keep an answer with a label; the file is on the disk when this returns."""
        if self.path is None or answer.label < 0:
            return
        whole = read_bounded(self.path, ANSWERS_LIMIT).rfind(b"\n") + 1 if self.path.exists() else 0
        with open(self.path, "ab", opener=open_private) as file:
            file.truncate(whole)  # a last line that was cut off
            file.write(json.dumps([name, answer.label, answer.probabilities]).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """The list is complete: the next claim asks anew."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
