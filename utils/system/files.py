"""Files are written whole or not at all.

Our own few lines rather than a library: the file is flushed to disk before it gets its name, it can be private from
the first byte, and of several processes only rank 0 writes.
"""

import contextlib
import functools
import hashlib
import json
import os
import secrets
from pathlib import Path

from utils.system.processes import is_chief
from utils.system.refusals import Refusal
from utils.system.untrusted import read_bounded

NOT_OPENED = "in a run folder only ordinary files and folders are opened: remove it, or put a copy of the file there"


def refuse_links(folder) -> None:
    """Refuse a run folder if one of its entries or checkpoints is a symbolic link, a pipe or a device.

    The run may be a stranger's, and a link leads wherever he chose. The folder itself may be a link.
    """
    for part in (folder, Path(folder, "checkpoints")):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(part) as entries:
            for entry in entries:
                if not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
                    kind = "a symbolic link" if entry.is_symlink() else "no ordinary file"
                    raise Refusal(f"{entry.path} is {kind}; {NOT_OPENED}")


def open_no_link(path, flags: int, mode: int = 0o666) -> int:
    """An `opener` for `open`: as `os.open`, but Refusal for a symbolic link, and no waiting for a pipe's reader.

    For what is written in a run folder: a link may be put there after `refuse_links` has looked.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    except OSError as error:
        if os.path.islink(path):
            raise Refusal(f"{path} is a symbolic link; {NOT_OPENED}") from error
        raise


open_private = functools.partial(open_no_link, mode=0o600)


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
    # nobody can put a link where the file will be made: the name is not known before, and "x" takes none that is there
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb", opener=open_private if private else open_no_link) as file:
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


def check_output_file(path, flag: str) -> None:
    """Refuse an output file before the work begins, if its folder is missing or it is a folder itself."""
    if path and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
        why = "is a folder" if Path(path).is_dir() else f"there is no folder {Path(path).parent}"
        raise Refusal(f"{flag} {path}: {why}; name a file in a folder that is there")


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
