"""Read a server's reply about one image: text, or JSON in the forms that are common."""

import json

import numpy as np

from utils.answers.answers import Answer, check_probabilities, class_number
from utils.system.refusals import Refusal

FORMS = ("the name or number of a class; JSON {\"label\": ...} or {\"probabilities\": [...] or {name: ...}}; or a list "
         "of probabilities or of {\"label\": ..., \"score\": ...}")


def read_reply(reply: bytes, kind: str, classes: list[str], where: str) -> Answer:
    """The answer in a reply with content type `kind`; numbers of classes, and probabilities, are in their order.

    As JSON is read what says so, and what begins as a JSON object, list or string does. Raises Refusal, which names
    `where`, for anything but `FORMS`.
    """
    try:
        text = reply.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise Refusal(f"{where}: the reply is no text in UTF-8") from error
    if text in classes or not (kind.endswith("json") or text[:1] in ("{", "[", '"')):
        try:
            return Answer(class_number(text, classes, where))
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


def _answer_of(value, classes, where) -> Answer:
    if isinstance(value, dict):
        if "probabilities" in value:
            given = value["probabilities"]
            return _of_named(given, classes, where) if isinstance(given, dict) else _of_list(given, classes, where)
        return Answer(_class_of(value["label"], classes, where))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        scores = {classes[_class_of(entry["label"], classes, where)]: float(entry["score"]) for entry in value}
        if len(scores) == len(classes):
            return _of_named(scores, classes, where)
        return Answer(classes.index(max(scores, key=scores.get)))
    if isinstance(value, list):
        return _of_list(value, classes, where)
    return Answer(_class_of(value, classes, where))


def _class_of(value, classes, where) -> int:
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise TypeError
    return class_number(str(value), classes, where)


def _of_named(given: dict, classes, where) -> Answer:
    if sorted(given) != sorted(classes):
        raise KeyError
    return _of_list([given[name] for name in classes], classes, where)


def _of_list(given, classes, where) -> Answer:
    if not isinstance(given, list) or not all(type(p) in (int, float) for p in given):
        raise TypeError
    if len(given) != len(classes):
        raise Refusal(f"{where}: {len(given)} probabilities for {len(classes)} classes")
    values = np.array(given, dtype=float)
    check_probabilities(f"{where}: the probabilities", values)
    return Answer(int(values.argmax()), values.tolist())
