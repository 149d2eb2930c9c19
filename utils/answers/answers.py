"""A suspect's answers to images, and the checks that every source of answers shares."""

from typing import NamedTuple

import numpy as np

import models
from utils.system.refusals import Refusal
from utils.training.metrics import predict


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


def gather_answers(given: list[Answer], classes: int) -> Answers:
    """Answers to single images as one; without probabilities where one that was given has none."""
    labels = np.array([answer.label for answer in given], dtype=np.int64)
    if not all(answer.probabilities for answer in given if answer.label >= 0) or (labels < 0).all():
        return Answers(labels, None)
    return Answers(labels, np.array([answer.probabilities or [0.0] * classes for answer in given]))


def answers_of_model(model, path, images, classes: int) -> Answers:
    """The model's answers to uint8 images (m, 3, S, S), with softmax probabilities.

    Raises Refusal, which names `path`, where the model has other classes or its logits are not finite, or where code
    that is not this project's fails.
    """
    try:
        logits = predict(model, images).double()
    except (Exception, SystemExit) as error:
        if models.is_own(model):
            raise
        why = " ".join(str(error).split())[:150]
        raise Refusal(f"{path} cannot be asked about images of {images.shape[-1]} x {images.shape[-1]} pixels "
                      f"({type(error).__name__}: {why}); mend the function that -mt names") from error
    if logits.dim() != 2 or len(logits) != len(images):
        raise Refusal(f"{path} answers {len(images)} images with {tuple(logits.shape)} numbers, not a row for each")
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


def check_probabilities(where, values) -> None:
    """Refuse, naming `where`, C numbers that are no probabilities; sums from 0.98 to 1.02 pass, as of rounded ones."""
    if not (np.isfinite(values).all() and (values >= 0).all() and abs(values.sum() - 1) <= 0.02):
        raise Refusal(f"{where} are not numbers in [0, 1] that add up to 1")


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
