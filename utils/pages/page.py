"""A whole page: head, contents, sections.

The Content-Security-Policy forbids scripts, forms and every request, and allows this project's style sheet by its hash
and pictures that the page itself holds.
"""

import base64
import fcntl
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from utils.pages.markup import Markup, element, join
from utils.system.files import check_output_file, write_atomically
from utils.system.refusals import Refusal

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{STYLE_HASH}'; img-src data:; base-uri 'none'; form-action 'none'"


class Section(NamedTuple):
    """A part of a page: `name` is its anchor, `content` pieces for `join`."""

    name: str
    title: str
    content: list


def page(title: str, introduction: list, sections: list[Section]) -> str:
    """The text of a page; `introduction` stands above its table of contents."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    links = [element("li", element("a", part.title, href=f"#{part.name}")) for part in sections]
    contents = element("nav", element("ul", links), aria_label="Contents") if len(links) > 1 else None
    parts = [element("section", element("h2", part.title, id=part.name), part.content, aria_labelledby=part.name)
             for part in sections]
    body = element("body", element("header", element("h1", title), introduction), contents, element("main", parts))
    return "<!doctype html>\n" + element("html", head, "\n", body, lang="en") + "\n"


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
        fcntl.flock(folder, fcntl.LOCK_EX)
        write_atomically(path, text.encode(), private)
    finally:
        os.close(folder)


def note(*content) -> Markup:
    """A remark that a reader must not overlook."""
    return element("p", join(content), class_="note", role="note")


def paragraph(*content) -> Markup:
    """A paragraph of text."""
    return element("p", join(content))
