"""Pages: what is put into a template is escaped, curves are images that can be read out, and files are whole."""

import base64
import hashlib
import io
import os
import re
import stat
import threading

import numpy as np
import pytest
from PIL import Image
from reading_html import drawings, read_safe_page

from utils.pages import chart, check_page_file, clean, legend, png_image, render, write_page
from utils.system.refusals import Refusal

IMAGE = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onload='x", "a & b < c", "</td></table>",
           "<!--", "&lt;", "]]>", "javascript:alert(1)", "{{ 7 * 7 }}", "$x^", "\x00\u202e\ud800", "100 %s"]


@pytest.fixture
def shown(tmp_path):
    """A function that reads the page of a template's body; what it is given is what the body may use."""

    def show(body, **values):
        path = tmp_path / "own.html.j2"
        path.write_text('{% extends "report.html.j2" %}{% block header %}{% endblock %}{% block main %}'
                        f"{body}{{% endblock %}}")
        return read_safe_page(render(path, **{"title": "t"} | values))

    return show


def drawing(one: dict, shown) -> str:
    """The SVG of a chart."""
    return drawings(shown("{{ charts([one]) }}", one=one))[0]


def line_of(svg: str) -> list:
    """The points of the first line with a colour of ours, in SVG coordinates."""
    (path, *_) = re.findall(r'<path d="([^"]*)"[^>]*stroke: #0b57a4', svg)
    return [tuple(map(float, point)) for point in re.findall(r"[ML] (\S+) (\S+)", path)]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_files_say_comes_back_as_text(shown, text):
    body = """<p class="{{ text }}">{{ text }}</p>{{ note(text) }}{{ table(text, [text, text], [[text, text]], true) }}
              <img src="{{ legend.src }}" alt="{{ legend.alt }}">{{ charts([one]) }}"""
    page = shown(body, title=text, text=text, legend=legend([text]),
                 one=chart(text, "epoch", "loss", [(text, [(1, 2.0)])]))
    assert page.text.count(clean(text)) >= 9 and page.all("p")[0]["class"] == clean(text)
    assert any(clean(text) in image["alt"] for image in page.all("img"))


def test_characters_that_hide_or_reorder_words_are_replaced():
    assert clean("a\x00b\x1bc\u202ed\ud800e\u200bf") == "a\ufffdb\ufffdc\ufffdd\ufffde\ufffdf"
    assert clean("α ≤ 5 %,\nnaïve\tcafé 猫") == "α ≤ 5 %,\nnaïve\tcafé 猫"


def test_the_policy_allows_the_pages_own_style(shown):
    read = shown("<p>text</p>")
    digest = base64.b64encode(hashlib.sha256(read.style.encode()).digest()).decode()
    assert any(f"style-src 'sha256-{digest}'" in a.get("content", "") for a in read.all("meta"))


def test_points_lie_where_their_values_say_and_text_stays_text(shown):
    points = [(0, 0), (1, 50), (2, 100), (3, 100)]
    svg = drawing(chart("t", "epoch", "accuracy, %", [("a", points)], percent=True), shown)
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = line_of(svg)
    assert x1 - x0 == pytest.approx(x2 - x1) == pytest.approx(x3 - x2) and y0 - y1 == pytest.approx(y1 - y2)
    assert y0 > y1 > y2 == y3 and ">epoch</text>" in svg and ">accuracy, %</text>" in svg


@pytest.mark.parametrize("points", [[(1, 5.0)], [(1, 0.0), (2, 0.0)], [(1, 1e30), (2, -1e30)], [(3, 5e-324)],
                                    [(1, 1e-30), (2, 2e-30)], [(-1e30, 0.5), (1e30, 0.5)]])
def test_odd_values_are_drawn_inside_the_picture(shown, points):
    svg = drawing(chart("t", "x", "y", [("a", points)]), shown)
    assert "nan" not in svg and "inf" not in svg.split("</metadata>")[1]
    width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', svg).groups())
    assert all(0 <= x <= width and 0 <= y <= height for x, y in line_of(svg))


def test_a_chart_can_be_read_out_and_its_numbers_are_beside_it(shown):
    one = chart("Loss", "epoch", "loss", [("source <1>", [(1, 2.5), (2, 0.5)]), ("copy", [(2, 7.0)])])
    page = shown("{{ charts([one]) }}", one=one)
    assert "source <1> from 2.5 to 0.5; copy from 7 to 7" in page.all("img")[0]["alt"]
    assert one["rows"] == [["1", "2.5", ""], ["2", "0.5", "7"]] and "source <1>" in page.text


def test_a_picture_is_the_file_itself():
    image = png_image(IMAGE, 'a "ramp"')
    assert (image["alt"], image["width"], image["height"]) == ('a "ramp"', 5, 4)
    content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    assert (np.asarray(Image.open(io.BytesIO(content))) == IMAGE).all()


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
