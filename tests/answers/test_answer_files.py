"""Answers as data: replies about one image, files of answers, missing ones, and what is made to do harm."""

import itertools
import struct
from functools import partial

import numpy as np
import pytest
from commands import refused, verify
from hostile_files import NAMES, refusal_of
from owner_runs import CLASSES, M, answer, names_of
from scipy.special import softmax

from utils.answers.answers import Answer, Classes, answers_from_file, answers_of_logits, read_reply
from utils.system.refusals import Refusal

pytestmark = pytest.mark.usefixtures("quick")

PETS = ["cat", "dog", "3 cats"]
CAT = Answer(0, [0.7, 0.2, 0.1])


def read(reply, kind="text/plain", classes=PETS):
    return read_reply(reply if isinstance(reply, bytes) else reply.encode(), kind, Classes(classes), "here")


@pytest.mark.parametrize("reply, kind, answer", [
    ("dog", "text/plain", Answer(1)), ("  1\n", "text/html", Answer(1)), ("3 cats", "text/plain", Answer(2)),
    (b"\xef\xbb\xbfdog", "text/plain", Answer(1)), ('"dog"', "application/json", Answer(1)),
    ('{"label": "dog", "probabilities": null}', "text/plain", Answer(1)),
    ('{"label": "dog"}', "text/plain", Answer(1)), ('{"label": 1, "time": 3}', "application/json", Answer(1)),
    ('{"probabilities": [0.7, 0.2, 0.1]}', "application/json", CAT), ("[0.7, 0.2, 0.1]", "text/plain", CAT),
    ('{"probabilities": {"3 cats": 0.1, "cat": 0.7, "dog": 0.2}}', "application/json", CAT),
    ('[{"label": "dog", "score": 0.2}, {"label": "cat", "score": 0.7}, {"label": 2, "score": 0.1}]', "x/json", CAT),
    ('[{"label": "dog", "score": 0.9}, {"label": "cat", "score": 0.1}]', "x/json", Answer(1, [0.1, 0.9, 0])),
    ('{"label": "dog", "probabilities": [0.7, 0.2, 0.1]}', "x/json", Answer(1, CAT.probabilities)),  # it says dog
    ('{"label": 1, "probabilities": [0, 0, 0]}', "x/json", Answer(1, [1 / 3] * 3)),
    ('[{"label": "dog", "score": 0.4}, {"label": "cat", "score": 0.4}]', "x/json", Answer(1, [0.5, 0.5, 0])),
    ("[0.7, 0.7, 0.7]", "x/json", Answer(0, [1 / 3] * 3)), ("[70, 20, 10]", "x/json", CAT),  # divided by their sum
    ("[0, 0, 0]", "x/json", Answer(0, [1 / 3] * 3)), ("[1e308, 1e308, 0]", "x/json", Answer(0, [0.5, 0.5, 0])),
    ("[-1e-12, 1, 0]", "x/json", Answer(1, [0, 1, 0])),
    ("[2, -1, 3]", "x/json", Answer(2, softmax([2, -1, 3]).tolist())),  # these are logits
    ("[-1e308, 1e308, 0]", "x/json", Answer(1, [0, 1, 0])),
    ("[-0.02, 1, 0.5]", "x/json", Answer(1, softmax([-0.02, 1, 0.5]).tolist())),  # below what rounding makes of a zero
])
def test_forms_that_are_read(reply, kind, answer):
    label, probabilities = read(reply, kind)
    assert label == answer.label and probabilities == (answer.probabilities and pytest.approx(answer.probabilities))


def test_spaces_around_the_name_of_a_class_do_not_count():
    assert read(" cat ", classes=["cat ", " dog"]) == read('{"label": "cat "}', classes=["cat", "dog"]) == Answer(0)
    assert Classes(["cat ", " dog"], ["dog", "cat"]).order == [1, 0]


def test_a_name_is_the_same_in_both_forms_of_unicode(tmp_path):
    """A folder from a Mac may be called "cafe" with an accent that is a character of its own."""
    forms = "caf\u00e9", "cafe\u0301"
    for own, other in (forms, forms[::-1]):
        assert read(other, classes=["bar", own]) == read(f'"{other}"', "x/json", classes=["bar", own]) == Answer(1)
        assert Classes(["bar", own], [other, "bar"]).order == [1, 0]
        (tmp_path / "y.csv").write_text(f"name,{other},bar\na,1,0\n")
        assert answers_from_file(tmp_path / "y.csv", ["a"], Classes(["bar", own]), False).labels.tolist() == [1]
    with pytest.raises(Refusal, match="^the triggers: a class is named twice"):
        Classes([*forms])


def test_numbers_that_name_the_class_of_their_place_are_not_ambiguous():
    for names in (["00000", "00001", "2"], ["a\u00b2", "\u00b2", "b"]):
        assert read("1", classes=names) == Answer(1)
    for names in (["01", "02"], ["1", "0"]):
        with pytest.raises(Refusal, match="ambiguous"):
            read("[0.5, 0.5]", classes=names)


def test_a_suspect_may_have_more_classes_than_the_owner():
    """Their columns are left out; an answer of one of them is no answer."""
    pets = Classes(PETS, ["dog", "cow", "3 cats", "cat"])
    ask = lambda reply: read_reply(reply.encode(), "", pets, "here")
    assert ask("0") == Answer(1) and ask("3") == Answer(0) and ask("cow") == ask("1") == Answer(-1)
    label, probabilities = ask("[0.1, 0.5, 0.05, 0.35]")
    assert label == 0 and probabilities == pytest.approx([0.7, 0.2, 0.1])
    assert ask('{"probabilities": {"cow": 0.5, "dog": 0.4}}') == Answer(1, [0, 1, 0])
    assert ask('{"probabilities": {"cow": 0.5}}') == ask('{"label": "cow", "probabilities": [0, 1, 0, 0]}') == Answer()
    assert ask('{"probabilities": {"cow": 0.5, "cat": 0.1, "dog": 0.1, "3 cats": 0.3}}').label == 2
    assert ask("[0, 1, 0, 0]") == Answer(-1)  # all of it is on the cow
    reply = b'{"probabilities": {"2": 0.75, "3": 0.25}}'  # names all, though "2" is a number of another class too
    assert read_reply(reply, "", Classes(["1", "2"], ["1", "2", "3"]), "here") == Answer(1, [0, 1])
    logits = np.array([[1.0, 9.0, 0.0, 2.0], [3.0, np.nan, 0.0, 0.0]])
    answers = answers_of_logits(logits, "here", 2, pets, allow_missing=True)
    assert answers.labels.tolist() == [0, -1] and answers.probabilities[1].sum() == 0
    assert answers.probabilities[0] == pytest.approx(np.exp([2, 1, 0]) / np.exp([2, 1, 0]).sum())
    lacking = "'3 cats', a class of the triggers, is not among its 3 classes.* by name as --predictions"
    for columns, words in ((["cow", "cat", "dog"], lacking),
                           ([*PETS, "cat"], "named twice"), (["", *PETS], "has no name"),
                           ([], "'cat', a class of the triggers, is not among")):
        with pytest.raises(Refusal, match=words):
            Classes(PETS, columns)
    with pytest.raises(Refusal, match="in another order than --columns: leave --columns out"):
        pets.as_named_by(["cow", "dog", "3 cats", "cat"], "its header")


@pytest.mark.parametrize("reply, kind, words", [
    ("mouse", "text/plain", "'mouse' is no class"), ("3", "text/plain", "'3' is no class"),
    ("", "text/plain", "'' is no class"), (b"\xff\xfe", "text/plain", "is none of"), ("{", "text/plain", "is none of"),
    ("null", "application/json", "is no class"), ("1.0", "application/json", "is no class"),
    ('{"label": ["dog"]}', "x/json", "is no class"), ("[[1, 0, 0]]", "x/json", "is none of"),
    ("[0.5, 0.5]", "x/json", "2 probabilities for 3 classes"), ("[]", "x/json", "0 probabilities for 3"),
    ('[0.7, 0.2, "0.1"]', "x/json", "is none of"),
    ("[NaN, 0.5, 0.5]", "x/json", "not finite"), ('[{"label": "dog", "score": NaN}]', "x/json", "not finite"),
    ('{"probabilities": {"dog": 1e999, "cat": 0.1}}', "x/json", "not finite"), ("{}", "x/json", "is none of"),
    ('{"probabilities": {}}', "x/json", "not finite"),
    ('{"probabilities": {"dog": 0.9, "1": 0}}', "x/json", "a class has two scores"),
    ('[{"label": "dog", "score": 0.9}, {"label": "dog", "score": 0}]', "x/json", "is none of"),
    ('{"probabilities": {"cat": 0.7, "dog": 0.2, "3 cats": 0.1, "cow": 0}}', "x/json", "4 probabilities for 3"),
    ('{"probabilities": {"cat": 0.7, "cow": 0.3}}', "x/json", "'cow' is no class"),
    ("[" * 100_000, "x/json", "is none of"), ("1" * 5000, "x/json", "is none of"),
])
def test_anything_else_is_refused_in_one_short_sentence(reply, kind, words):
    with pytest.raises(Refusal) as caught:
        read(reply, kind)
    sentence = str(caught.value)
    assert sentence.startswith("here") and words in sentence and "\n" not in sentence and len(sentence) < 350


def test_labels_and_probabilities_in_npy_and_csv_files_with_columns_in_any_order(owner, tmp_path):
    folder, triggers = owner
    names, labels = names_of(folder), triggers.labels.numpy()
    order, sharp = np.argsort(names), np.eye(10)[labels]
    np.save(tmp_path / "y.npy", labels[order])
    np.save(tmp_path / "p.npy", sharp[order])
    rows = [",".join([name, *map(str, p[::-1])]) for name, p in zip(names, sharp)]
    (tmp_path / "p.csv").write_text("\n".join([",".join(["name", *CLASSES[::-1]]), *rows]))
    claim = ("claim", folder, "--trust-owner", "--predictions")
    np.save(tmp_path / "counts.npy", (7 * sharp[order]).astype(np.int8))  # votes, say
    for name in ("y.npy", "p.npy", "counts.npy", "p.csv"):
        status, out, _ = verify(*claim, tmp_path / name)
        assert status == 0 and f"hits         {M} of {M}" in out
    more = [f"c{i}" for i in range(500)]  # classes that the owner lacks, which the header names
    wide = [",".join(["name", *CLASSES[::-1], *more]), *(row + ",0" * len(more) for row in rows)]
    (tmp_path / "p.csv").write_text("\n".join(wide))
    for test in ("T1", "T1p"):
        assert f"rests on {test} at" in verify(*claim, tmp_path / "p.csv", "--test", test)[1]
    for lacks, kind in ((np.nan, float), (-1, np.int8)):
        sharp[3] = lacks
        np.save(tmp_path / "p.npy", sharp[order].astype(kind))
        refused("utils.verify", *claim, tmp_path / "p.npy")
        status, out, _ = verify(*claim, tmp_path / "p.npy", "--allow-missing")
        assert status == 0 and f"{M - 1} of {M}, {M - 1} answered" in out


@pytest.mark.parametrize("spoil, words", [
    (lambda rows: rows[1:], "none of the owner's classes for"), (lambda rows: rows + rows[:1], "twice"),
    (lambda rows: [], "none of the"),
    (lambda rows: ["../../etc/passwd,3"] + rows[1:], "../../etc/passwd"),
    (lambda rows: [rows[0].split(",")[0] + ",=cmd|' /C calc'!A0"] + rows[1:], "=cmd"),
    (lambda rows: [rows[0] + ",1"] + rows[1:], "columns"),
    (lambda rows: ["name," + ",".join("abcdefghij")] + rows, "no column is named after a class: pass --columns"),
    (lambda rows: ["name,label,score", *(row + ",0.9" for row in rows)], "leave out what is neither a label"),
    (lambda rows: ["name," + ",".join("abcd567890")] + rows, "'1', a class of the triggers, is not among"),
    (lambda rows: [row.replace(",", ";") for row in rows], "1 columns; each line needs"),
    (lambda rows: [row.replace(",", "\t") for row in rows], "10 probabilities, with commas between them"),
    (lambda rows: [rows[0] + ".5"], "is no class"),
    (lambda rows: [rows[0].split(",")[0] + ",NA" + ",1" * 9], "a probability is no number"),
    (lambda rows: [rows[0].split(",")[0] + ",inf" * 10], "not finite")])
def test_answers_that_do_not_fit_are_named_and_refused(spoil, words, owner, tmp_path):
    rows = answer(owner, tmp_path, 1.0).read_text().splitlines()
    (tmp_path / "bad.csv").write_text("\n".join(spoil(rows)))
    claim = ("utils.verify", "claim", owner[0], "--trust-owner", "--predictions")
    assert words in refused(*claim, tmp_path / "bad.csv")


def test_missing_answers_are_misses_when_allowed(owner, tmp_path):
    rows = answer(owner, tmp_path, 1.0).read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join(rows[:10]))
    few = ("claim", owner[0], "--trust-owner", "--predictions", tmp_path / "few.csv")
    status, out, _ = verify(*few, "--allow-missing")
    assert f"hits         10 of {M}, 10 answered" in out and status == 1
    assert "log10 p = -1.98" in out  # P(Bin(40, 1/9) >= 10): 30 misses weigh more than 10 hits
    status, out, _ = verify(*few, "--leave-out-missing")
    assert status == 0 and "log10 p = -9.54" in out  # 10 of 10, a ninth each
    assert verify(*few, "--leave-out-missing", "--alpha", 1e-10)[0] == 1
    cells = itertools.cycle(("", "-1", "NaN", " ", "NA", "None"))
    written = [f"{row.split(',')[0]},{next(cells)}" for row in rows[10:]]
    (tmp_path / "few.csv").write_text("\n".join([*rows[:10], " ", *written]))
    assert verify(*few, "--leave-out-missing")[1] == out


def test_a_file_as_other_programs_write_it(owner, tmp_path):
    """pandas writes whole numbers with .0 where some are missing; a list of names may end with an empty line; many
    programs name an image by its path.
    """
    rows = answer(owner, tmp_path, 1.0).read_text().split()
    (tmp_path / "columns").write_text("\n".join(CLASSES) + "\n\n")
    for header in ("ID", "file_name", "Image Name", '"image_path"', "path"):
        (tmp_path / "p.csv").write_text("\n".join([f"{header},label", *(f"{row}.0" for row in rows)]))
        out = verify("claim", owner[0], "--trust-owner", "--predictions", tmp_path / "p.csv", "--columns",
                     tmp_path / "columns")[1]
        assert f"hits         {M} of {M}" in out
    for folder in ("shown/images/", "C:\\shown\\images\\"):
        (tmp_path / "p.csv").write_text("\n".join(folder + row for row in rows))
        out = verify("claim", owner[0], "--trust-owner", "--predictions", tmp_path / "p.csv")[1]
        assert f"hits         {M} of {M}" in out
    labels = owner[1].labels.numpy()[np.argsort(names_of(owner[0]))]
    np.save(tmp_path / "y.npy", labels)
    (tmp_path / "y.npy").rename(tmp_path / "y.NPY")
    np.savez(tmp_path / "y.npz", labels)
    claim = ("claim", owner[0], "--trust-owner", "--predictions")
    assert f"hits         {M} of {M}" in verify(*claim, tmp_path / "y.NPY")[1]
    assert "(an archive of arrays: write the one of the" in refused("utils.verify", *claim, tmp_path / "y.npz")
    (tmp_path / "p.csv").write_text("\n".join([f"{row.split(',')[0]}{',None' * 10}" for row in rows[:1]] + [
        f"{row.split(',')[0]},{','.join(map(str, np.eye(10)[int(row[-1])]))}" for row in rows[1:]]))
    assert f"hits         {M - 1} of {M}" in verify(*claim, tmp_path / "p.csv", "--allow-missing")[1]


def test_a_class_named_nan_is_an_answer(tmp_path):
    (tmp_path / "y.csv").write_text("a,NaN\nb,NA\n")
    given = partial(answers_from_file, tmp_path / "y.csv", ["a", "b"], Classes(["Garlic", "NaN", "Roti"]), True)
    assert given().labels.tolist() == [1, -1]
    (tmp_path / "y.csv").write_text("a,NaN\nb,nan\n")  # the class, or no answer?
    with pytest.raises(Refusal, match="'nan' is no class"):
        given()


def npy(descr, shape, body=b"", version=b"\x01\x00") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + body


@pytest.mark.parametrize("content, why", [  # bytes that would be labels, so that nothing but the header is wrong
    (npy("'<i8'", "(30,)", bytes(240)), None),
    (npy("'<i8'", "(30,)", bytes(240), version=b"\x04\x00"), "we only support format version"),
    (npy("'|O'", "(30,)", bytes(240)), "Object arrays cannot be loaded"),
    (npy("'<U8'", "(30,)", bytes(960)), "it holds no plain numbers"),
    (npy("[('a', '<i8')]", "(30,)", bytes(240)), "it holds no plain numbers"),
    (npy("'<i8'", "(30,)", bytes(241)), "its header promises fewer numbers than follow"),
    (npy("'<i8'", "(31,)", bytes(240)), "expected 248 bytes got 240"),
    (npy("'<i8'", "(-30,)", bytes(240)), "negative dimensions"), (npy("'<f8'", "(30, 1000000000)", bytes(240)), ""),
    (npy("'<i8'", "(30L,)", bytes(240)), "Reading `.npy` or `.npz` file required additional header parsing"),
    (npy("'<i8'", "(30", bytes(240)), ""), (npy("'<i8'", "__import__('os').system('true')", bytes(240)), ""),
    (npy("'<i8'", "(30,)" + " " * 12_000, bytes(240)), ""),
    (npy("'<i8'", "(" * 3000 + "30" + ",)" * 3000, bytes(240)), ""), (b"PK\x03\x04" + b"\0" * 100, ""), (b"", ""),
])
def test_npy_files_with_false_headers_are_refused_without_another_word(content, why, tmp_path, capfd):
    (tmp_path / "labels.npy").write_bytes(content)
    said = refusal_of(tmp_path / "labels.npy")
    assert (said is None if why is None else why in said) and capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [
    b'"' + b"a" * 200_000, b"\xff\xfe" + "a,1\n".encode("utf-16-le"), NAMES[0].encode() + b"\0,class 1\n",
    b"," * 100_000, NAMES[0].encode() + b",\x1b[31mclass\n", f"{NAMES[0]},{'9' * 5000}\n".encode(),
])
def test_files_that_are_no_csv_are_refused(content, tmp_path):
    (tmp_path / "answers.csv").write_bytes(content)
    text = refusal_of(tmp_path / "answers.csv")
    assert text and "\x1b" not in text


def test_lines_of_a_file_of_answers_are_counted_the_empty_ones_too(files, tmp_path):
    """30 triggers may take 159 lines; what stands behind them is not left out in silence."""
    lines = (files / "answers.csv").read_text()
    for more, fits in ((128, True), (129, False), (10**6, False)):
        (tmp_path / "answers.csv").write_text(lines + "\n" * more)
        said = refusal_of(tmp_path / "answers.csv")
        assert said is None if fits else "has 160 lines or more for 30 triggers" in said
