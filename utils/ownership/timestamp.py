"""`python -m utils.verify timestamp RUN --tsa URL`: let an authority sign that a commitment exists today."""

from dataclasses import dataclass
from pathlib import Path

from utils.ownership.commitment import read_commitment
from utils.ownership.timestamp_token import TOKEN_FILE, check_token, describe_stamp, request_token
from utils.system.files import refuse_links, write_atomically
from utils.system.refusals import Refusal


@dataclass(frozen=True)
class TimestampCommand:
    """The flags of `utils.verify timestamp`."""

    run: Path
    tsa: str
    tsa_ca: str | None


def add_timestamp(parts) -> None:
    """Declare the command `timestamp` and its flags; `parts` are the subparsers of utils.verify."""
    c = parts.add_parser("timestamp", help="have a commitment's date signed by an RFC 3161 authority")
    c.set_defaults(call=stamp_commitment, command_type=TimestampCommand)
    c.add_argument("run", type=Path, metavar="RUN", help="folder of train.py or of prepare")
    c.add_argument("--tsa", required=True, metavar="URL", help="address of a time-stamping authority")
    c.add_argument("--tsa-ca", metavar="FILE", help="its certificates (PEM): check the signature at once")


def stamp_commitment(command: TimestampCommand) -> int:
    """Ask for a token of the commitment's digest and keep it in RUN/commitment.tsr; returns exit status 0.

    An older token is never replaced, because it is worth more. Raises Refusal where there is no commitment.
    """
    refuse_links(command.run)
    path, public = command.run / TOKEN_FILE, read_commitment(command.run)
    if public is None:
        raise Refusal(f"{command.run} has no commitment: name a folder of train.py or of prepare")
    digest = public["sha256"]
    if check_token(path, digest, command.tsa_ca).state in ("verified", "unverified"):
        raise Refusal(f"{path} is there: the older token is the better one, so it is kept")
    write_atomically(path, request_token(digest, command.tsa, command.tsa_ca))
    print(f"commitment {digest}, {describe_stamp(check_token(path, digest, command.tsa_ca))}; the token is {path}")
    return 0
