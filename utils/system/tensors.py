"""Checkpoints are read as data: whoever wrote one, nothing in it is executed, and its reading costs what it is worth.

`torch.load(weights_only=True)` executes nothing, but it bounds neither the memory nor the time that a file asks for, it
trusts sizes that the file states, and before torch 2.10 what its pickle does with a tensor (CVE-2026-24747). So the zip
archive and the pickle are checked first, and PyTorch then reads a copy in memory of what was checked: its own reader
may find another directory in the file, and takes names whatever their case.
"""

import io
import os
import pickletools
import re
import stat
import zipfile

import numpy as np
import torch

from utils.system.files import CHECKPOINT_LIMIT, TEXT_LIMIT
from utils.system.refusals import Refusal

OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how a file begins that torch wrote before version 1.6
ENTRIES_LIMIT = 100_000  # of a zip archive, or numbers, strings and tensors of a checkpoint
BUILDS_LIMIT, ARGUMENTS_LIMIT = 100, 100  # states that are set in a pickle; length of a text or tuple of a call
RECORDS = re.compile(r"data\.pkl|data/[^/]+|byteorder|(\.data/)?version")  # of an archive, what PyTorch is to see
STORAGES = {f"torch {kind}Storage": size for kind, size in (  # bytes of a number
    ("Float", 4), ("Double", 8), ("Half", 2), ("BFloat16", 2), ("Long", 8), ("Int", 4), ("Short", 2), ("Char", 1),
    ("Byte", 1), ("Bool", 1))}
ALLOWED_GLOBALS = {  # the only names that the pickle of a checkpoint, ours or the official code's, may ask for
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
    "torch.serialization _get_layout", "torch Size", "torch device", "_codecs encode", "numpy dtype",
    "numpy.core.multiarray scalar", "numpy._core.multiarray scalar", *STORAGES,
}
DTYPE_STATES = [(3, order, None, None, None, -1, -1, 0) for order in "<|"]  # of numbers without parts or flags
PLAIN_OPERATIONS = {  # of a pickle, beside those that `check_pickle` follows
    "PROTO", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
    "SHORT_BINSTRING", "EMPTY_LIST", "APPEND", "APPENDS",
}
ALLOWED_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)


def read_tensors(path) -> dict:
    """A checkpoint as plain tensors that own their memory, numbers and strings.

    A tensor takes no more memory than the file holds for it, all together twice the file's size. A bad file may raise
    nearly any exception; one of torch before 1.6 raises Refusal.
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
    scalar = (np._core if hasattr(np, "_core") else np.core).multiarray.scalar
    numbers = [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype]
    numbers += [type(np.dtype(kind)) for kind in ("float64", "float32", "int64")]
    with torch.serialization.safe_globals(numbers):
        loaded = torch.load(checked_copy(path, about.st_size), map_location="cpu", weights_only=True)
    return _owned(loaded, {"bytes": 2 * about.st_size, "entries": ENTRIES_LIMIT})


def checked_copy(path, most: int) -> io.BytesIO:
    """The records of a checkpoint in a zip archive of our own; ValueError unless they are plain, and `most` bytes.

    Their checksums are right, nothing is compressed, no two names differ in case alone, and `check_pickle` has passed.
    """
    copy, sizes = io.BytesIO(), {}
    count, end = 0, b""
    with open(path, "rb") as file:  # counted first, as zipfile makes an object of each entry, ten times its size
        while part := file.read(1 << 20):
            count, end = count + (end + part).count(b"PK\x01\x02"), part[-3:]
    if count > ENTRIES_LIMIT:
        raise ValueError("of more parts than a checkpoint has")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as clean:
        entries = archive.infolist()
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
            raise ValueError("compressed, as TorchScript may be and no checkpoint is")
        named = {e.filename.partition("/")[2]: e for e in entries}
        if sum(e.file_size for e in entries) > most or len({name.lower() for name in named}) < len(entries):
            raise ValueError("its parts overlap")
        if "data.pkl" not in named or named["data.pkl"].file_size > TEXT_LIMIT:
            raise ValueError("no pickle of a sensible size")
        pickled = archive.read(named["data.pkl"])
        for name, entry in named.items():
            if RECORDS.fullmatch(name):
                content = archive.read(entry) if name != "data.pkl" else pickled
                sizes[name.removeprefix("data/")] = len(content)
                clean.writestr(f"archive/{name}", content)
    check_pickle(pickled, sizes)
    copy.seek(0)
    return copy


class _Global(str):
    """A name that a pickle imports, told from a string."""


def check_pickle(content: bytes, sizes: dict[str, int]) -> None:
    """Go through a pickle's operations without executing any; ValueError for what no checkpoint does.

    sizes  {key: bytes} of the records that hold the numbers of tensors

    It may call nothing but `ALLOWED_GLOBALS`, and with small arguments alone; set items and states of nothing but dicts
    and numpy's kinds of numbers, under keys that are strings or numbers; and ask for no storage but of its record's
    size.
    """
    dictionary, dtype, stack, outer, memo, builds = object(), object(), [], [], {}, 0  # outer: stacks below each mark
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
                    made, builds = operands[0], builds + 1
                    plain = made is dtype and operands[1] in DTYPE_STATES or made is operands[1] is dictionary
                    if builds > BUILDS_LIMIT or not plain:
                        raise ValueError("its pickle sets the state of what is no dict")
                case "SETITEM" | "SETITEMS":
                    made = operands[0]
                    if made is not dictionary or any(type(key) not in (str, int) for key in operands[1::2]):
                        raise ValueError("its pickle sets items of what is no dict, or under odd keys")
                case "REDUCE":
                    _check_call(*operands)
                    made = {"collections OrderedDict": dictionary, "numpy dtype": dtype}.get(operands[0])
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
    """ValueError for a call of what is not imported, or with arguments that may cost time or memory."""
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise ValueError("its pickle calls what is no function")
    if any(isinstance(part, (str, tuple)) and len(part) > ARGUMENTS_LIMIT for part in (arguments, *arguments)):
        raise ValueError("its pickle calls a function with long arguments")
    # a list would pass the check of lengths, as its items are not followed
    lists = {"torch Size": arguments, "torch._utils _rebuild_tensor_v2": arguments[2:4]}.get(function, ())
    if not all(isinstance(part, tuple) for part in lists):
        raise ValueError("its pickle names a shape by what is no tuple")
    if function == "collections OrderedDict" and arguments:
        raise ValueError("its pickle fills a dict by a call")
    if function in ("torch.serialization _get_layout", "torch device") and not isinstance(arguments[0], str):
        raise ValueError("its pickle names a layout or device by what is no text")
    if function == "_codecs encode" and arguments[1:] != ("latin1",):
        raise ValueError("its pickle encodes text other than as bytes")
    if function == "numpy dtype" and not re.fullmatch("[biuf][1248]", arguments[0]):
        raise ValueError("its pickle holds no plain numbers")


def _owned(value, left, depth=0):
    left["entries"] -= 1
    if left["entries"] < 0 or depth > 20:
        raise ValueError("nested too deeply or with too many parts")
    if isinstance(value, torch.Tensor):
        size = value.numel() * value.element_size()
        left["bytes"] -= size
        if size > value.untyped_storage().nbytes() or left["bytes"] < 0:
            raise ValueError("a tensor is larger than what the file holds for it")
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _owned(part, left, depth + 1) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [_owned(part, left, depth + 1) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    if isinstance(value, np.generic) and value.dtype.kind in "fiub":
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"it holds a {type(value).__name__}")
