"""A suspect's answers to the exported triggers: from a file, from its weights, or asked of a program one by one."""

import csv
import io
import shlex
import subprocess
from typing import NamedTuple

import numpy as np

from utils import guard, metrics
from utils.refuse import Refusal

SECONDS = 60  # for one answer of a program
HEADER = ("name", "image", "file", "filename")


class Answers(NamedTuple):
    """`labels` int64 (m,), -1 where there is no answer; `probabilities` (m, C), 0 there, or None: labels alone."""

    labels: np.ndarray
    probabilities: np.ndarray | None


def from_model(model, path, trigger, classes: int) -> Answers:
    """Ask a model; `path` is named where it does not fit."""
    logits = metrics.predict(model, trigger.images).double()
    if logits.shape[1] != classes:
        raise Refusal(f"{path} answers with {logits.shape[1]} classes, the triggers have {classes}")
    if not logits.isfinite().all():
        raise Refusal(f"{path} answers with numbers that are not finite")
    return Answers(logits.argmax(1).numpy(), logits.softmax(1).numpy())


# ---- files --------------------------------------------------------------------------------------------------


def from_file(path, names: list[str], classes: list[str], allow_missing: bool) -> Answers:
    """Read answers collected elsewhere: .npy in the alphabetical order of `names`, anything else as CSV.

    CSV: `name,label` (a class name or number) or `name` and one probability a class; a header may name the classes
    in another order. .npy: (m,) whole numbers or (m, C) probabilities; -1 or nan where there is no answer.
    """
    try:
        answers = _npy(path, names, len(classes)) if str(path).endswith(".npy") else _csv(path, names, classes)
    except FileNotFoundError as error:
        raise Refusal(f"--predictions {path} does not exist") from error
    return complete(path, answers, names, allow_missing)


def complete(path, answers: Answers, names: list[str], allow_missing: bool) -> Answers:
    """Refuse missing answers unless they are allowed; none at all is refused always."""
    missing = sorted(name for name, label in zip(names, answers.labels) if label < 0)
    if len(missing) == len(names):
        raise Refusal(f"{path} answers none of the {len(names)} triggers")
    if missing and not allow_missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise Refusal(
            f"{path} lacks {', '.join(missing[:3])}{more} of {len(names)} triggers: ask again, or pass "
            "--allow-missing to count them as misses"
        )
    return answers


def _npy(path, names, classes: int) -> Answers:
    found = guard.array(path)
    m, whole = len(names), found.dtype.kind in "iu"
    if found.shape != ((m,) if whole else (m, classes)):
        raise Refusal(
            f"{path} holds numbers of shape {found.shape}; {m} triggers need whole numbers ({m},) or "
            f"probabilities ({m}, {classes})"
        )
    back = np.empty(m, dtype=int)
    back[np.argsort(names)] = np.arange(m)  # trigger i is row back[i]
    found = found[back]
    if whole:
        wrong = np.flatnonzero((found.astype(object) < -1) | (found.astype(object) >= classes))
        if len(wrong):
            raise Refusal(f"{path}: {found[wrong[0]]} is no class of {names[wrong[0]]}; classes are 0 to {classes - 1}")
        return Answers(found.astype(np.int64), None)
    found = found.astype(float)
    absent = np.isnan(found).all(axis=1)
    for i in np.flatnonzero(~absent):
        _check_probabilities(path, names[i], found[i])
    found[absent] = 0
    return Answers(np.where(absent, -1, found.argmax(1)), found)


def _csv(path, names, classes) -> Answers:
    raw = guard.content(path, guard.ANSWERS_LIMIT)
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
            columns = _columns(path, lines[0][1][1:], classes)
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
        _check_probabilities(path, name, probabilities[i])
        labels[i] = probabilities[i].argmax()
    return Answers(labels, probabilities)


def _columns(path, header, classes) -> list[int]:
    header = [cell.strip() for cell in header]
    if unknown := [cell for cell in header if cell not in classes]:
        raise Refusal(f"{path}: {unknown[0][:60]!r} in its first line is no class")
    if sorted(header) != sorted(classes):
        raise Refusal(f"{path}: its first line names {len(set(header))} of {len(classes)} classes")
    return [classes.index(cell) for cell in header]


def class_number(text: str, classes: list[str], where) -> int:
    """The number of a class given by name, or by number where no class is called by another class's number."""
    text = text.strip()
    if text in classes:
        return classes.index(text)
    if any(name.isdigit() and name != str(i) for i, name in enumerate(classes)):
        raise Refusal(f"{where}: {text[:60]!r} is no class; where classes have numbers for names, answer by name")
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) < len(classes):
        return int(text)
    raise Refusal(f"{where}: {text[:60]!r} is no class")


def _check_probabilities(path, name, values) -> None:
    if not (np.isfinite(values).all() and (values >= 0).all() and abs(values.sum() - 1) <= 0.02):
        raise Refusal(f"{path}: the probabilities of {name} are not numbers in [0, 1] that add up to 1")


# ---- a program ----------------------------------------------------------------------------------------------


def ask(command: str, png, classes: list[str], allow_missing: bool) -> int:
    """Run `command` with {png} replaced by a file's path, without a shell, and read the label that it prints.

    -1 where it fails and `allow_missing` is set.
    """
    try:
        parts = shlex.split(command)
    except ValueError as error:
        raise Refusal(f"--command: {error}") from error
    if not any("{png}" in part for part in parts):
        raise Refusal("--command needs {png} where the image's path belongs")
    try:
        done = subprocess.run([part.replace("{png}", str(png)) for part in parts], stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        if allow_missing:
            return -1
        raise Refusal(f"--command gave no answer for {png.name} in {SECONDS} s") from error
    except (OSError, ValueError) as error:
        raise Refusal(f"--command cannot be run: {error}") from error
    if done.returncode:
        if allow_missing:
            return -1
        said = done.stderr[-200:].decode(errors="replace").split("\n")[-2:]
        raise Refusal(f"--command ended with status {done.returncode} for {png.name}: {' '.join(said)!r}")
    return class_number(done.stdout[:200].decode(errors="replace"), classes, f"--command, {png.name}")
