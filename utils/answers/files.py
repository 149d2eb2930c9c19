"""A suspect's answers that were collected elsewhere, read from CSV or .npy files; the files are not trusted."""

import csv
import io

import numpy as np

from utils.answers.answers import Answers, check_probabilities, class_number, require_complete
from utils.system.files import ANSWERS_LIMIT, read_array, read_bounded
from utils.system.refusals import Refusal

HEADER = ("name", "image", "file", "filename")


def answers_from_file(path, names: list[str], classes: list[str], allow_missing: bool) -> Answers:
    """Read answers to the triggers with these file `names`; returned in the order of `names`.

    A name that ends in .npy: (m,) whole numbers or (m, C) probabilities, in the alphabetical order of the names; -1
    or nan where there is no answer. Any other name: CSV, with lines `name,label` (the name or number of a class) or
    `name` and one probability for each class; a header may name the classes in another order.

    Raises Refusal, which names file and line, for whatever does not fit, and for missing answers unless
    `allow_missing` is set.
    """
    try:
        is_npy = str(path).endswith(".npy")
        answers = _read_npy(path, names, len(classes)) if is_npy else _read_csv(path, names, classes)
    except FileNotFoundError as error:
        raise Refusal(f"--predictions {path} does not exist") from error
    return require_complete(path, answers, names, allow_missing)


def _read_npy(path, names, classes: int) -> Answers:
    values = read_array(path)
    m, are_labels = len(names), values.dtype.kind in "iu"
    if values.shape != ((m,) if are_labels else (m, classes)):
        raise Refusal(
            f"{path} holds numbers of shape {values.shape}; {m} triggers need whole numbers ({m},) or "
            f"probabilities ({m}, {classes})"
        )
    back = np.empty(m, dtype=int)
    back[np.argsort(names)] = np.arange(m)  # trigger i is row back[i] of the file
    values = values[back]
    if are_labels:
        wrong = np.flatnonzero((values.astype(object) < -1) | (values.astype(object) >= classes))
        if len(wrong):
            i = wrong[0]
            raise Refusal(f"{path}: {values[i]} is no class of {names[i]}; classes are 0 to {classes - 1}")
        return Answers(values.astype(np.int64), None)
    values = values.astype(float)
    absent = np.isnan(values).all(axis=1)
    for i in np.flatnonzero(~absent):
        check_probabilities(f"{path}: the probabilities of {names[i]}", values[i])
    values[absent] = 0
    return Answers(np.where(absent, -1, values.argmax(1)), values)


def _read_csv(path, names, classes) -> Answers:
    raw = read_bounded(path, ANSWERS_LIMIT)
    if b"\0" in raw:
        raise Refusal(f"{path} holds NUL bytes: it is no CSV file")
    try:
        rows = list(csv.reader(io.StringIO(raw.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise Refusal(f"{path} is no CSV file in UTF-8 ({str(error)[:80]})") from error
    lines = [(number, row) for number, row in enumerate(rows, 1) if row]
    positions = {name: i for i, name in enumerate(names)}
    columns = list(range(len(classes)))
    if lines and lines[0][1][0].strip().lower() in HEADER:
        if len(lines[0][1]) > 2:
            columns = _class_columns(path, lines[0][1][1:], classes)
        lines = lines[1:]
    width = len(lines[0][1]) if lines else 2
    if width not in (2, 1 + len(classes)):
        raise Refusal(f"{path} has {width} columns; a name and a label, or a name and {len(classes)} probabilities")
    labels = np.full(len(names), -1, dtype=np.int64)
    probabilities = np.zeros((len(names), len(classes))) if width > 2 else None
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
            labels[i] = class_number(row[1], classes, f"{path}, line {number}")
            continue
        try:
            values = np.array([float(cell) for cell in row[1:]])
        except ValueError as error:
            raise Refusal(f"{path}, line {number}: a probability of {name} is no number") from error
        probabilities[i, columns] = values
        check_probabilities(f"{path}: the probabilities of {name}", probabilities[i])
        labels[i] = probabilities[i].argmax()
    return Answers(labels, probabilities)


def _class_columns(path, header, classes) -> list[int]:
    header = [cell.strip() for cell in header]
    if unknown := [cell for cell in header if cell not in classes]:
        raise Refusal(f"{path}: {unknown[0][:60]!r} in its first line is no class")
    if sorted(header) != sorted(classes):
        raise Refusal(f"{path}: its first line names {len(set(header))} of {len(classes)} classes")
    return [classes.index(cell) for cell in header]
