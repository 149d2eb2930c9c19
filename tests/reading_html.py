"""Read a page of ours as a strict reader would: every element closed, nothing fetched, nothing run."""

import base64
import xml.etree.ElementTree
from html.parser import HTMLParser

VOID = {"meta", "img"}
ACTIVE = {"script", "iframe", "object", "embed", "link", "base", "form", "foreignobject", "audio", "video", "image"}
PNG, SVG = "data:image/png;base64,", "data:image/svg+xml;base64,"


class Reader(HTMLParser):
    """`elements` [(name, attributes)], `text` of the page without its style sheet, `style` the style sheet."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self.style, self._open = [], "", "", []
        self.feed(page)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, name, attributes):
        assert len({key for key, _ in attributes}) == len(attributes), (name, attributes)
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self._open.append(name)

    def handle_endtag(self, name):
        assert self._open and self._open.pop() == name, f"</{name}> closes another element"

    def handle_data(self, data):
        if self._open and self._open[-1] == "style":
            self.style += data
        else:
            self.text += data + " "

    def all(self, name) -> list[dict]:
        """The attributes of all elements of a name."""
        return [attributes for found, attributes in self.elements if found == name]


def drawings(reader: Reader) -> list[str]:
    """The SVG of a page's curves."""
    sources = [image["src"] for image in reader.all("img")]
    return [base64.b64decode(source.removeprefix(SVG)).decode() for source in sources if source.startswith(SVG)]


def read_safe_page(page: str) -> Reader:
    """The page as read, after checking that it is one file, that nothing in it runs, and that it can be read out."""
    reader = Reader(page)
    assert page.startswith("<!doctype html>\n") and reader.all("html") == [{"lang": "en"}]
    assert "http:" not in page and "https:" not in page
    assert "@import" not in reader.style and "url(" not in reader.style
    for name, attributes in reader.elements:
        assert name not in ACTIVE
        for key, value in attributes.items():
            assert not key.startswith("on") and key not in ("style", "srcset", "action", "xlink:href"), (name, key)
            if key in ("src", "href"):
                assert value.startswith((PNG, SVG)), (name, value[:60])
    for node in (node for drawing in drawings(reader) for node in xml.etree.ElementTree.fromstring(drawing).iter()):
        assert node.tag.split("}")[-1].lower() not in ACTIVE | {"a"}, node.tag
        for key, value in node.attrib.items():
            assert not key.startswith("on") and (value[0] == "#" or not key.endswith("}href")), (key, value)
    (policy,) = [a["content"] for a in reader.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src" not in policy and "unsafe" not in policy
    assert policy.split("img-src ")[1].startswith("data:;")
    assert all(a.get("alt") for a in reader.all("img"))
    levels = [int(name[1]) for name, _ in reader.elements if name in ("h1", "h2", "h3")]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:]))
    return reader
