"""Files: written whole or not at all, and read as data whoever wrote them; checkpoints are read in `tensors.py`."""

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import re
import secrets
import stat
import unicodedata
import warnings
from pathlib import Path

import numpy as np

from utils.system.machine import is_rank_0
from utils.system.refusals import Refusal

NOT_OPENED = "in a run folder only ordinary files and folders are opened: remove it, or put a copy of the file there"
CHECKPOINT_LIMIT = 4 << 30  # bytes; ResNet-152 of the published size takes 0.25 GiB
ANSWERS_LIMIT = 64 << 20
TEXT_LIMIT = 16 << 20
RUN_FILES = ("run.json", "summary.json", "key.json", "commitment.json", "trigger.png")  # that an output could replace
WRONG_KINDS = ((rb"$", "it is empty: restore it"), (rb"version https://git-lfs", "a git-lfs pointer: run git lfs pull"),
               (rb"\s*<(!doctype )?html", "a web page: download the file itself"))


def write_atomically(path: Path, content: bytes, private: bool = False) -> None:
    """Write a file whole or not at all: temporary name, fsync, rename. Of several processes only rank 0 writes.

    With `private` only the file's owner may read it.
    """
    if not is_rank_0():
        return
    # a random name, and "x" refuses a file that exists: nobody can put a link there beforehand
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb", opener=open_private if private else open_no_link) as file:
            file.write(content)
            file.flush()
            sync(file.fileno())
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    with contextlib.suppress(PermissionError):  # a folder may be written and not read
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            sync(folder)
        finally:
            os.close(folder)


def sync(descriptor: int) -> None:
    """`os.fsync`, or nothing where the file system has none for such a file: some network and shared folders."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES):
            raise


def close_to_others(folder: Path) -> list[str]:
    """Let only its owner enter a folder; returns a warning where that fails, as on a memory stick, else nothing."""
    try:
        folder.chmod(0o700)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    if folder.stat().st_mode & 0o077 == 0:
        return []
    return [f"warning: others may be able to read {folder}, which is to hold secrets: its permissions cannot be "
            "changed, as its file system keeps none or somebody else owns it"]


def write_json(path: Path, content: dict, private: bool = False) -> None:
    """Write JSON whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode(), private)


def check_output_file(path, flag: str, ending: str = "", kept=()) -> None:
    """Refuse an output file before the work begins: where it cannot be written, or would replace something else.

    Something else is a link, folder or device; one of `kept` (without an `ending` also what lies in a folder of
    `kept`); a file of a run; and a file with another ending, unless it is empty or begins as JSON of `write_json` does.
    """
    if not path:
        return
    path, where = Path(path), os.path.realpath(path)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise Refusal(f"{flag} {path}: there is no folder {path.parent}; name a file in a folder that is there")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Refusal(f"{flag} {path}: you may not write in the folder {path.parent}; name a file in one of your own")
    for other in map(os.path.realpath, kept):
        if where == other or not ending and Path(where).is_relative_to(other):
            raise Refusal(f"{flag} {path} is {other} or lies in it, which another flag names: name another file")
    if path.name in RUN_FILES and (path.exists() or (folder / "run.json").exists()):
        raise Refusal(f"{flag} {path} is a file in which a run keeps what it is: name another file")
    if path.is_symlink() or path.exists() and not path.is_file():  # a link, pipe or device would be replaced by a file
        kind = "a symbolic link" if path.is_symlink() else "a folder" if path.is_dir() else "no ordinary file"
        raise Refusal(f"{flag} {path}: is {kind}; name another file")
    if ending and path.exists() and path.suffix.lower() != ending:
        with open(path, "rb") as file:
            if file.read(2) not in (b"", b"{\n"):
                raise Refusal(f"{flag} {path} is there and does not end in {ending}, so it is something else, which "
                              "would be lost: name another file")


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
    """An `opener` for `open` that refuses a symbolic link and does not wait for the reader of a pipe.

    What is written in a run folder is opened with it: a link may be put there after `refuse_links` has looked.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    except OSError as error:
        if os.path.islink(path):
            raise Refusal(f"{path} is a symbolic link; {NOT_OPENED}") from error
        raise


open_private = functools.partial(open_no_link, mode=0o600)


def read_bounded(path, limit: int = TEXT_LIMIT) -> bytes:
    """The bytes of an ordinary file of at most `limit` bytes; Refusal for pipes, devices and larger ones."""
    path = os.fspath(path)
    if "\0" in path:
        raise Refusal(f"{path!r} is no file's name")
    if os.path.isdir(path):
        raise Refusal(f"{path} is a folder; name a file")
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise Refusal(f"{path} is no ordinary file")
        found = file.read(limit + 1)
    if len(found) > limit:
        raise Refusal(f"{path} is larger than {limit} bytes, the most that is read of such a file")
    return found


def wrong_kind(path, more=()) -> str:
    """What a file that cannot be what it is named for begins like, and the way out, as one text; else "".

    more  further pairs (regular expression, text), tried before those of `WRONG_KINDS`
    """
    begin = b"?"
    if os.path.isfile(path):
        with open(path, "rb") as file:
            begin = file.read(100)
    return next((text for start, text in (*more, *WRONG_KINDS) if re.match(start, begin, re.I | re.S)), "")


def plain_name(text: str) -> str:
    """A class's name as it is compared: without spaces around it, and in one form of Unicode, as macOS has two of é."""
    return unicodedata.normalize("NFC", text).strip()


def read_json(path: Path, limit: int = TEXT_LIMIT) -> dict | None:
    """The JSON object in a file of at most `limit` bytes, None where there is no file; Refusal where it is damaged."""
    try:
        content = json.loads(read_bounded(path, limit))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{path} is damaged: restore it") from error
    return content if isinstance(content, dict) else {}


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; Refusal where it is larger than a checkpoint may be."""
    if os.stat(path).st_size > CHECKPOINT_LIMIT:
        raise Refusal(f"{path} is larger than {CHECKPOINT_LIMIT} bytes, the most that is read of a checkpoint")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def read_array(path) -> np.ndarray:
    """The numbers in an .npy file; Refusal for objects, for a header that promises other than what follows."""
    file = io.BytesIO(read_bounded(path, ANSWERS_LIMIT))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of headers that numpy mends or will not take for long
            # its header is evaluated as a literal of 10,000 characters at most, and memory is taken as numbers come
            found = np.load(file, allow_pickle=False)
        if not isinstance(found, np.ndarray):
            raise ValueError("an archive of arrays: write the one of the answers by np.save")
        if found.dtype.kind not in "iufb":
            raise ValueError("it holds no plain numbers")
        if file.read(1):
            raise ValueError("its header promises fewer numbers than follow")
        return found
    except Exception as error:  # a damaged or hostile file may raise nearly anything
        why = " ".join(str(error).split())[:80]
        raise Refusal(f"{path} is no array of plain numbers that can be read safely ({why})") from error
