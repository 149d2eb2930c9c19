"""Files are written whole or not at all.

Our own few lines rather than a library: the file is flushed to disk before it gets its name, it can be private from
the first byte, and of several processes only rank 0 writes.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path

from utils.system.processes import is_chief
from utils.system.refusals import Refusal
from utils.system.untrusted import read_bounded


def read_json(path: Path) -> dict | None:
    """The JSON object in a file, None where there is no file; Refusal where it is damaged."""
    try:
        content = json.loads(read_bounded(path))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{path} is damaged: restore it, or pass --overwrite to begin anew") from error
    return content if isinstance(content, dict) else {}


def write_atomically(path: Path, content: bytes, private: bool = False) -> None:
    """Write a file whole or not at all: temporary name, fsync, rename. Of several processes only rank 0 writes.

    With `private` only the file's owner may read it.
    """
    if not is_chief():
        return
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb", opener=_open_private if private else None) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, content: dict, private: bool = False) -> None:
    """Write JSON whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode(), private)


def _open_private(path, flags):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # an existing file would keep its mode
    return os.open(path, flags | os.O_EXCL, 0o600)


def check_output_file(path, flag: str) -> None:
    """Refuse an output file before the work begins, if its folder is missing or it is a folder itself."""
    if path and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
        why = "is a folder" if Path(path).is_dir() else f"there is no folder {Path(path).parent}"
        raise Refusal(f"{flag} {path}: {why}; name a file in a folder that is there")


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
