"""Curves of a page: images that can be read out, whose points lie where their values say."""

import base64
import re

import pytest

from utils.pages import chart, clean


def drawing(one: dict) -> str:
    """The SVG of a chart."""
    return base64.b64decode(one["src"].removeprefix("data:image/svg+xml;base64,")).decode()


def line_of(svg: str) -> list:
    """The points of the first line with a colour of ours, in SVG coordinates."""
    (path, *_) = re.findall(r'<path d="([^"]*)"[^>]*stroke: #0b57a4', svg)
    return [tuple(map(float, point)) for point in re.findall(r"[ML] (\S+) (\S+)", path)]


def test_characters_that_hide_or_reorder_words_are_replaced():
    assert clean("a\x00b\x1bc\u202ed\ud800e\u200bf") == "a\ufffdb\ufffdc\ufffdd\ufffde\ufffdf"
    assert clean("α ≤ 5 %,\nnaïve\tcafé 猫") == "α ≤ 5 %,\nnaïve\tcafé 猫"


def test_points_lie_where_their_values_say_and_text_stays_text():
    svg = drawing(chart("t", "epoch", "accuracy, %", [("a", [(0, 0), (1, 50), (2, 100), (3, 100)])]))
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = line_of(svg)
    assert x1 - x0 == pytest.approx(x2 - x1) == pytest.approx(x3 - x2) and y0 - y1 == pytest.approx(y1 - y2)
    assert y0 > y1 > y2 == y3 and ">epoch</text>" in svg and ">accuracy, %</text>" in svg


@pytest.mark.parametrize("points", [[(1, 5.0)], [(1, 0.0), (2, 0.0)], [(1, 1e30), (2, -1e30)], [(3, 5e-324)],
                                    [(1, 1e-30), (2, 2e-30)], [(-1e30, 0.5), (1e30, 0.5)]])
def test_odd_values_are_drawn_inside_the_picture(points):
    svg = drawing(chart("t", "x", "y", [("a", points)]))
    assert "nan" not in svg and "inf" not in svg.split("</metadata>")[1]
    width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', svg).groups())
    assert all(0 <= x <= width and 0 <= y <= height for x, y in line_of(svg))


def test_a_chart_can_be_read_out_and_its_numbers_are_beside_it():
    one = chart("Loss", "epoch", "loss", [("source <1>", [(1, 2.5), (2, 0.5)]), ("copy", [(2, 7.0)]), ("none", [])])
    assert one["alt"] == "Chart: Loss, loss against epoch. source <1> from 2.5 to 0.5; copy from 7 to 7"
    assert one["head"] == ["epoch", "source <1>", "copy"] and one["rows"] == [["1", "2.5", ""], ["2", "0.5", "7"]]
    long = chart("Loss", "epoch", "loss", [("a", [(i, i) for i in range(1, 5001)])])["rows"]
    assert len(long) == 300 and long[0] == ["1", "1"] and long[-1] == ["5000", "5000"]
