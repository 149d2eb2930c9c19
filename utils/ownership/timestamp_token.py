"""RFC 3161 time-stamp tokens: a time-stamping authority signs that a digest existed at its time.

The cryptography is that of the program `openssl ts`; nothing here parses a token.
"""

import re
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from utils.system.files import read_bounded
from utils.system.refusals import Refusal

TOKEN_FILE = "commitment.tsr"  # beside commitment.json
TOKEN_LIMIT = 1 << 20  # bytes; a reply with certificates takes about 5 kB
SECONDS = 60  # time limit of openssl and of the authority


class Stamp(NamedTuple):
    """What is known of the date of a commitment.

    state  "verified" (a token whose signature leads to a given certificate), "unverified" (a token, and nobody has
           given certificates), "failed" (a token that is not the commitment's, or not the authority's) or "none"
    time   of the authority, as openssl prints it; None without a token that can be read
    why    of "failed": openssl's reason
    """

    state: str
    time: str | None = None
    why: str | None = None


def request_token(digest: str, url: str, ca: str | None = None) -> bytes:
    """Ask the authority at `url` for a token of a SHA-256 digest (hexadecimal); the reply, which is checked.

    ca  file of certificates, PEM, that the signature has to lead to; None: signature and nonce are not checked

    Raises Refusal where openssl is missing, the authority is not reached, or its reply is no token of this digest.
    """
    with tempfile.TemporaryDirectory() as folder:
        query, reply = Path(folder, "query.tsq"), Path(folder, "reply.tsr")
        _openssl("ts", "-query", "-digest", digest, "-sha256", "-cert", "-out", str(query))
        reply.write_bytes(_post(url, query.read_bytes()))
        status = " ".join(_openssl("ts", "-reply", "-in", str(reply), "-text", of=f"the answer of --tsa {url}").split())
        if not status.startswith("Status info: Status: Granted"):
            raise Refusal(f"--tsa {url} does not stamp this: {status.partition('TST info')[0][:200]}")
        if _imprint(_read_token(reply)) != digest:
            raise Refusal(f"--tsa {url} stamped another digest; ask another authority")
        if ca:
            _openssl("ts", "-verify", "-queryfile", str(query), "-in", str(reply), "-CAfile", ca, of=f"--tsa {url}")
        return reply.read_bytes()


def check_token(path: Path, digest: str, ca: str | None) -> Stamp:
    """The `Stamp` of a token file for a digest in hexadecimal; `ca` is a file of certificates or None.

    Raises Refusal where openssl is missing or a file cannot be read.
    """
    if ca:
        read_bounded(ca)
    if not path.exists():
        return Stamp("none")
    read_bounded(path, TOKEN_LIMIT)
    try:
        text = _read_token(path)
        time = re.search(r"^Time stamp: (.+)$", text, re.MULTILINE)
        time = time[1].strip() if time else None
        if _imprint(text) != digest:
            return Stamp("failed", time, "it is the token of another digest")
        if ca is None:
            return Stamp("unverified", time)
        _openssl("ts", "-verify", "-digest", digest, "-in", str(path), "-CAfile", ca, of=str(path))
        return Stamp("verified", time)
    except Refusal as refusal:
        if "openssl is not" in str(refusal):
            raise
        return Stamp("failed", None, str(refusal))


def describe_stamp(stamp: Stamp) -> str:
    """One clause on the date of a commitment."""
    return {
        "verified": f"time-stamped {stamp.time} by an authority of the given certificates",
        "unverified": f"with a time-stamp of {stamp.time}, not checked: pass --tsa-ca",
        "failed": f"with a time-stamp that fails ({stamp.why})", "none": "the date is the owner's own",
    }[stamp.state]


def _read_token(path: Path) -> str:
    """What is signed, as text; a reply's status text, which is not signed, is left out."""
    return _openssl("ts", "-reply", "-in", str(path), "-token_out", "-text", of=str(path))


def _imprint(text: str) -> str:
    """The digest in a reply that openssl has printed as a hex dump, without spaces."""
    dump = text.partition("Message data:")[2].partition("Serial number")[0]
    return "".join(re.sub(r"[^0-9a-f]", "", line.split("-", 1)[1][:49]) for line in dump.splitlines() if " - " in line)


def _post(url: str, query: bytes) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise Refusal(f"--tsa {url}: name an address that begins with http:// or https://")
    request = urllib.request.Request(url, data=query, headers={"Content-Type": "application/timestamp-query"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            reply = answer.read(TOKEN_LIMIT + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise Refusal(f"--tsa {url} cannot be asked: {error}") from error
    if len(reply) > TOKEN_LIMIT:
        raise Refusal(f"--tsa {url} answers with more than {TOKEN_LIMIT} bytes, which is no token")
    return reply


def _openssl(*arguments: str, of: str = "the query") -> str:
    """What openssl prints; Refusal, which names `of`, where it fails."""
    try:
        done = subprocess.run(["openssl", *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS)
    except FileNotFoundError as error:
        raise Refusal("openssl is not on the PATH; time-stamps need it: install it") from error
    except subprocess.TimeoutExpired as error:
        raise Refusal(f"openssl took more than {SECONDS} s over {of}") from error
    if done.returncode:
        # code:error:number:library:function:reason:file:line:more
        lines = [line.split(":") for line in done.stderr.decode(errors="replace").splitlines() if ":error:" in line]
        why = ", ".join(filter(None, (lines[-1][5], ":".join(lines[-1][8:])))) if lines else "no reason given"
        raise Refusal(f"{of} is not accepted by openssl ts: {why[:160]}")
    return done.stdout.decode(errors="replace")
