"""HTML pages of one file that run nothing and ask for nothing: a Jinja2 template, and curves by matplotlib.

The template `report.html.j2` has style, head and tables. Whatever is put into a template is escaped. A curve or a
picture is an image with its data inside the page, so the page's Content-Security-Policy can forbid everything but those
images and its own style sheet.
"""

import base64
import contextlib
import hashlib
import io
import itertools
import os
import warnings
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from utils.system.files import check_output_file, lock, write_atomically
from utils.system.machine import new_figure
from utils.system.refusals import Refusal

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


def render(template: Path = TEMPLATE, **values) -> str:
    """The page that a template makes of values; each is escaped, and so are the characters that `clean` replaces."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, TEMPLATE.parent]), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        finalize=lambda value: value if hasattr(value, "__html__") else clean(value),
    )
    environment.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    environment.filters["shorten"] = shorten
    return environment.get_template(template.name).render(**values)


def png_image(image, alt: str) -> dict:
    """An image uint8 (H, W, 3), a numpy array, as a PNG of a page: {"src", "alt", "width", "height"}."""
    Image.fromarray(image).save(buffer := io.BytesIO(), format="png")
    return {"src": _data_uri(buffer, "png"), "alt": alt, "width": image.shape[1], "height": image.shape[0]}


def _data_uri(buffer: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


@contextlib.contextmanager
def _svg_settings():
    """Draw under the settings `SVG`, without warnings of scripts that the font lacks; the reader's browser has them."""
    import matplotlib  # not before a command began, which makes sure that matplotlib can be imported

    with matplotlib.rc_context(SVG), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        yield


@_svg_settings()
def chart(title: str, x_label: str, y_label: str, lines: list, percent=False, band=None, limits=()) -> dict:
    """Curves as an image of a page with its numbers: {"title", "src", "alt", "head", "rows"}; "src" "" without a line.

    lines    [(name, [(x, y), ...] by rising x), ...]; the n-th has the n-th look, as in `legend`
    percent  whether y goes from 0 to 100
    band     [(x, low, high), ...]
    limits   [(y, what it means), ...]
    """
    lines, band = [(name, _thin(points)) for name, points in lines], _thin(band or [])
    drawn = [(name, points) for name, points in lines if points]
    numbers = drawn + [(f"{5 + 90 * i} % quantile", [(b[0], b[1 + i]) for b in band]) for i in (0, 1) if band]
    known = [dict(points) for _, points in numbers]
    rows = [[f"{x:.4g}", *(f"{points[x]:.4g}" if x in points else "" for points in known)]
            for x in sorted(set().union(*known))]
    result = {"title": title, "src": "", "head": [x_label, *(name for name, _ in numbers)], "rows": rows}
    if not drawn:
        return result
    figure, (ax,) = new_figure(4.4, 3.1, 1, 1)
    for (_, points), look in zip(lines, _looks()):
        if points:
            ax.plot(*zip(*points), **look, markevery=max(1, len(points) // 9))
    if band:
        ax.fill_between(*zip(*band), color=COLOURS[0], alpha=0.15, lw=0)
    for y, meaning in limits:
        ax.axhline(y, color="#1a1a1a", lw=1, ls=(0, (5, 4)))
        ax.annotate(meaning, (0.99, y), xycoords=("axes fraction", "data"), xytext=(0, 3),
                    textcoords="offset points", ha="right", fontsize=9)
    if percent:
        ax.set_ylim(-3, 103)
    ax.set(xlabel=x_label, ylabel=y_label)
    ax.xaxis.get_major_locator().set_params(integer=True)  # epochs and queries are counted
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#dcdcdc")
    ends = "; ".join(f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points in drawn)
    return result | {"src": _svg(figure), "alt": f"Chart: {title}, {y_label} against {x_label}. {ends}"}


@_svg_settings()
def legend(names: list) -> dict:
    """The looks of the lines of charts with their names, one below the other: an image, {"src", "alt"}."""
    from matplotlib.lines import Line2D

    figure, _ = new_figure(7, 0.1 + 0.22 * len(names))
    figure.legend([Line2D([], [], **look) for _, look in zip(names, _looks())], [shorten(clean(n)) for n in names],
                  loc="center left", frameon=False, handlelength=4, borderpad=0)
    return {"src": _svg(figure), "alt": "The lines: " + "; ".join(names)}


def _looks():
    """The looks of lines without end; they differ in colour, dash and mark, so that colour is not needed."""
    for i in itertools.count():
        yield {"color": COLOURS[i % len(COLOURS)], "ls": DASHES[i % len(DASHES)], "lw": 1.8, "markersize": 5,
               "marker": MARKERS[i % len(MARKERS)], "fillstyle": "none" if i // len(MARKERS) % 2 else "full"}


def _svg(figure) -> str:
    """A figure as a data URI."""
    figure.savefig(buffer := io.BytesIO(), format="svg", metadata={"Date": None})
    return _data_uri(buffer, "svg+xml")


def _thin(points: list) -> list:
    """At most `POINTS` of the points, evenly chosen, the first and the last among them."""
    n = min(len(points), POINTS)
    return [points[round(i * (len(points) - 1) / max(1, n - 1))] for i in range(n)]


def check_page_file(path, flag: str) -> None:
    """Refuse a page's file before the work begins: one that cannot be written, or that would replace something else."""
    if path is None:
        return
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise Refusal(f"{flag} {path}: a page is HTML; name a file that ends in .html")
    check_output_file(path, flag)


def write_page(path: Path, text: str, private: bool = False) -> None:
    """Write a page whole or not at all; of processes that write into one folder one after the other does."""
    folder = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        lock(folder, wait=True)
        write_atomically(path, text.encode(), private)
    finally:
        os.close(folder)
