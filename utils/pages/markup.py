"""HTML that is safe by construction: all text is escaped unless an element made it."""

import html


class Markup(str):
    """A piece of HTML. Only `element` and `join` make it, so that whatever else becomes part of a page is escaped."""

    __slots__ = ()


def escape(text) -> Markup:
    """Any value as text of a page or of an attribute.

    Control characters, those that turn the direction of writing and lone surrogates become U+FFFD: a file of somebody
    else's could hide or reorder words by them.
    """
    shown = "".join(c if c.isprintable() or c in "\n\t\u00a0" else "\ufffd" for c in str(text))
    return Markup(html.escape(shown, quote=True))


def join(parts) -> Markup:
    """Parts one after the other: Markup as it is, None left out, anything else escaped; lists are walked through."""
    pieces = []
    for part in parts:
        if isinstance(part, (list, tuple)):
            pieces.append(join(part))
        elif part is not None:
            pieces.append(part if isinstance(part, Markup) else escape(part))
    return Markup("".join(pieces))


def element(name: str, /, *content, **attributes) -> Markup:
    """The element `name` with its content and attributes; `class_` is class, and - stands for _ in a name.

    An attribute that is None or False is left out, one that is True has no value.
    """
    written = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        written.append(key if value is True else f'{key}="{escape(value)}"')
    start = f"<{' '.join(written)}>"
    if name in ("meta", "img", "br"):  # these have neither content nor an end
        return Markup(start)
    return Markup(f"{start}{join(content)}</{name}>")


def shorten(text, limit: int = 120) -> str:
    """Text of at most `limit` characters, for what files say."""
    text = str(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
