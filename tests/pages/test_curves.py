"""Charts: where points come to lie, and that lines can be told apart and read out."""

import math
import re

import pytest
from reading_html import Reader

from utils.pages.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Line, draw_chart, legend, thin, ticks


def chart(*lines, **more):
    return Chart("Loss", "epoch", "loss", list(lines), **more)


def drawn_paths(markup) -> list[str]:
    """The d of the thick strokes, which are the lines."""
    return [a["d"] for a in Reader(markup).all("path") if a.get("stroke-width") == "2"]


def test_points_lie_where_their_values_say():
    (path,) = drawn_paths(draw_chart(chart(Line("a", [(0, 0), (1, 50), (2, 100)]), y_range=(0, 100))))
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    assert path == (f"M{LEFT}.0 {HEIGHT - BOTTOM}.0L{middle_x} {middle_y}L{WIDTH - RIGHT}.0 {TOP}.0")


def test_without_a_range_zero_limit_and_band_are_in_sight():
    low = chart(Line("p", [(1, -1.0), (2, -2.0)]), band=[(1, -1.0, 0.0), (2, -4.0, -1.0)], limit=(-3.0, "alpha"))
    markup = draw_chart(low)
    labels = [float(text.replace("−", "-")) for text in re.findall(r'text-anchor="end"[^>]*>(−?[\d.]+)<', markup)]
    assert labels == [-4.0, -3.0, -2.0, -1.0, 0.0] and ">alpha<" in markup


@pytest.mark.parametrize("points", [[(1, 5.0)], [(1, 0.0), (2, 0.0)], [(1, 1e30), (2, -1e30)], [(3, 5e-324)],
                                    [(1, 1e-30), (2, 2e-30)]])
def test_odd_values_are_drawn_inside_the_plot(points):
    (path,) = drawn_paths(draw_chart(chart(Line("a", points))))
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
    assert all(math.isfinite(n) for n in numbers) and len(numbers) == 2 * len(points)
    assert all(LEFT <= x <= WIDTH - RIGHT for x in numbers[::2])
    assert all(TOP <= y <= HEIGHT - BOTTOM for y in numbers[1::2])


def test_nothing_to_draw_is_said():
    assert "nothing recorded" in draw_chart(chart(Line("a", [])))


@pytest.mark.parametrize("low, high, expected", [(0, 100, [0, 20, 40, 60, 80, 100]), (0, 7.4, [0, 2, 4, 6]),
                                                 (1, 12, [5, 10]), (-45.2, 0, [-40, -30, -20, -10, 0])])
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_thin_keeps_the_ends_and_the_order():
    points = list(range(1001))
    kept = thin(points, 11)
    assert kept == list(range(0, 1001, 100)) and thin(points[:11], 11) == points[:11]


def test_lines_differ_without_colour():
    samples = legend([Line(f"line {i}", [], i) for i in range(10)]).split("<li>")[1:]
    without_colour = {re.sub(r'stroke="#\w+"|fill="#(?!ffffff)\w+"|line \d', "", sample) for sample in samples}
    assert len(without_colour) == 10


def test_a_chart_can_be_read_out_and_its_numbers_are_beside_it():
    page = Reader(draw_chart(chart(Line("source <1>", [(1, 2.5), (2, 0.5)]), Line("copy", [(2, 7.0)], 1))))
    (svg,) = page.all("svg")
    assert svg["role"] == "img" and "source <1> from 2.5 to 0.5; copy from 7 to 7" in svg["aria-label"]
    assert page.all("table") and "2.5" in page.text
