"""A log of who was asked with a trigger set: each claim shows the triggers to one more suspect, and counts as a try."""

import json
import time
from pathlib import Path

from utils.system.files import open_private, read_bounded

LOG_FILE = "claims.jsonl"


def log_claims(folder: Path, digest: str | None, suspects) -> str:
    """Add a line for each suspect to RUN/claims.jsonl; a sentence that says how many were asked before.

    digest  of the commitment; only claims under the same one are counted

    A log that cannot be written or read is said so, and does not keep anybody from judging. Raises Refusal for a
    symbolic link, which would let a stranger's run add lines to another file.
    """
    path = folder / LOG_FILE
    if digest is None or not folder.is_dir():
        return "there is no commitment, so no log of earlier claims"
    try:
        before = sum(1 for line in _lines(path) if line.get("commitment") == digest)
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        new = "".join(json.dumps({"time": now, "commitment": digest, "suspect": str(s)}) + "\n" for s in suspects)
        with open(path, "a", opener=open_private) as file:
            file.write(new)
    except (OSError, ValueError) as error:
        return f"earlier claims are not counted: {path} cannot be used ({' '.join(str(error).split())[:80]})"
    return f"{before} suspects were asked with this trigger set before, says {path}"


def _lines(path: Path) -> list[dict]:
    try:
        lines = [json.loads(line) for line in read_bounded(path).splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    if not all(isinstance(line, dict) for line in lines):
        raise ValueError("a line is no entry")
    return lines
