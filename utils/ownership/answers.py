"""A suspect's answers to the triggers, and the checks that every source of answers shares.

Answers come from a file (`answer_files`), from a program (`ask_program`) or from weights (`answers_of_model`).
"""

from typing import NamedTuple

import numpy as np

from utils.system.refusals import Refusal
from utils.training.metrics import predict


class Answers(NamedTuple):
    """Answers to m triggers.

    labels         int64 (m,), -1 where there is no answer
    probabilities  (m, C), a row of zeros where there is no answer; None where only labels are known
    """

    labels: np.ndarray
    probabilities: np.ndarray | None


def answers_of_model(model, path, triggers, classes: int) -> Answers:
    """The model's answers to a `TriggerSet`, with softmax probabilities.

    Raises Refusal, which names `path`, where the model has other classes or its logits are not finite.
    """
    logits = predict(model, triggers.images).double()
    if logits.shape[1] != classes:
        raise Refusal(f"{path} answers with {logits.shape[1]} classes, the triggers have {classes}")
    if not logits.isfinite().all():
        raise Refusal(f"{path} answers with numbers that are not finite")
    return Answers(logits.argmax(1).numpy(), logits.softmax(1).numpy())


def require_complete(path, answers: Answers, names: list[str], allow_missing: bool) -> Answers:
    """Return the answers; Refusal where some are missing and this is not allowed, or where all are missing."""
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


def class_number(text: str, classes: list[str], where) -> int:
    """The number of a class that is given by its name or its number; Refusal, which names `where`, if there is none.

    Numbers are refused where a class has another class's number as its name, because they would be ambiguous.
    """
    text = text.strip()
    if text in classes:
        return classes.index(text)
    if any(name.isdigit() and name != str(i) for i, name in enumerate(classes)):
        raise Refusal(f"{where}: {text[:60]!r} is no class; where classes have numbers for names, answer by name")
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) < len(classes):
        return int(text)
    raise Refusal(f"{where}: {text[:60]!r} is no class")
