"""Curves as SVG, drawn by us: no script, no font, and no style of its own that the page's policy would have to allow.

Lines differ in colour, in dashes and in their marks, so that they can be told apart without colour.
"""

import math
from typing import NamedTuple

from utils.pages.markup import Markup, element
from utils.pages.tables import foldout, table

WIDTH, HEIGHT = 400, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 44  # space around the plot
COLOURS = ("#0b57a4", "#a33b00", "#00664d", "#8a2a6b", "#1a1a1a", "#6b5200")  # at least 5:1 on white
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2")
MARKS = ("circle", "square", "triangle", "diamond", "cross")
POINTS, MARKED = 300, 9  # points of a drawn line, and marks on it, at most


class Line(NamedTuple):
    """A line of a chart: its points [(x, y), ...] by rising x, and the number of its look."""

    name: str
    points: list
    look: int = 0


class Chart(NamedTuple):
    """A chart. `y_range` None fits the lines and 0; `band` is [(x, low, high), ...]; `limit` is (y, what it means)."""

    title: str
    x_label: str
    y_label: str
    lines: list
    y_range: tuple | None = None
    band: list | None = None
    limit: tuple | None = None


def draw_chart(chart: Chart) -> Markup:
    """A figure with the chart and, folded, its numbers; a sentence where there is nothing to draw."""
    lines = [line._replace(points=thin(line.points)) for line in chart.lines if line.points]
    caption = element("figcaption", element("strong", chart.title))
    if not lines:
        return element("figure", caption, element("p", "nothing recorded"))
    band = thin(chart.band or [])
    x_axis = _Axis.of([x for line in lines for x, _ in line.points], None, LEFT, WIDTH - RIGHT)
    heights = [y for line in lines for _, y in line.points] + [y for _, *ys in band for y in ys]
    heights += [0.0, *(chart.limit[:1] if chart.limit else ())]
    y_axis = _Axis.of(heights, chart.y_range, HEIGHT - BOTTOM, TOP)
    drawing = element(
        "svg", _axes(x_axis, y_axis, chart), _band(band, x_axis, y_axis), _limit(chart.limit, y_axis),
        [_line(line, x_axis, y_axis) for line in lines],
        viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=_spoken(chart, lines),
    )
    return element("figure", caption, drawing, foldout("The numbers", _numbers(chart, lines, band)))


def legend(lines: list[Line]) -> Markup:
    """The looks of lines with their names, each look once."""
    items = []
    for line in {line.look: line for line in reversed(lines)}.values():
        stroke = element("path", d="M2 8H42", **_stroke(line.look))
        sample = element("svg", stroke, _mark(line.look, 22, 8), width=44, height=16, aria_hidden="true")
        items.append(element("li", sample, line.name))
    return element("ul", items[::-1], class_="legend")


def thin(points: list, most: int = POINTS) -> list:
    """At most `most` of the points, evenly chosen, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, about as many as asked for, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


class _Axis(NamedTuple):
    """Maps values from low to high to the page from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def of(cls, values, given, start, end):
        low, high = given or (min(values), max(values))
        if high - low <= 1e-9 * max(abs(low), abs(high), 1e-12):  # a single value
            low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
        return cls(low, high, start, end)

    def place(self, value) -> str:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return f"{self.start + share * (self.end - self.start):.1f}"


def _axes(x_axis, y_axis, chart) -> list:
    parts = []
    for value in ticks(y_axis.low, y_axis.high):
        y = y_axis.place(value)
        parts.append(element("path", d=f"M{LEFT} {y}H{WIDTH - RIGHT}", stroke="#dcdcdc"))
        parts.append(element("text", _number(value), x=LEFT - 6, y=y, text_anchor="end", dominant_baseline="central"))
    for value in ticks(x_axis.low, x_axis.high):
        if value == round(value):  # epochs and queries are counted
            place = x_axis.place(value)
            parts.append(element("path", d=f"M{place} {HEIGHT - BOTTOM}v4", stroke="#444"))
            parts.append(element("text", _number(value), x=place, y=HEIGHT - BOTTOM + 17, text_anchor="middle"))
    frame = f"M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(element("path", d=frame, fill="none", stroke="#444"))
    parts.append(element("text", chart.x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle"))
    parts.append(element("text", chart.y_label, x=13, y=middle, text_anchor="middle",
                         transform=f"rotate(-90 13 {middle:g})"))
    return parts


def _line(line, x_axis, y_axis) -> list:
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in line.points]
    path = "M" + "L".join(f"{x} {y}" for x, y in places)
    marks = [_mark(line.look, x, y) for x, y in thin(places, MARKED)]
    return [element("path", d=path, **_stroke(line.look)), *marks]


def _stroke(look: int) -> dict:
    return {"fill": "none", "stroke": COLOURS[look % len(COLOURS)], "stroke_width": 2,
            "stroke_dasharray": DASHES[look % len(DASHES)] or None}


def _mark(look: int, x, y) -> Markup:
    shapes = {"circle": "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0Z", "square": "M-3.3 -3.3h6.6v6.6h-6.6Z",
              "triangle": "M0 -4.2L4.2 3.4H-4.2Z", "diamond": "M0 -4.8L4.8 0L0 4.8L-4.8 0Z",
              "cross": "M-3.5 -3.5L3.5 3.5M3.5 -3.5L-3.5 3.5"}
    kind, colour = MARKS[look % len(MARKS)], COLOURS[look % len(COLOURS)]
    hollow = look // len(MARKS) % 2 == 1  # of more lines than marks
    return element("path", d=shapes[kind], transform=f"translate({x} {y})", stroke=colour, stroke_width=1.6,
                   fill="none" if kind == "cross" else "#ffffff" if hollow else colour)


def _band(band, x_axis, y_axis) -> Markup | None:
    if not band:
        return None
    there = [f"{x_axis.place(x)} {y_axis.place(high)}" for x, _, high in band]
    back = [f"{x_axis.place(x)} {y_axis.place(low)}" for x, low, _ in reversed(band)]
    return element("path", d="M" + "L".join(there + back) + "Z", fill="#0b57a4", fill_opacity=0.15)


def _limit(limit, y_axis) -> list | None:
    if limit is None:
        return None
    y = y_axis.place(limit[0])
    return [element("path", d=f"M{LEFT} {y}H{WIDTH - RIGHT}", stroke="#1a1a1a", stroke_dasharray="5 4"),
            element("text", limit[1], x=WIDTH - RIGHT - 4, y=float(y) - 5, text_anchor="end")]


def _spoken(chart, lines) -> str:
    ends = "; ".join(f"{line.name} from {_number(line.points[0][1])} to {_number(line.points[-1][1])}"
                     for line in lines)
    return f"Chart: {chart.title}, {chart.y_label} against {chart.x_label}. {ends}"


def _numbers(chart, lines, band) -> Markup:
    names = [line.name for line in lines] + (["5 % quantile", "95 % quantile"] if band else [])
    known = [dict(line.points) for line in lines]
    known += [{x: low for x, low, _ in band}, {x: high for x, _, high in band}] if band else []
    xs = sorted({x for points in known for x in points})
    rows = [[_number(x), *(_number(points[x]) if x in points else "" for points in known)] for x in xs]
    return table(f"{chart.title}, {chart.y_label}", [chart.x_label, *names], rows, range(1, len(names) + 1), tall=True)


def _number(value) -> str:
    return f"{value:.4g}".replace("-", "−")
