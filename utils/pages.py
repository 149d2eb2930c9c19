"""A page of one file that runs nothing and asks for nothing: the Jinja2 template, and curves by matplotlib.

Whatever is put into the template is escaped. A curve or a picture is an image with its data inside the page, so the
page's Content-Security-Policy can forbid everything but those images and its own style sheet.
"""

import base64
import contextlib
import hashlib
import io
import warnings
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from utils.system.machine import new_figure

TEMPLATE = Path(__file__).with_name("report.html.j2")
POINTS = 300  # of a drawn line, at most
COLOURS = ("#0b57a4", "#a33b00", "#00664d", "#8a2a6b", "#1a1a1a", "#6b5200")  # at least 5:1 on white
DASHES, MARKERS = ("-", "--", ":", "-.", (0, (6, 1, 1, 1))), "os^Dx"  # 6 and 5 and 5: 30 looks, 25 without colour
SVG = {  # equal bytes at each call, text as text, and a name's $ no formula
    "svg.hashsalt": "margin", "svg.fonttype": "none", "text.parse_math": False, "font.size": 10,
    "font.family": ["sans-serif"], "font.sans-serif": ["DejaVu Sans"],
}


def clean(text) -> str:
    """Text without what could hide or reorder words in a page or on a terminal.

    Control characters, those that turn the direction of writing and lone surrogates become U+FFFD.
    """
    return "".join(c if c.isprintable() or c in "\n\t\u00a0" else "\ufffd" for c in str(text))


def shorten(text, limit: int = 120) -> str:
    """Text of at most `limit` characters, for what files say."""
    text = str(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def render(**values) -> str:
    """The page that the template makes of values; each is escaped, and so are the characters that `clean` replaces."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
        finalize=lambda value: value if hasattr(value, "__html__") else clean(value),
    )
    environment.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    environment.filters["shorten"] = shorten
    return environment.get_template(TEMPLATE.name).render(**values)


def data_uri(content: bytes, kind: str) -> str:
    """An image of a kind, "png" or "svg+xml", as the address under which a page finds it in itself."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


@contextlib.contextmanager
def svg_settings():
    """Draw under the settings `SVG`, without warnings of scripts that the font lacks; the reader's browser has them."""
    import matplotlib  # not before a command began, which makes sure that matplotlib can be imported

    with matplotlib.rc_context(SVG), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        yield


@svg_settings()
def chart(title: str, x_label: str, y_label: str, lines: list, limit: tuple | None = None) -> dict:
    """Curves as an image of a page with its numbers: {"title", "src", "alt", "head", "rows"}; "src" "" without a line.

    lines  [(name, [(x, y), ...] by rising x), ...]; the n-th has the n-th look, as in `legend`; y in % is in [0, 100]
    limit  (y of a dashed line, what it means)
    """
    drawn = [(name, _thin(points), look(i)) for i, (name, points) in enumerate(lines) if points]
    known = [dict(points) for _, points, _ in drawn]
    rows = [[f"{x:.4g}", *(f"{points[x]:.4g}" if x in points else "" for points in known)]
            for x in sorted(set().union(*known))]
    result = {"title": title, "src": "", "head": [x_label, *(name for name, _, _ in drawn)], "rows": rows}
    if not drawn:
        return result
    figure, (ax,) = new_figure(4.4, 3.1, 1, 1)
    for _, points, style in drawn:
        ax.plot(*zip(*points), **style, markevery=max(1, len(points) // 9))
    if limit:
        ax.axhline(limit[0], color="#1a1a1a", lw=1, ls=(0, (5, 4)))
        ax.annotate(limit[1], (0.99, limit[0]), xycoords=("axes fraction", "data"), xytext=(0, 3),
                    textcoords="offset points", ha="right", fontsize=9)
    if "%" in y_label:
        ax.set_ylim(-3, 103)
    ax.set(xlabel=x_label, ylabel=y_label)
    ax.xaxis.get_major_locator().set_params(integer=True)  # epochs and queries are counted
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#dcdcdc")
    ends = "; ".join(f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points, _ in drawn)
    return result | {"src": _svg(figure), "alt": f"Chart: {title}, {y_label} against {x_label}. {ends}"}


@svg_settings()
def legend(names: list) -> dict:
    """The looks of the lines of charts with their names, one below the other: an image, {"src", "alt"}."""
    from matplotlib.lines import Line2D

    figure, _ = new_figure(7, 0.1 + 0.22 * len(names))
    figure.legend([Line2D([], [], **look(i)) for i in range(len(names))], [shorten(clean(name)) for name in names],
                  loc="center left", frameon=False, handlelength=4, borderpad=0)
    return {"src": _svg(figure), "alt": "The lines: " + "; ".join(names)}


def look(i: int) -> dict:
    """The look of the i-th line; colour, dash and mark differ, so that colour is not needed."""
    return {"color": COLOURS[i % len(COLOURS)], "ls": DASHES[i % len(DASHES)], "lw": 1.8, "markersize": 5,
            "marker": MARKERS[i % len(MARKERS)], "fillstyle": "none" if i // len(MARKERS) % 2 else "full"}


def _thin(points: list) -> list:
    """At most `POINTS` of the points, evenly chosen, the first and the last among them."""
    return [points[i] for i in np.linspace(0, len(points) - 1, min(len(points), POINTS)).round().astype(int)]


def _svg(figure) -> str:
    figure.savefig(buffer := io.BytesIO(), format="svg", metadata={"Date": None})
    return data_uri(buffer.getvalue(), "svg+xml")
