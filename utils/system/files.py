"""Files: written whole or not at all, and read as data whoever wrote them.

`torch.load(weights_only=True)` executes nothing, but it bounds neither the memory that a file asks for nor the number
of its parts, and it trusts sizes that the file states. So the container is checked first, and the library reads the
rest.
"""

import contextlib
import errno
import functools
import hashlib
import io
import json
import math
import os
import pickletools
import re
import secrets
import stat
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch

from utils.system.machine import is_chief
from utils.system.refusals import Refusal

OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how a file begins that torch wrote before version 1.6
NOT_OPENED = "in a run folder only ordinary files and folders are opened: remove it, or put a copy of the file there"
CHECKPOINT_LIMIT = 4 << 30  # bytes; ResNet-152 of the published size takes 0.25 GiB
ANSWERS_LIMIT = 64 << 20
TEXT_LIMIT = 16 << 20
ENTRIES_LIMIT = 100_000  # of a zip archive, or numbers, strings and tensors of a checkpoint
STORAGES = {f"torch {kind}Storage": size for kind, size in (  # bytes of a number
    ("Float", 4), ("Double", 8), ("Half", 2), ("BFloat16", 2), ("Long", 8), ("Int", 4), ("Short", 2), ("Char", 1),
    ("Byte", 1), ("Bool", 1))}
ALLOWED_GLOBALS = {  # the only names that the pickle of a checkpoint, ours or the official code's, may ask for
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
    "torch.serialization _get_layout", "torch Size", "torch device", "_codecs encode", "numpy dtype",
    "numpy.core.multiarray scalar", "numpy._core.multiarray scalar", *STORAGES,
}
PLAIN_OPERATIONS = {  # of a pickle, beside those that `_check_pickle` follows
    "PROTO", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
    "SHORT_BINSTRING", "EMPTY_LIST", "APPEND", "APPENDS",
}
ALLOWED_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)


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


def write_json(path: Path, content: dict, private: bool = False) -> None:
    """Write JSON whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode(), private)


def check_output_file(path, flag: str) -> None:
    """Refuse an output file before the work begins, if its folder is missing or it is a folder itself."""
    if path and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
        why = "is a folder" if Path(path).is_dir() else f"there is no folder {Path(path).parent}"
        raise Refusal(f"{flag} {path}: {why}; name a file in a folder that is there")


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


def read_json(path: Path) -> dict | None:
    """The JSON object in a file, None where there is no file; Refusal where it is damaged."""
    try:
        content = json.loads(read_bounded(path))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{path} is damaged: restore it, or pass --overwrite to begin anew") from error
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
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError("no .npy file of version 1 or 2")
            # numpy evaluates the header as a literal, and takes 10,000 characters at most
            shape, _, dtype = getattr(np.lib.format, f"read_array_header_{version[0]}_0")(file)
            if dtype.kind not in "iufb":
                raise ValueError("it holds no plain numbers")
            if math.prod(shape) * dtype.itemsize != len(file.getbuffer()) - file.tell():
                raise ValueError(f"its header promises {math.prod(shape)} numbers and others follow")
            file.seek(0)
            return np.load(file, allow_pickle=False)
    except Exception as error:  # a damaged or hostile file may raise nearly anything
        why = " ".join(str(error).split())[:80]
        raise Refusal(f"{path} is no array of plain numbers that can be read safely ({why})") from error


def read_tensors(path) -> dict:
    """A checkpoint as plain tensors that own their memory, numbers and strings.

    Checked before PyTorch sees the file: its zip directory, sizes and checksums, that nothing is compressed, and its
    pickle (`_check_pickle`). Checked afterwards: no tensor is larger than what the file holds for it. A bad file may
    raise nearly any exception.
    """
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("no ordinary file")
    if about.st_size > CHECKPOINT_LIMIT:
        raise ValueError(f"larger than {CHECKPOINT_LIMIT} bytes")
    with open(path, "rb") as file:
        if file.read(len(OLD_FORMAT)) == OLD_FORMAT:
            raise Refusal(f"{path} has the older format of torch before 1.6, which is not read: write it anew with "
                          f"torch.save(torch.load({str(path)!r}, weights_only=True), {str(path)!r})")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > ENTRIES_LIMIT or any(e.compress_type != zipfile.ZIP_STORED for e in entries):
            raise ValueError("compressed, as no checkpoint is")
        if sum(e.file_size for e in entries) > about.st_size or len({e.filename for e in entries}) < len(entries):
            raise ValueError("its parts overlap")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged!r} is wrong")
        pickles = [e for e in entries if e.filename.endswith("data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > TEXT_LIMIT:
            raise ValueError("no single pickle of a sensible size")
        _check_pickle(archive.read(pickles[0]), {e.filename.partition("/data/")[2]: e.file_size for e in entries})
    scalar = (np._core if hasattr(np, "_core") else np.core).multiarray.scalar
    numbers = [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype]
    numbers += [type(np.dtype(kind)) for kind in ("float64", "float32", "int64")]
    with torch.serialization.safe_globals(numbers):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    return _owned(loaded, {"bytes": 2 * about.st_size, "entries": ENTRIES_LIMIT})


class _Global(str):
    """A name that a pickle imports, told from a string."""


def _check_pickle(content: bytes, sizes: dict[str, int]) -> None:
    """Go through a pickle's operations without executing any; ValueError for what no checkpoint does.

    sizes  {key: bytes} of the records that hold the numbers of tensors

    It may call nothing but `ALLOWED_GLOBALS`, set items of nothing but dicts, and ask for no storage that is larger
    than its record: torch before 2.10 checks neither of the last two. What it calls gets arguments of little cost.
    """
    dictionary, stack, outer, memo = object(), [], [], {}  # outer: the stacks below each mark
    for op, argument, _ in pickletools.genops(content):
        if op.name == "MARK":
            outer.append(stack)
            stack = []
        elif op.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif op.name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            items, taken = (), op.stack_before
            if pickletools.markobject in taken:
                items, stack, taken = stack, outer.pop(), taken[: taken.index(pickletools.markobject)]
            first = len(stack) - len(taken)
            operands = (*stack[first:], *items)
            del stack[first:]
            match op.name:
                case "GLOBAL":
                    if argument not in ALLOWED_GLOBALS:
                        raise ValueError(f"its pickle asks for {argument[:60]!r}")
                    made = _Global(argument)
                case "EMPTY_DICT":
                    made = dictionary
                case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3" | "EMPTY_TUPLE":
                    made = operands
                case "BUILD":
                    made = operands[0]
                case "SETITEM" | "SETITEMS":
                    if operands[0] is not dictionary:
                        raise ValueError("its pickle sets items of what is no dict")
                    made = dictionary
                case "REDUCE":
                    _check_call(*operands)
                    made = dictionary if operands[0] == "collections OrderedDict" else None
                case "BINPERSID":
                    (_, kind, key, _, count), made = operands[0], None
                    kinds = [type(part) for part in (kind, key, count)]
                    if kinds != [_Global, str, int] or count * STORAGES[kind] != sizes[key]:
                        raise ValueError("a tensor is larger than what the file holds for it")
                case name if name in PLAIN_OPERATIONS:
                    made = argument
                case name:
                    raise ValueError(f"its pickle uses {name}")
            stack += [made] * len(op.stack_after)


def _check_call(function, arguments) -> None:
    """ValueError for a call of what is not imported, or whose arguments may cost time or memory."""
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise ValueError("its pickle calls what is no function")
    if function == "_codecs encode" and arguments[1:] != ("latin1",):
        raise ValueError("its pickle encodes text other than as bytes")
    if function == "numpy dtype" and not re.fullmatch("[biuf][1248]", arguments[0]):
        raise ValueError("its pickle holds no plain numbers")


def _owned(value, left, depth=0):
    left["entries"] -= 1
    if left["entries"] < 0 or depth > 20:
        raise ValueError("nested too deeply or with too many parts")
    if isinstance(value, torch.Tensor):
        storage = 0 if value.layout != torch.strided or value.is_meta else value.untyped_storage().nbytes()
        size = value.numel() * value.element_size()
        left["bytes"] -= size
        if value.dtype not in ALLOWED_DTYPES or size > storage or left["bytes"] < 0:
            raise ValueError("a tensor is larger than what the file holds for it, or of a foreign kind")
        return value.detach().clone()
    if isinstance(value, dict):
        if not all(isinstance(key, (str, int)) for key in value):
            raise ValueError("a key is neither a string nor a number")
        return {key: _owned(part, left, depth + 1) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [_owned(part, left, depth + 1) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    if isinstance(value, np.generic) and value.dtype.kind in "fiub":
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"it holds a {type(value).__name__}")
