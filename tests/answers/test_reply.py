"""A server's reply about one image, read as data."""

import pytest

from utils.answers.answers import Answer, Classes, read_reply
from utils.system.refusals import Refusal

CLASSES = ["cat", "dog", "3 cats"]
CAT = Answer(0, [0.7, 0.2, 0.1])


def read(reply, kind="text/plain", classes=CLASSES):
    return read_reply(reply if isinstance(reply, bytes) else reply.encode(), kind, Classes(classes), "here")


@pytest.mark.parametrize("reply, kind, answer", [
    ("dog", "text/plain", Answer(1)), ("  1\n", "text/html", Answer(1)), ("3 cats", "text/plain", Answer(2)),
    (b"\xef\xbb\xbfdog", "text/plain", Answer(1)), ("1", "application/json", Answer(1)),
    ('"dog"', "text/plain", Answer(1)), ('"dog"', "application/json", Answer(1)),
    ('{"label": "dog"}', "text/plain", Answer(1)), ('{"label": 1, "time": 3}', "application/json", Answer(1)),
    ('{"probabilities": [0.7, 0.2, 0.1]}', "application/json", CAT), ("[0.7, 0.2, 0.1]", "text/plain", CAT),
    ('{"probabilities": {"3 cats": 0.1, "cat": 0.7, "dog": 0.2}}', "application/json", CAT),
    ('[{"label": "dog", "score": 0.2}, {"label": "cat", "score": 0.7}, {"label": 2, "score": 0.1}]', "x/json", CAT),
    ('[{"label": "dog", "score": 0.9}, {"label": "cat", "score": 0.1}]', "x/json", Answer(1)),  # the best of some
    ('{"probabilities": {"dog": 0.9, "cat": 0.05}}', "x/json", Answer(1)),
    ("[0.33, 0.33, 0.33]", "text/plain", Answer(0, [0.33] * 3)),  # rounded
])
def test_forms_that_are_read(reply, kind, answer):
    assert read(reply, kind) == answer


def test_a_class_may_have_a_name_that_looks_like_json():
    assert read("[a]", classes=["b", "[a]"]) == Answer(1)
    assert read('"a"', classes=["b", '"a"']) == Answer(1)


@pytest.mark.parametrize("reply, kind, words", [
    ("mouse", "text/plain", "'mouse' is no class"), ("3", "text/plain", "'3' is no class"),
    ("", "text/plain", "'' is no class"), ("dog cat", "text/plain", "is no class"),
    (b"\xff\xfe", "text/plain", "is none of"), ("{", "text/plain", "is none of"),
    ("mouse", "application/json", "is none of"), ("null", "application/json", "is no class"),
    ("true", "application/json", "is no class"), ("1.0", "application/json", "is no class"),
    ("[]", "x/json", "classes"),
    ('{"class": "dog"}', "x/json", "is none of"), ('{"label": ["dog"]}', "x/json", "is none of"),
    ("[0.5, 0.5]", "x/json", "2 probabilities for 3 classes"), ('[0.7, 0.2, "0.1"]', "x/json", "is none of"),
    ("[0.7, 0.7, 0.7]", "x/json", "add up to 1"), ("[2, -1, 0]", "x/json", "add up to 1"),
    ("[NaN, 0.5, 0.5]", "x/json", "add up to 1"), ("[1e999, 0, 0]", "x/json", "add up to 1"),
    ('[{"label": "dog", "score": NaN}]', "x/json", "is none of"),
    ('{"probabilities": {"dog": 1e999, "cat": 0.1}}', "x/json", "is none of"),
    ('{"probabilities": {}}', "x/json", "is none of"), ('[{"label": "dog"}]', "x/json", "is none of"),
    ('[{"label": "dog", "score": "high"}]', "x/json", "is none of"), ("[[1, 0, 0]]", "x/json", "is none of"),
    ('{"probabilities": {"cat": 0.7, "dog": 0.2, "3 cats": 0.1, "cow": 0}}', "x/json", "'cow' is no class"),
    ("[" * 100_000, "x/json", "is none of"), ("1" * 5000, "x/json", "is none of"), ('[{"label": "dog", "score": 1}, 3]',
                                                                              "x/json", "is none of"),
])
def test_anything_else_is_refused_in_one_short_sentence(reply, kind, words):
    with pytest.raises(Refusal) as caught:
        read(reply, kind)
    sentence = str(caught.value)
    assert sentence.startswith("here") and words in sentence and "\n" not in sentence and len(sentence) < 350
