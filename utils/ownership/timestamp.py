"""`python -m utils.verify timestamp DIR --tsa URL`: an authority (RFC 3161) signs that the commitment existed by now.

Certificates need to have been valid at the token's own time, so a token stays good when they expire.
"""

import time
from datetime import timedelta, timezone
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from rfc3161_client import HashAlgorithm, TimestampRequestBuilder, VerifierBuilder, decode_timestamp_response

from utils.system.files import read_bounded, write_atomically
from utils.system.outside import NoReply, post
from utils.system.refusals import Refusal
from utils.watermark.prepared import commitment_bytes, read_prepared, round_time, utc

TOKEN_FILE = "commitment.tsr"  # beside commitment.json
TOKEN_LIMIT = 1 << 20  # bytes; a reply with certificates takes about 5 kB
SECONDS = 60  # time limit of the authority
CLOCK_ERROR = 60  # seconds by which a time-stamp has to be older than the beacon's value


class Stamp(NamedTuple):
    """The `time` in seconds since 1970 by which a commitment existed, or `why` a token does not show one."""

    time: float | None
    why: str = ""


def check_token(token: bytes | Path, digest: str | None, ca: str | None) -> Stamp:
    """What a token, or a file of one, shows of a SHA-256 digest in hexadecimal; its time plus its stated accuracy.

    ca  file of certificates (PEM) that the signature has to lead to; None: the signature is not checked
    """
    wanted = bytes.fromhex(digest or "")
    try:
        token = read_bounded(token, TOKEN_LIMIT) if isinstance(token, Path) else token
    except FileNotFoundError as error:
        raise Refusal(f"there is no time-stamp {token}: name the file that `timestamp` wrote") from error
    try:
        roots = x509.load_pem_x509_certificates(read_bounded(ca)) if ca else []
    except (FileNotFoundError, ValueError) as error:
        raise Refusal(f"--tsa-ca {ca} is no file of certificates (PEM) that can be read") from error
    try:
        reply = decode_timestamp_response(token)
        info = reply.tst_info
        if info.message_imprint.message != wanted:
            return Stamp(None, "it is the token of another digest")
        if ca:
            builder = VerifierBuilder()
            for root in dict.fromkeys(roots):  # files of certificates that were joined may hold one twice
                builder = builder.add_root_certificate(root)
            builder.build().verify(reply, wanted)
        known = {"seconds": "seconds", "milliseconds": "millis", "microseconds": "micros"}
        latest = timedelta(**{unit: getattr(info.accuracy, name, None) or 0 for unit, name in known.items()})
        return Stamp((info.gen_time.replace(tzinfo=timezone.utc) + latest).timestamp())  # RFC 3161 allows UTC alone
    except Exception as error:  # a hostile token may make the parser raise nearly anything
        why = "--tsa-ca lacks its authority's root certificate; " if "PKCS7" in str(error) else ""
        return Stamp(None, f"{why}{type(error).__name__}: {' '.join(str(error).split())[:160]}")


def add_timestamp(parts) -> None:
    c = parts.add_parser("timestamp", help="have the date of an image commitment signed by an RFC 3161 authority")
    c.set_defaults(call=stamp_commitment)
    c.add_argument("folder", type=Path, metavar="DIR", help="folder of prepare")
    c.add_argument("--tsa", required=True, metavar="URL", help="address of a time-stamping authority")
    c.add_argument("--tsa-ca", metavar="FILE", help="its root certificates (PEM): check the signature at once")


def stamp_commitment(flags) -> int:
    """Ask for a token of the image commitment and keep it in DIR/commitment.tsr; Refusal where one is there."""
    prepared, path = read_prepared(flags.folder), flags.folder / TOKEN_FILE
    digest, known = prepared.record["sha256"], round_time(prepared.record)
    if path.exists() and check_token(path, digest, None).time:  # of whatever authority
        why = check_token(path, digest, flags.tsa_ca).why
        raise Refusal(f"{path} is there, and kept: " + (
            f"it does not lead to --tsa-ca {flags.tsa_ca} ({why}); move it elsewhere to have one that does" if why else
            "the older token is the better one"))
    if known and time.time() + CLOCK_ERROR > known:
        raise Refusal(f"{flags.folder}: the beacon's value is known from {utc(known)}, and a token has to be "
                      f"{CLOCK_ERROR} s older: prepare again, with a larger --after")
    content = commitment_bytes(prepared.triggers, prepared.record)  # of which the request holds SHA-256
    request = TimestampRequestBuilder().data(content).hash_algorithm(HashAlgorithm.SHA256).build()
    try:
        token, _ = post(flags.tsa, request.as_bytes(), {"Content-Type": "application/timestamp-query"}, SECONDS)
    except NoReply as failure:
        raise Refusal(f"--tsa {flags.tsa} {failure}: ask again, or ask another authority") from failure
    stamp = check_token(token, digest, flags.tsa_ca)
    if stamp.time is None or decode_timestamp_response(token).tst_info.nonce != request.nonce:
        raise Refusal(f"--tsa {flags.tsa} gives no time-stamp of this commitment ({stamp.why or 'it is an old one'}): "
                      "ask another authority, or pass the root certificate of this one by --tsa-ca")
    write_atomically(path, token)
    print(f"commitment {digest} existed at {utc(stamp.time)}, says {flags.tsa}; the token is {path}")
    return 0
