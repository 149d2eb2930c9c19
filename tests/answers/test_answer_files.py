"""Files of a suspect's answers: formats, missing answers, files made to do harm."""

import struct
import time

import numpy as np
import pytest
from commands import verify
from hostile_files import NAMES, refusal_of
from owner_runs import CLASSES, M, answer, names_of

from utils.answers.answers import Classes
from utils.system.refusals import Refusal

pytestmark = pytest.mark.usefixtures("quick")


def test_numbers_are_not_read_as_names_of_other_classes():
    number = lambda text, classes, columns=None: Classes(classes, columns).number(text, "here")
    assert number(" 1", ["0", "1"]) == 1 and number("1", ["cat", "dog"]) == 1
    assert number("2", ["1", "2"]) == 1  # a name
    assert number("0", ["1", "2"], ["2", "1"]) == 1  # the judge said what the suspect's number 0 is
    with pytest.raises(Refusal, match="'0'.*ambiguous.*answer by name, or pass --columns"):
        number("0", ["1", "2"])
    with pytest.raises(Refusal, match="classes are not the 2 of the triggers; '3' is none"):
        Classes(["1", "2"], ["2", "3"])


def test_a_hundred_thousand_classes_are_no_search_of_minutes():
    names, begun = [f"class {i}" for i in range(100_000)], time.process_time()
    classes = Classes(names, names[::-1])
    assert classes.order[0] == 99_999 and all(classes.number(name, "") == i for i, name in enumerate(names))
    assert time.process_time() - begun < 10


def test_answers_in_npy_files(owner, tmp_path, capsys):
    folder, triggers = owner
    order = np.argsort(names_of(folder))
    sharp = np.eye(10)[triggers.labels.numpy()[order]]
    np.save(tmp_path / "p.npy", sharp)
    np.save(tmp_path / "y.npy", triggers.labels.numpy()[order])
    for name in ("p.npy", "y.npy"):
        status, out, _ = verify(capsys, "claim", folder, "--trust-owner", "--predictions", tmp_path / name)
        assert status == 0 and f"hits         {M} of {M}" in out
    sharp[3] = np.nan
    np.save(tmp_path / "p.npy", sharp)
    assert verify(capsys, "claim", folder, "--trust-owner", "--predictions", tmp_path / "p.npy")[0] == 2
    status, out, _ = verify(capsys, "claim", folder, "--trust-owner", "--predictions", tmp_path / "p.npy",
                            "--allow-missing")
    assert status == 0 and f"{M - 1} of {M}, {M - 1} answered" in out


def test_probabilities_in_another_order_of_columns(owner, tmp_path, capsys):
    folder, triggers = owner
    lines = ["name," + ",".join(reversed(CLASSES))]
    for name, y in zip(names_of(folder), triggers.labels.tolist()):
        lines.append(f"{name}," + ",".join("0.91" if c == y else "0.01" for c in reversed(range(10))))
    (tmp_path / "p.csv").write_text("\n".join(lines))
    status, out, _ = verify(capsys, "claim", folder, "--trust-owner", "--predictions", tmp_path / "p.csv")
    assert status == 0 and f"{M} of {M}" in out


@pytest.mark.parametrize("spoil, words", [
    (lambda rows: rows[1:], "lacks"),
    (lambda rows: rows + rows[:1], "twice"),
    (lambda rows: ["../../etc/passwd,3"] + rows[1:], "../../etc/passwd"),
    (lambda rows: [rows[0].split(",")[0] + ",=cmd|' /C calc'!A0"] + rows[1:], "=cmd"),
    (lambda rows: [rows[0].split(",")[0] + ",dog"] + rows[1:], "dog"),
    (lambda rows: [rows[0] + ",1"] + rows[1:], "columns"),
    (lambda rows: [], "none of the"),
    (lambda rows: ["\0"] + rows, "1 columns"),
    (lambda rows: ["name," + ",".join("abcdefghij")] + rows, "'a'"),
    (lambda rows: [rows[0].split(",")[0] + ",nan" * 10], "add up"),
])
def test_answers_that_do_not_fit_are_named_and_refused(spoil, words, owner, tmp_path, capsys):
    rows = answer(owner, tmp_path, 1.0).read_text().splitlines()
    (tmp_path / "bad.csv").write_text("\n".join(spoil(rows)))
    status, _, err = verify(capsys, "claim", owner[0], "--trust-owner", "--predictions", tmp_path / "bad.csv")
    assert status == 2 and words in err


def test_missing_answers_are_misses_when_allowed(owner, tmp_path, capsys):
    rows = answer(owner, tmp_path, 1.0).read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join(rows[:10]))
    few = ("claim", owner[0], "--trust-owner", "--predictions", tmp_path / "few.csv")
    status, out, _ = verify(capsys, *few, "--allow-missing")
    assert f"hits         10 of {M}, 10 answered" in out and status == 1  # 30 misses weigh more than 10 hits
    status, out, _ = verify(capsys, *few, "--leave-out-missing")
    assert status == 0 and "log10 p = -9.54" in out  # 10 of 10, a ninth each


def npy(descr, shape, body=b"", fortran=False, version=b"\x01\x00") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + body


@pytest.mark.parametrize("content", [
    npy("'<f8'", "(1000000000000,)"), npy("'<f8'", "(30, 1000000000)"), npy("'<i8'", "(-30,)", b"x" * 240),
    npy("'|O'", "(30,)", b"x" * 240), npy("[('a', '<i8')]", "(30,)", b"x" * 240), npy("'<U8'", "(30,)", b"x" * 960),
    npy("'<i8'", "(30", b"x" * 240), npy("'<i8'", "__import__('os').system('true')", b"x" * 240),
    npy("'<i8'", "(30,)", b"x" * 240, version=b"\x03\x00"), npy("'<i8'", "(30,)", b"x" * 241),
    npy("'<c16'", "(30,)", b"x" * 480), npy("'<M8'", "(30,)", b"x" * 240),
    npy("'<i8'", "(30,)", b"\xff" * 239 + b"\x7f"),
    b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, b"PK\x03\x04" + b"\0" * 100, b"",
])
def test_npy_files_with_false_headers_are_refused(content, tmp_path):
    (tmp_path / "labels.npy").write_bytes(content)
    assert refusal_of(tmp_path / "labels.npy")


@pytest.mark.parametrize("content", [
    b'"' + b"a" * 200_000, b"a,b\n" * 10, b"\xff\xfe" + "a,1\n".encode("utf-16-le"), b"name,label\n=1+1,@SUM(A1)\n",
    b"../../key.json,class 1\n", b"/etc/passwd,class 1\n", NAMES[0].encode() + b"\0,class 1\n", b"," * 100_000,
    NAMES[0].encode() + b",\x1b[31mclass\n", b"\n" * 100_000, f"{NAMES[0]},{'9' * 5000}\n".encode(),
    f"{NAMES[0]},\u0664\n".encode(),
])
def test_files_that_are_no_csv_are_refused(content, tmp_path):
    (tmp_path / "answers.csv").write_bytes(content)
    text = refusal_of(tmp_path / "answers.csv")
    assert text and "\x1b" not in text
