"""A suspect's answers to images, and every form in which they are given: logits, CSV, .npy, text and JSON."""

import csv
import io
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

import models
from utils.system.files import ANSWERS_LIMIT, read_array, read_bounded
from utils.system.refusals import Refusal
from utils.training.metrics import predict

HEADER = ("name", "image", "file", "filename")
FORMS = ("the name or number of a class; JSON {\"label\": ...} or {\"probabilities\": [...] or {name: ...}}; or a list "
         "of probabilities or of {\"label\": ..., \"score\": ...}")
BY_NAME = "answer by name, or pass --columns FILE, which names the suspect's classes in its order"


class Answers(NamedTuple):
    """Answers to m triggers.

    labels         int64 (m,), -1 where there is no answer
    probabilities  (m, C), a row of zeros where there is no answer; None where only labels are known
    """

    labels: np.ndarray
    probabilities: np.ndarray | None


class Answer(NamedTuple):
    """The answer to one image: a class's number, -1 where there is none, and C probabilities or None."""

    label: int = -1
    probabilities: list | None = None


class Classes:
    """The owner's C class names, and which of them the numbers and columns of a suspect mean.

    columns  the suspect's own class names in its order, of --columns or of its checkpoint; None where nobody says them
    """

    def __init__(self, names: list[str], columns: list[str] | None = None, where: str = "--columns"):
        self.names, self.given = names, columns is not None
        if columns is not None and sorted(columns) != sorted(names):
            other = next((name for name in columns if name not in names), "")
            raise Refusal(f"{where}: its {len(columns)} classes are not the {len(names)} of the triggers"
                          + (f"; {other[:60]!r} is none of them" if other else "") + ": answers cannot be compared")
        self.order = list(range(len(names))) if columns is None else [names.index(name) for name in columns]

    def __len__(self):
        return len(self.names)

    def columns(self, where) -> list[int]:
        """The class of each number or column of the suspect; Refusal, naming `where`, where that is ambiguous.

        It is where nobody says the suspect's order and a class has another one's number as its name, as in folders
        0, 1, 10, 2: whoever sorts them otherwise means another class.
        """
        if not self.given and any(name.isdigit() and name != str(i) for i, name in enumerate(self.names)):
            raise Refusal(f"{where}: numbers and columns are ambiguous, because classes have other numbers for names; "
                          f"{BY_NAME}")
        return self.order

    def number(self, text: str, where) -> int:
        """The class that a text gives by name or, where that is not ambiguous, by number; Refusal where none."""
        text = text.strip()
        if text in self.names:
            return self.names.index(text)
        if text.isascii() and text.isdigit() and len(text) < 10 and int(text) < len(self):
            return self.columns(f"{where}: {text!r}")[int(text)]
        raise Refusal(f"{where}: {text[:60]!r} is no class")

    def arrange(self, values, where):
        """Probabilities (..., C) in the suspect's order, in the owner's."""
        arranged = np.empty_like(values)
        arranged[..., self.columns(where)] = values
        return arranged


def gather_answers(given: list[Answer], classes: int) -> Answers:
    """Answers to single images as one; without probabilities where one that was given has none."""
    labels = np.array([answer.label for answer in given], dtype=np.int64)
    if not all(answer.probabilities for answer in given if answer.label >= 0) or (labels < 0).all():
        return Answers(labels, None)
    return Answers(labels, np.array([answer.probabilities or [0.0] * classes for answer in given]))


def answers_of_model(model, path, images, classes: Classes) -> Answers:
    """The model's answers to uint8 images (m, 3, S, S), with softmax probabilities.

    Raises Refusal, which names `path`, where the model has other classes or its logits are not finite, or where code
    that is not this project's fails.
    """
    try:
        logits = predict(model, images).double().cpu()
    except (Exception, SystemExit) as error:
        if models.is_own(model):
            raise
        why = " ".join(str(error).split())[:150]
        raise Refusal(f"{path} cannot be asked about images of {images.shape[-1]} x {images.shape[-1]} pixels "
                      f"({type(error).__name__}: {why}); mend the function that -mt names") from error
    if logits.dim() != 2 or len(logits) != len(images):
        raise Refusal(f"{path} answers {len(images)} images with {tuple(logits.shape)} numbers, not a row for each")
    return answers_of_logits(logits.numpy(), path, classes)


def answers_of_logits(logits, path, classes: Classes) -> Answers:
    """Answers of float64 logits (m, C) in the suspect's order, with softmax probabilities."""
    if logits.shape[1] != len(classes):
        raise Refusal(f"{path} answers with {logits.shape[1]} classes, the triggers have {len(classes)}")
    if not np.isfinite(logits).all():
        raise Refusal(f"{path} answers with numbers that are not finite")
    logits = classes.arrange(logits, path)
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return Answers(logits.argmax(1), exponentials / exponentials.sum(1, keepdims=True))


def require_complete(path, answers: Answers, names: list[str], allow_missing: bool) -> Answers:
    """Return the answers; Refusal where some are missing and this is not allowed, or where all are missing."""
    missing = sorted(name for name, label in zip(names, answers.labels) if label < 0)
    if len(missing) == len(names):
        raise Refusal(f"{path} answers none of the {len(names)} triggers")
    if missing and not allow_missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise Refusal(f"{path} lacks {', '.join(missing[:3])}{more} of {len(names)} triggers: ask again, or pass "
                      "--allow-missing to count them as misses")
    return answers


def check_probabilities(where, values) -> None:
    """Refuse, naming `where`, C numbers that are no probabilities; sums from 0.98 to 1.02 pass, as of rounded ones."""
    if not (np.isfinite(values).all() and (values >= 0).all() and abs(values.sum() - 1) <= 0.02):
        raise Refusal(f"{where} are not numbers in [0, 1] that add up to 1")


# ---- files ----


def answers_from_file(path, names: list[str], classes: Classes, allow_missing: bool) -> Answers:
    """Answers to the triggers with these file `names`; returned in the order of `names`.

    .npy: (m,) whole numbers or (m, C) probabilities, in the alphabetical order of the names; -1 or nan where there is
    no answer. Else CSV: lines `name,label` or `name` and one probability a class, whose order a header may name.
    """
    try:
        answers = (_read_npy if str(path).endswith(".npy") else _read_csv)(path, names, classes)
    except FileNotFoundError as error:
        raise Refusal(f"--predictions {path} does not exist") from error
    return require_complete(path, answers, names, allow_missing)


def _read_npy(path, names, classes: Classes) -> Answers:
    values = read_array(path)
    m, are_labels = len(names), values.dtype.kind in "iu"
    if values.shape != ((m,) if are_labels else (m, len(classes))):
        raise Refusal(f"{path} holds numbers of shape {values.shape}; {m} triggers need whole numbers ({m},) or "
                      f"probabilities ({m}, {len(classes)})")
    values = values[np.argsort(np.argsort(names))]  # the file's rows are in alphabetical order
    columns = np.array(classes.columns(path))
    if are_labels:
        wrong = np.flatnonzero((values.astype(object) < -1) | (values.astype(object) >= len(classes)))
        if len(wrong):
            i = wrong[0]
            raise Refusal(f"{path}: {values[i]} is no class of {names[i]}; classes are 0 to {len(classes) - 1}")
        values = values.astype(np.int64)
        return Answers(np.where(values < 0, -1, columns[values]), None)
    values = classes.arrange(values.astype(float), path)
    absent = np.isnan(values).all(axis=1)
    for i in np.flatnonzero(~absent):
        check_probabilities(f"{path}: the probabilities of {names[i]}", values[i])
    values[absent] = 0
    return Answers(np.where(absent, -1, values.argmax(1)), values)


def _read_csv(path, names, classes: Classes) -> Answers:
    raw = read_bounded(path, ANSWERS_LIMIT)
    if b"\0" in raw:
        raise Refusal(f"{path} holds NUL bytes: it is no CSV file")
    most = 2 * len(names) + 100  # lines, the empty ones too; a whole file of line ends would take all memory
    try:
        rows = list(itertools.islice(csv.reader(io.StringIO(raw.decode("utf-8-sig"), newline=""), strict=True), most))
    except (UnicodeDecodeError, csv.Error) as error:
        raise Refusal(f"{path} is no CSV file in UTF-8 ({str(error)[:80]})") from error
    if len(rows) == most:
        raise Refusal(f"{path} has {most} lines or more for {len(names)} triggers: give one line for each")
    lines = [(number, row) for number, row in enumerate(rows, 1) if row]
    positions, columns = {name: i for i, name in enumerate(names)}, None
    if lines and lines[0][1][0].strip().lower() in HEADER:
        if len(lines[0][1]) > 2:
            columns = Classes(classes.names, [cell.strip() for cell in lines[0][1][1:]], f"{path}, first line").order
        lines = lines[1:]
    width = len(lines[0][1]) if lines else 2
    if width not in (2, 1 + len(classes)):
        raise Refusal(f"{path} has {width} columns; a name and a label, or a name and {len(classes)} probabilities")
    labels = np.full(len(names), -1, dtype=np.int64)
    probabilities = np.zeros((len(names), len(classes))) if width > 2 else None
    if probabilities is not None and columns is None:
        columns = classes.columns(path)
    for number, row in lines:
        name = row[0].strip()
        if name not in positions:
            raise Refusal(f"{path}, line {number}: {name[:60]!r} is no exported trigger")
        i = positions[name]
        if labels[i] >= 0:
            raise Refusal(f"{path}, line {number}: {name} is answered twice")
        if len(row) != width:
            raise Refusal(f"{path}, line {number}: {len(row)} columns where other lines have {width}")
        if probabilities is None:
            labels[i] = classes.number(row[1], f"{path}, line {number}")
            continue
        try:
            probabilities[i, columns] = [float(cell) for cell in row[1:]]
        except ValueError as error:
            raise Refusal(f"{path}, line {number}: a probability of {name} is no number") from error
        check_probabilities(f"{path}: the probabilities of {name}", probabilities[i])
        labels[i] = probabilities[i].argmax()
    return Answers(labels, probabilities)


def read_lines(path, flag: str) -> list[str]:
    """The lines of a text file that `flag` names, without spaces around them."""
    try:
        return [line.strip() for line in read_bounded(path).decode("utf-8-sig").splitlines()]
    except (FileNotFoundError, UnicodeDecodeError) as error:
        why = "is no text" if isinstance(error, UnicodeDecodeError) else "does not exist"
        raise Refusal(f"{flag} {path} {why}: name a text file in UTF-8") from error


# ---- a server's reply ----


def read_reply(reply: bytes, kind: str, classes: Classes, where: str) -> Answer:
    """The answer in a reply with content type `kind`; Refusal, which names `where`, for anything but `FORMS`.

    As JSON is read what says so, and what begins as a JSON object, list or string does.
    """
    try:
        text = reply.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise Refusal(f"{where}: the reply is no text in UTF-8") from error
    if text in classes.names or not (kind.endswith("json") or text[:1] in ("{", "[", '"')):
        try:
            return Answer(classes.number(text, where))
        except Refusal as error:
            raise Refusal(f"{error}; a reply is {FORMS}") from error
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{where}: the reply {text[:60]!r} is no JSON that can be read") from error
    try:
        return _answer_of(value, classes, where)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Refusal(f"{where}: the reply {text[:60]!r} is none of: {FORMS}") from error


def _answer_of(value, classes: Classes, where) -> Answer:
    if isinstance(value, dict):
        if "probabilities" in value:
            value = value["probabilities"]
            if not isinstance(value, (dict, list)):
                raise TypeError
        else:
            return Answer(_class_of(value["label"], classes, where))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        scores = {classes.names[_class_of(entry["label"], classes, where)]: float(entry["score"]) for entry in value}
        if len(scores) < len(classes):
            return Answer(classes.names.index(max(scores, key=scores.get)))
        value = scores
    if isinstance(value, dict):
        if sorted(value) != sorted(classes.names):
            raise KeyError
        value, columns = [value[name] for name in classes.names], list(range(len(classes)))
    elif isinstance(value, list):
        columns = classes.columns(where)
    else:
        return Answer(_class_of(value, classes, where))
    if not all(type(p) in (int, float) for p in value):
        raise TypeError
    if len(value) != len(classes):
        raise Refusal(f"{where}: {len(value)} probabilities for {len(classes)} classes")
    values = np.zeros(len(classes))
    values[columns] = value
    check_probabilities(f"{where}: the probabilities", values)
    return Answer(int(values.argmax()), values.tolist())


def _class_of(value, classes: Classes, where) -> int:
    if type(value) is int and 0 <= value < len(classes):
        return classes.columns(f"{where}: {value}")[value]
    if not isinstance(value, str):
        raise TypeError
    return classes.number(value, where)


def read_kept(path: Path, about: str, names: list[str], classes: int) -> dict:
    """{name: Answer} of a file of --keep-answers, which `keep_answer` writes; empty where it is not there yet.

    `about` is whom and what was asked; Refusal where the file is of something else or damaged. A last line that was cut
    off is left out.
    """
    try:
        first, *lines = read_bounded(path, ANSWERS_LIMIT).split(b"\n")[:-1]
        if json.loads(first) != about:
            raise Refusal(f"--keep-answers {path} is of another suspect or of other triggers: name another file")
        kept = {}
        for line in lines:
            name, label, probabilities = json.loads(line)
            values = None if probabilities is None else np.array(probabilities, dtype=float)
            if name not in names or type(label) is not int or not 0 <= label < classes:
                raise ValueError
            if values is not None:
                if values.shape != (classes,) or not (values.argmax() == label):
                    raise ValueError
                check_probabilities(f"--keep-answers {path}", values)
            kept[name] = Answer(label, None if values is None else values.tolist())
        return kept
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Refusal(f"--keep-answers {path} is damaged: name another file, and all images are asked again") from error
