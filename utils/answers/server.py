"""Ask a server for the answers to images: each is POSTed as a PNG file, and the reply is read as data.

The standard library's client: it adds no requirement. Redirects are not followed, since a POST would become a GET.
"""

import email.utils
import math
import queue
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import NamedTuple

from utils.answers.answers import Answer
from utils.answers.reply import read_reply
from utils.system.files import read_bounded
from utils.system.refusals import Refusal

REPLY_LIMIT = 1 << 20  # bytes
PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses after which asking again may help
LONGEST_PAUSE = 60.0  # seconds, whatever the server asks for
HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)
OUR_HEADERS = ("content-length", "transfer-encoding")  # with another value the image would arrive cut or not at all


class Server(NamedTuple):
    """A server that classifies images.

    url      http or https
    headers  "Name: value", sent with each image
    seconds  time limit of a reply, all of it
    rate     images a second at most
    retries  how often an image is asked again after a timeout, a lost connection or a status of `PASSING`
    """

    url: str
    headers: tuple = ()
    seconds: float = 60.0
    rate: float = 10.0
    retries: int = 3

    images_per_call = 1

    def check(self) -> None:
        """Refuse an address or a header that can never be sent."""
        _check_address(self.url)
        for header in self.headers:
            name, colon, value = header.partition(":")
            if not (HEADER_NAME.fullmatch(name.strip()) and colon and value.strip() and header.isprintable()
                    and header.isascii()):
                raise Refusal(f"--header {header[:20]!r}...: pass 'Name: value' in ASCII, the name without spaces")
            if name.strip().lower() in OUR_HEADERS:
                raise Refusal(f"--header {header[:40]!r}: it follows from the image, so leave it out")

    def ask(self, pngs: list[Path], classes: list[str], allow_missing: bool) -> list[Answer]:
        """The answer to the image file `pngs[0]`, asked again after a passing failure.

        Raises Refusal where there is no answer, or none that can be read; with `allow_missing` a server that does not
        answer gives an answer without a label.
        """
        (png,) = pngs
        for attempt in range(self.retries + 1):
            begun = time.monotonic()
            try:
                reply, kind = _within(self.seconds, self._post, read_bounded(png))
            except _NoReply as failure:
                if failure.passing and attempt < self.retries:
                    time.sleep(max(failure.pause or min(2.0**attempt, LONGEST_PAUSE), 1 / self.rate))
                    continue
                if allow_missing:
                    return [Answer()]
                again = f" ({attempt + 1} times)" if attempt else ""
                raise Refusal(f"--url {self.url} {failure} for {png.name}{again}: whatever it has answered is kept, "
                              "and the same command goes on; or pass --allow-missing") from failure
            time.sleep(max(0.0, begun + 1 / self.rate - time.monotonic()))
            return [read_reply(reply, kind, classes, f"--url {self.url}, {png.name}")]

    def _post(self, content: bytes) -> tuple[bytes, str]:
        """(the reply, its content type); raises _NoReply."""
        request = urllib.request.Request(self.url, content, {"Content-Type": "image/png"}, method="POST")
        for header in self.headers:
            key, _, value = header.partition(":")
            request.add_header(key.strip(), value.strip())
        try:
            with urllib.request.build_opener(_Stay).open(request, timeout=self.seconds) as response:
                reply = response.read(REPLY_LIMIT + 1)
                kind, lacking = response.headers.get_content_type(), response.length
        except _NoReply:
            raise
        except urllib.error.HTTPError as error:
            raise _NoReply(f"answered with status {error.code} {_body_of(error)!r}", error.code in PASSING,
                           _pause(error.headers.get("Retry-After"))) from error
        except OSError as error:
            why = getattr(error, "reason", None) or error
            if isinstance(why, TimeoutError) and why.errno is None:  # the socket's limit, just before that of `_within`
                raise _too_late(self.seconds) from error
            raise _NoReply(f"cannot be reached or broke off ({' '.join(str(why).split())[:120]})", True) from error
        except Exception as error:  # a server may send what is no HTTP, or half of it
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
            raise _NoReply(f"sent no complete reply ({why})", True) from error
        if len(reply) > REPLY_LIMIT:
            raise _NoReply(f"sent a reply of more than {REPLY_LIMIT} bytes", False)
        if lacking:  # http.client does not say so where a number of bytes is asked for
            raise _NoReply(f"sent no complete reply ({lacking} bytes are lacking)", True)
        return reply, kind


def _check_address(url: str) -> None:
    if not url.lower().startswith(("http://", "https://")):
        raise Refusal(f"--url {url[:80]}: pass an address that begins with http:// or https://")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise Refusal(f"--url {url[:80]}: write spaces and whatever is not ASCII as %XX, as a browser copies it")
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname or "", parts.port  # to read a port is to check it
        if any(not 0 < len(part) < 64 for part in host.removesuffix(".").split(".")):  # the resolver takes no others
            raise ValueError(f"{host!r} is no host" if host else "it names no host")
        if not re.fullmatch(r"[\w.-]+|.*:.*", host, re.ASCII):  # what has a colon was in brackets: IPv6
            raise ValueError(f"{host!r} is no host")
    except ValueError as error:
        raise Refusal(f"--url {url[:80]} is no address that can be asked ({error}): pass one like "
                      "https://host:8080/classify") from error
    if "@" in parts.netloc:  # which urllib takes for a part of the host
        raise Refusal(f"--url with a name or password before {host}: pass them by --header 'Authorization: Basic ...'")


def _body_of(error: urllib.error.HTTPError) -> str:
    """The beginning of the text of an error status, "" where it breaks off: the status is the answer all the same."""
    try:
        with error:
            return " ".join(error.read(120).decode(errors="replace").split())
    except Exception:  # a lost connection, or no HTTP
        return ""


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, fp, code, message, headers, address):
        raise _NoReply(f"redirects to {address[:200]!r} (pass that one)", False)


class _NoReply(Exception):
    def __init__(self, text: str, passing: bool, pause: float | None = None):
        super().__init__(text)
        self.passing, self.pause = passing, pause


def _too_late(seconds: float) -> _NoReply:
    return _NoReply(f"gave no complete answer in {seconds:g} s", True)


def _pause(retry_after: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, at most `LONGEST_PAUSE`; None where there is none."""
    if not retry_after:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except Exception:  # a year of twenty digits, two words, ...: the parser has an error for each
            return None
    return min(max(seconds, 0.0), LONGEST_PAUSE) if math.isfinite(seconds) else None


def _within(seconds: float, call, *arguments):
    """What `call` returns or raises, or _NoReply after `seconds`, also where the server sends a byte now and then."""
    outcome = queue.SimpleQueue()

    def run():
        try:
            outcome.put((call(*arguments), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise _too_late(seconds) from None
    if error is not None:
        raise error
    return result
