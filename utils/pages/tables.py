"""Tables that scroll inside their own box, so that a narrow window scrolls up and down alone."""

from typing import NamedTuple

from utils.pages.markup import Markup, element


class Cell(NamedTuple):
    """A table's cell with a look of its own: `kind` is a class of the style sheet, "strong" or "absent"."""

    content: object
    kind: str = ""


def table(caption: str, columns: list, rows: list[list], numbers=(), tall: bool = False) -> Markup:
    """A table; the first cell of a row is its heading.

    columns  headings
    rows     lists of as many cells: text, Markup or `Cell`
    numbers  positions of columns whose cells are aligned as numbers
    tall     whether the box has a bounded height
    """

    def cell(value, i):
        kind = value.kind if isinstance(value, Cell) else ""
        content = value.content if isinstance(value, Cell) else value
        kinds = " ".join(filter(None, ["number" if i in numbers else "", kind]))
        return element("td" if i else "th", content, scope=None if i else "row", class_=kinds or None)

    head = [element("th", name, scope="col", class_="number" if i in numbers else None)
            for i, name in enumerate(columns)]
    body = [element("tr", [cell(value, i) for i, value in enumerate(row)]) for row in rows]
    grid = element("table", element("thead", element("tr", head)), element("tbody", body), aria_label=caption)
    # a box that scrolls must be reachable by keyboard; the caption stands outside, so that it does not scroll away
    box = element("div", grid, class_="scroll tall" if tall else "scroll", tabindex="0", role="region",
                  aria_label=caption)
    return element("figure", element("figcaption", caption), box)


def listing(pairs) -> Markup:
    """A list of (name, value) pairs."""
    return element("dl", [[element("dt", name), element("dd", value)] for name, value in pairs])


def foldout(title: str, *content) -> Markup:
    """Content that is shown when its title is chosen; it needs no script."""
    return element("details", element("summary", title), content)
