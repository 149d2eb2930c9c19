"""Pictures inside a page: PNG files as data URIs, and small squares for answers."""

import base64
import io
import struct
from pathlib import Path
from typing import NamedTuple

from utils.pages.markup import Markup, element
from utils.system.refusals import Refusal
from utils.system.untrusted import read_bounded

LARGEST = 20_000  # pixels of a side


class Kind(NamedTuple):
    """A kind of square: its colour, and the path of the sign on it, in a square of 10, for who sees no colours."""

    name: str
    fill: str
    sign: str
    ink: str


KINDS = {
    "kept": Kind("kept: the assigned label", "#0b57a4", "M2.2 5.2L4.3 7.4L7.8 2.8", "#ffffff"),
    "lost": Kind("lost: the true label", "#ffffff", "M2.5 5H7.5", "#333333"),
    "other": Kind("another wrong label", "#f0c27a", "M2.8 2.8L7.2 7.2M7.2 2.8L2.8 7.2", "#333333"),
}


def embedded(content: bytes, alt: str, **attributes) -> Markup:
    """A PNG as an image of the page; Refusal where it is none. `alt` says what it shows."""
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[12:16] != b"IHDR" or len(content) < 33:
        raise Refusal(f"the picture of {alt!r} is no PNG")
    width, height = struct.unpack(">II", content[16:24])
    if not (0 < width <= LARGEST and 0 < height <= LARGEST):
        raise Refusal(f"the picture of {alt!r} has sides of {width} and {height} pixels")
    source = "data:image/png;base64," + base64.b64encode(content).decode()
    return element("img", src=source, alt=alt, width=width, height=height, **attributes)


def embedded_file(path: Path, alt: str) -> Markup:
    """A PNG file as an image of the page, not wider than the window; Refusal where it is none."""
    return embedded(read_bounded(path), alt, class_="picture")


def png_of(image) -> bytes:
    """The PNG of an image uint8 (H, W, 3), a numpy array."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


def squares(kinds: list[str], label: str, columns: int = 20) -> Markup:
    """A small square for each of `kinds`, keys of `KINDS`, row by row; `label` says what they are."""
    step, rows = 12, -(-len(kinds) // columns)
    parts = []
    for name, kind in KINDS.items():
        places = [(step * (i % columns) + 1, step * (i // columns) + 1) for i, k in enumerate(kinds) if k == name]
        if places:
            boxes = "".join(f"M{x} {y}h10v10h-10Z" for x, y in places)
            parts.append(element("path", d=boxes, fill=kind.fill, stroke="#555555", stroke_width=0.6))
            parts += [_sign(kind, x, y) for x, y in places]
    return element("svg", parts, viewBox=f"0 0 {step * columns} {step * rows}", role="img", aria_label=label)


def square_legend() -> Markup:
    """What the squares mean."""
    items = []
    for kind in KINDS.values():
        box = element("path", d="M1 1h10v10h-10Z", fill=kind.fill, stroke="#555555", stroke_width=0.6)
        sample = element("svg", box, _sign(kind, 1, 1), viewBox="0 0 12 12", width=18, height=18, aria_hidden="true")
        items.append(element("li", sample, kind.name))
    return element("ul", items, class_="legend")


def _sign(kind: Kind, x: int, y: int) -> Markup:
    return element("path", d=kind.sign, transform=f"translate({x} {y})", fill="none", stroke=kind.ink,
                   stroke_width=1.4)
