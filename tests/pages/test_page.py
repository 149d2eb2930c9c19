"""Whole pages, tables and pictures."""

import base64
import hashlib
import io
import os
import stat
import threading

import numpy as np
import pytest
from PIL import Image
from reading_html import Reader, read_safe_page

from utils.pages.page import Section, check_page_file, note, page, paragraph, write_page
from utils.pages.pictures import KINDS, embedded, embedded_file, png_of, square_legend, squares
from utils.pages.tables import Cell, foldout, listing, table
from utils.system.refusals import Refusal

IMAGE = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def test_a_page_of_all_pieces_is_safe_and_its_policy_allows_its_own_style():
    content = [table("t", ["a", "b"], [["x", Cell("y", "absent")]], [1]), listing([("n", "v")]), note("!"),
               foldout("more", paragraph("text")), embedded(png_of(IMAGE), "a ramp"), squares(["kept", "other"], "two"),
               square_legend()]
    sections = [Section("one", "One", content), Section("two", "Two", [])]
    read = read_safe_page(page("Title", [paragraph("intro")], sections))
    digest = base64.b64encode(hashlib.sha256(read.style.encode()).digest()).decode()
    assert any(f"style-src 'sha256-{digest}'" in a.get("content", "") for a in read.all("meta"))
    assert [a["href"] for a in read.all("a")] == ["#one", "#two"]
    assert {a["name"] for a in read.all("meta") if "name" in a} == {"viewport", "referrer"}


def test_a_table_scrolls_in_a_box_that_the_keyboard_reaches():
    read = Reader(table("Results <1>", ["model", "hits"], [["a", "3"], ["b", Cell("not run", "absent")]], [1]))
    (box,) = [a for a in read.all("div") if a["class"] == "scroll"]
    assert box["tabindex"] == "0" and box["role"] == "region" and box["aria-label"] == "Results <1>"
    assert [a.get("scope") for a in read.all("th")] == ["col", "col", "row", "row"]
    assert [a.get("class") for a in read.all("td")] == ["number", "number absent"]


def test_a_picture_is_the_file_itself(tmp_path):
    (tmp_path / "p.png").write_bytes(png_of(IMAGE))
    (image,) = Reader(embedded_file(tmp_path / "p.png", 'a "ramp"')).all("img")
    assert (image["alt"], image["width"], image["height"]) == ('a "ramp"', "5", "4")
    content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    assert (np.asarray(Image.open(io.BytesIO(content))) == IMAGE).all()


@pytest.mark.parametrize("content", [b"", b"<svg onload=x>", b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
                                     b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\xff" * 30])
def test_what_is_no_picture_is_refused(content):
    with pytest.raises(Refusal, match="picture"):
        embedded(content, "x")


def test_squares_differ_by_their_signs_and_count_right():
    assert len({kind.sign for kind in KINDS.values()}) == len(KINDS)
    kinds = ["kept"] * 3 + ["lost"] * 20 + ["other"]
    read = Reader(squares(kinds, "24"))
    boxes = {a["fill"]: a["d"].count("M") for a in read.all("path") if a["fill"] != "none"}
    assert boxes == {KINDS["kept"].fill: 3, KINDS["lost"].fill: 20, KINDS["other"].fill: 1}
    assert read.all("svg")[0]["viewbox"] == "0 0 240 24"  # two rows of at most 20 squares of 12


def test_a_page_file_is_checked_before_the_work(tmp_path):
    check_page_file(None, "--out")
    check_page_file(tmp_path / "a.html", "--out")
    (tmp_path / "folder.html").mkdir()
    for name, why in (("run.json", "ends in .html"), ("folder.html", "is a folder"), ("no/a.html", "no folder")):
        with pytest.raises(Refusal, match=why):
            check_page_file(tmp_path / name, "--out")


def test_a_private_page_stays_private_and_several_writers_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "a.html"
    write_page(path, "open")
    write_page(path, "secret", private=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.read_text() == "secret"
    texts = [str(i) * 10_000 for i in range(6)]
    failed = []

    def write(text):
        try:
            write_page(path, text)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and path.read_text() in texts and os.listdir(tmp_path) == ["a.html"]
