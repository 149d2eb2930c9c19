"""A suspect's answers to images, and every form in which they are given: logits, CSV, .npy, text and JSON."""

import csv
import io
import itertools
import json
import math
from typing import NamedTuple

import numpy as np
from scipy import special

from utils.system.files import ANSWERS_LIMIT, plain_name, read_array, read_bounded
from utils.system.refusals import Refusal

HEADER = ("name", "image", "file", "path", "id", "filename", "filepath", "imagename", "imagefile", "imagepath",
          "imageid")  # the first cell of a header, without spaces, underscores and capitals
# cells of a CSV where there is no answer, unless a class is named so
MISSING = {"", "-1", "-1.0", "nan", "na", "<na>", "n/a", "none", "null"}
FORMS = ("the name or number of a class; JSON {\"label\": ...}, {\"probabilities\": [...] or {name: ...}} or both; or "
         "a list of probabilities or of {\"label\": ..., \"score\": ...}")
FEWER = "of a suspect that lacks a class, pass its labels by name as --predictions"
MORE = f"of a suspect with more classes --columns FILE names them all; {FEWER}"


class Answers(NamedTuple):
    """Answers to m triggers."""

    labels: np.ndarray  # int64 (m,), -1 where there is no answer
    # (m, C): all on the label of an answer without any, a row of zeros for no answer; None where all are labels alone
    probabilities: np.ndarray | None


class Answer(NamedTuple):
    """The answer to one image: a class's number, -1 where there is none, and C probabilities or None."""

    label: int = -1
    probabilities: list | None = None


class Classes:
    """The owner's C class names, and which of them the numbers and columns of a suspect mean.

    `columns` are the suspect's own class names in its order, of --columns or of its checkpoint; None where nobody says
    them. It may have further classes, which are -1 in `order`: an answer of one is no answer. Refusal, which names
    `where`, where one of the owner's is not among them or a name is there twice.
    """

    def __init__(self, names: list[str], columns: list[str] | None = None, where: str = "--columns"):
        self.names, self.given = names, columns is not None
        columns = names if columns is None else columns
        names, columns = (list(map(plain_name, given)) for given in (names, columns))  # as answers are
        where = where if self.given else "the triggers"
        self.places = dict.fromkeys(columns, -1)  # a search of the list would take minutes of 100,000
        if (lacking := next((name for name in names if name not in self.places), None)) is not None:
            way = "correct it" if where == "--columns" else "pass --columns FILE, which names them in its order"
            raise Refusal(f"{where}: {lacking[:60]!r}, a class of the triggers, is not among its {len(columns)} "
                          f"classes: answers cannot be compared; {way}; {FEWER}")
        if len(self.places) < len(columns) or "" in self.places:
            raise Refusal(f"{where}: a class is named twice, but for spaces around it, or has no name but spaces")
        self.places |= {name: i for i, name in enumerate(names)}
        self.order = [self.places[name] for name in columns]
        other = lambda i, name: name.isascii() and name.isdigit() and (name.lstrip("0") or "0") != str(i)
        self.ambiguous = not self.given and any(itertools.starmap(other, enumerate(names)))

    def __len__(self):
        return len(self.names)

    def as_named_by(self, columns: list[str], where) -> "Classes":
        """These classes for a suspect that names its own; Refusal where --columns names them in another order.

        Where it names others, as numbers for words, --columns says which of them are the owner's.
        """
        if self.given and not set(map(plain_name, self.names)) <= set(map(plain_name, columns)):
            return self
        own = Classes(self.names, columns, where)
        if self.given and own.order != self.order:
            raise Refusal(f"{where} names the classes in another order than --columns: leave --columns out, or, if you "
                          "know that the names are wrong, take them out: of a checkpoint pass its weights alone")
        return own

    def columns(self, where) -> list[int]:
        """The class of each number or column of the suspect; Refusal, naming `where`, where that is ambiguous.

        As in folders 0, 1, 10, 2, of which nobody says the suspect's order: whoever sorts them otherwise means others.
        """
        if self.ambiguous:
            raise Refusal(f"{where}: numbers and columns are ambiguous, because classes have other numbers for names; "
                          "answer by name, or pass --columns FILE, which names the suspect's classes in its order")
        return self.order

    def number(self, value, where) -> int:
        """The class that a text gives by name or number, or a whole number by number, -1 for one that is none of the
        owner's; Refusal for anything else.
        """
        text = plain_name(str(value))
        is_number = type(value) in (str, int) and text.isascii() and text.isdigit() and len(text) < 10
        is_place = is_number and int(text) < len(self.order)
        if isinstance(value, str) and text in self.places:
            if self.given and is_place and self.order[int(text)] != self.places[text]:
                raise Refusal(f"{where}: {text!r} is the name of one class and the number of another: if it is a name, "
                              "leave --columns out, else answer in numbers of JSON or in a .npy file")
            return self.places[text]
        if is_place:
            return self.columns(f"{where}: {text!r}")[int(text)]
        raise Refusal(f"{where}: {text[:60]!r} is no class; they are {', '.join(list(self.places)[:5])[:200]}, ..., or "
                      f"numbers from 0 to {len(self.order) - 1}: translate it, or name more classes by --columns FILE")


def answer_of(value, classes: Classes, where: str) -> Answer:
    """The answer in a value of JSON or of a file, in one of `FORMS`.

    The label is what is said to be it, else that of the best score, of equal ones the one that is listed first.
    Probabilities are divided by their sum, as rounded ones need; of negative numbers, as logits are, the softmax is
    taken; a class without a score has none. Every test is exact for any function of what was answered. Refusal, which
    names `where`, for a label that is no class, and for probabilities that are not one a class or not finite; KeyError,
    TypeError, ValueError or OverflowError for what has none of the forms.
    """
    label = None
    if isinstance(value, dict):
        if value.get("probabilities") is None:
            return Answer(classes.number(value["label"], where))
        value, label = value["probabilities"], value.get("label")
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        listed, value = value, {entry["label"]: entry["score"] for entry in value}
        if len(value) < len(listed):
            raise ValueError("a class has two scores")
    if not isinstance(value, (dict, list)):
        return Answer(classes.number(value, where))
    scores = list(value.values()) if isinstance(value, dict) else value
    if not all(type(score) in (int, float) for score in scores):
        raise TypeError
    scores = np.array(scores, dtype=float)
    if len(scores) > (n := len(classes.order)) or isinstance(value, list) and len(scores) < n:
        raise Refusal(f"{where}: {len(scores)} probabilities for {n} classes; {MORE}")
    if not isinstance(value, dict):
        columns = classes.columns(where)
    elif all(isinstance(name, str) and plain_name(name) in classes.places for name in value):
        columns = [classes.places[plain_name(name)] for name in value]
    else:
        columns = [classes.number(name, where) for name in value]
    if not (len(scores) and np.isfinite(scores).all()):  # the largest of them is not defined
        raise Refusal(f"{where}: the probabilities are not finite numbers; write 0 for a class without one")
    own = np.array(columns) >= 0
    scores, columns = scores[own], np.array(columns)[own]
    if len(np.unique(columns)) < len(columns):
        raise Refusal(f"{where}: a class has two scores")
    if scores.min(initial=0) < -0.01:
        scores = special.softmax(np.clip(scores, -1e300, 1e300))
    scores = scores.clip(0)
    if not scores.any():
        if not own.all():  # all of it is on classes that the owner lacks
            return Answer()
        scores = np.ones(len(scores))
    label = int(columns[scores.argmax()]) if label is None else classes.number(label, where)
    if label < 0:
        return Answer()
    probabilities = np.zeros(len(classes))
    probabilities[columns] = scores / scores.max()  # first, as a sum of these is finite
    return Answer(label, (probabilities / probabilities.sum()).tolist())


def read_reply(reply: bytes, kind: str, classes: Classes, where: str) -> Answer:
    """The answer in a reply with content type `kind`; Refusal, which names `where`, for anything but `FORMS`."""
    try:
        value = reply.decode("utf-8-sig").strip()  # JSON if it says so, or begins as an object, a list or a string
        if plain_name(value) not in classes.places and (kind.endswith("json") or value[:1] in ("{", "[", '"')):
            value = json.loads(value)
        return answer_of(value, classes, where)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Refusal(f"{where}: the reply {reply[:60]!r} is none of: {FORMS}; let a --command turn it "
                      "into one of these") from error


def gather_answers(given: list[Answer], classes: int) -> Answers:
    """Answers to single images as one; without probabilities where none has any."""
    labels = np.array([answer.label for answer in given], dtype=np.int64)
    if not any(answer.probabilities for answer in given):
        return Answers(labels, None)
    rows = np.zeros((len(given), classes))
    for row, answer in zip(rows, given):
        if answer.probabilities:
            row[:] = answer.probabilities
        elif answer.label >= 0:
            row[answer.label] = 1
    return Answers(labels, rows)


def require_complete(what, labels, names: list[str], allow_missing: bool) -> None:
    """Refusal where some answers are missing, label -1, and this is not allowed, or where all are missing."""
    missing = sorted(name for name, label in zip(names, labels) if label < 0)
    if len(missing) == len(names):
        why = "; without --allow-missing or --leave-out-missing the first failure is named" if allow_missing else ""
        raise Refusal(f"{what} answered none of the {len(names)} triggers{why}")
    if missing and not allow_missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise Refusal(f"{what} gives none of the owner's classes for {', '.join(missing[:3])}{more} of {len(names)} "
                      "triggers: ask again, or pass --allow-missing, which counts them as misses, or "
                      "--leave-out-missing if the suspect refused")


def answers_of_logits(logits, path, m: int, classes: Classes, allow_missing: bool = False) -> Answers:
    """Answers of logits (m, C) in the suspect's order, with softmax probabilities; Refusal for other shapes.

    A row that is not finite is a missing answer where these are allowed, else Refusal.
    """
    if logits.shape != (m, len(classes.order)):
        raise Refusal(f"{path} answers with numbers of shape {logits.shape}, not with a row for each of {m} images and "
                      f"a number for each of {len(classes.order)} classes; {MORE}")
    answered = np.isfinite(logits).all(1)
    if not answered.all() and not (allow_missing and answered.any()):
        raise Refusal(f"{path} answers with numbers that are not finite")
    logits = np.where(answered[:, None], logits, 0.0)[:, np.argsort(classes.columns(path))[-len(classes):]]
    return Answers(np.where(answered, logits.argmax(1), -1), special.softmax(logits, axis=1) * answered[:, None])


def answers_from_file(path, names: list[str], classes: Classes, allow_missing: bool) -> Answers:
    """Answers to the triggers with these file `names`, in their order.

    .npy: (m,) whole numbers or (m, C) probabilities, in the alphabetical order of the names; -1 or nan where there is
    no answer. Else CSV: lines `name,label` or `name` and one probability a class, whose order a header may name; no
    line or cells of `MISSING` where there is no answer.
    """
    given, read = dict.fromkeys(names), _npy_rows if str(path).lower().endswith((".npy", ".npz")) else _csv_rows
    try:
        for where, said, answer in read(path, names, classes):
            name = said.replace("\\", "/").rpartition("/")[2]  # some programs write where the file was
            if name not in given:
                raise Refusal(f"{where}: {said[:60]!r} is no exported trigger: name each image as its file is named")
            if given[name]:
                raise Refusal(f"{where}: {name} is answered twice")
            given[name] = answer
    except FileNotFoundError as error:
        raise Refusal(f"--predictions {path} does not exist") from error
    answers = gather_answers([answer or Answer() for answer in given.values()], len(classes))
    require_complete(path, answers.labels, names, allow_missing)
    return answers


def _npy_rows(path, names, classes: Classes):
    values, m = read_array(path), len(names)
    are_labels = values.ndim == 1 and values.dtype.kind in "iu"
    if values.shape != ((m,) if are_labels else (m, len(classes.order))):
        raise Refusal(f"{path} holds {values.dtype} numbers of shape {values.shape}; {m} triggers need whole numbers "
                      f"({m},) or probabilities ({m}, {len(classes.order)})")
    for name, value in zip(sorted(names), (values if are_labels else values.astype(float)).tolist()):
        missing, where = all(x == -1 or math.isnan(x) for x in ([value] if are_labels else value)), f"{path}, {name}"
        yield where, name, Answer() if missing else answer_of(value, classes, where)


def _is_header(cell: str) -> bool:
    return cell.strip(' "').lower().replace("_", "").replace(" ", "") in HEADER


def _csv_rows(path, names, classes: Classes):
    most = 2 * len(names) + 100  # lines, the empty ones too; a whole file of line ends would take all memory
    content = read_bounded(path, ANSWERS_LIMIT)
    first, n = content.partition(b"\n")[0], len(classes.order)
    name = first.split(b",", 1)[0].decode("utf-8-sig", "replace")
    if _is_header(name):  # which may name more classes
        n = max(n, min(first.count(b","), 5000))
    if content.count(b",") > most * (n + 100):  # each cell takes 50 bytes and more; names may have commas
        raise Refusal(f"{path} has more columns than {len(names)} triggers and {n} classes need: give one probability "
                      "a class, and name the classes by --columns FILE where they are more")
    try:
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
        lines = list(itertools.islice(csv.reader(text, strict=True), most))
    except (UnicodeDecodeError, csv.Error) as error:
        raise Refusal(f"{path} is no CSV file in UTF-8 ({str(error)[:80]})") from error
    if len(lines) == most:
        raise Refusal(f"{path} has {most} lines or more for {len(names)} triggers: give one line for each")
    rows = [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if any(map(str.strip, line))]
    if rows and _is_header(rows[0][1][0]):
        (where, (_, *header)), *rows = rows
        if len(header) > 1:
            if not classes.given and classes.places.keys().isdisjoint(map(plain_name, header)):
                raise Refusal(f"{where}: no column is named after a class: pass --columns FILE, which names them in "
                              "its order, or leave out what is neither a label nor a probability")
            classes = classes.as_named_by([cell.strip() for cell in header], where)
    named = {place.lower() for place in classes.places}
    for where, (name, *cells) in rows:
        if len(cells) not in (1, len(classes.order)) or len(cells) != len(rows[0][1]) - 1:
            raise Refusal(f"{where}: {1 + len(cells)} columns; each line needs a name and a label, or each a name and "
                          f"{len(classes.order)} probabilities, with commas between them")
        given = {plain_name(cell).lower() for cell in cells}
        missing = given <= MISSING and not given & named
        try:
            scores = [] if len(cells) == 1 or missing else [float(cell.strip() or "nan") for cell in cells]
        except ValueError as error:
            raise Refusal(f"{where}: a probability is no number") from error
        label, number = plain_name(cells[0]), cells[0].strip().removesuffix(".0")  # so pandas writes 4 if some lack
        label = number if number.isdigit() and label not in classes.places else label
        yield where, name.strip(), Answer() if missing else answer_of(scores or label, classes, where)


def read_lines(path, flag: str) -> list[str]:
    """The lines of a text file that `flag` names, without spaces around them and empty ones at the end."""
    try:
        return [line.strip() for line in read_bounded(path).decode("utf-8-sig").rstrip().splitlines()]
    except (FileNotFoundError, UnicodeDecodeError) as error:
        why = "is no text" if isinstance(error, UnicodeDecodeError) else "does not exist"
        raise Refusal(f"{flag} {path} {why}: name a text file in UTF-8") from error
