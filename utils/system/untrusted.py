"""Files that somebody else may have written: read with limits, checked, and taken as data.

Nothing in a file is ever executed. `torch.load(weights_only=True)` alone is not enough: it bounds neither the memory
that a file asks for nor the number of its parts, and it trusts sizes that the file states. numpy's reader evaluates
headers of any length. So the container is checked first, and the library reads the rest.
"""

import ast
import io
import math
import os
import pickletools
import stat
import struct
import zipfile

import numpy as np
import torch

from utils.system.refusals import Refusal

CHECKPOINT_LIMIT = 4 << 30  # bytes; ResNet-152 of the published size takes 0.25 GiB
ANSWERS_LIMIT = 64 << 20
TEXT_LIMIT = 16 << 20
ENTRIES_LIMIT = 100_000  # of a zip archive, or numbers, strings and tensors of a checkpoint
# the only names that the pickle of a checkpoint, ours or the official code's, may ask for
ALLOWED_GLOBALS = {
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
    "torch.serialization _get_layout", "torch Size", "torch device", "_codecs encode", "numpy dtype",
    "numpy.core.multiarray scalar", "numpy._core.multiarray scalar",
}
STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
ALLOWED_GLOBALS |= {f"torch {kind}Storage" for kind in STORAGES}
ALLOWED_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)


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


def read_tensors(path) -> dict:
    """A checkpoint as plain tensors that own their memory, numbers and strings.

    Checked before PyTorch sees the file: its zip directory, sizes and checksums, that nothing is compressed, and that
    its pickle names nothing but `ALLOWED_GLOBALS`. Checked afterwards: no tensor is larger than what the file holds
    for it. A bad file may raise nearly any exception.
    """
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("no ordinary file")
    if about.st_size > CHECKPOINT_LIMIT:
        raise ValueError(f"larger than {CHECKPOINT_LIMIT} bytes")
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
        _check_pickle(archive.read(pickles[0]))
        records = {e.file_size for e in entries}
    core = np._core if hasattr(np, "_core") else np.core
    scalar = core.multiarray.scalar
    numbers = [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype]
    numbers += [type(np.dtype(kind)) for kind in ("float64", "float32", "int64")]
    with torch.serialization.safe_globals(numbers):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    return _owned(loaded, records, {"bytes": 2 * about.st_size, "entries": ENTRIES_LIMIT})


def _check_pickle(content: bytes) -> None:
    for op, argument, _ in pickletools.genops(content):
        if op.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"):
            raise ValueError(f"its pickle uses {op.name}")
        if op.name == "GLOBAL" and argument not in ALLOWED_GLOBALS:
            raise ValueError(f"its pickle asks for {argument[:60]!r}")


def _owned(value, records, left, depth=0):
    left["entries"] -= 1
    if left["entries"] < 0 or depth > 20:
        raise ValueError("nested too deeply or with too many parts")
    if isinstance(value, torch.Tensor):
        storage = 0 if value.layout != torch.strided or value.is_meta else value.untyped_storage().nbytes()
        size = value.numel() * value.element_size()
        left["bytes"] -= size
        foreign = value.dtype not in ALLOWED_DTYPES or (size and storage not in records)
        if foreign or size > storage or left["bytes"] < 0:
            raise ValueError("a tensor is larger than what the file holds for it, or of a foreign kind")
        return value.detach().clone()
    if isinstance(value, dict):
        if not all(isinstance(key, (str, int)) for key in value):
            raise ValueError("a key is neither a string nor a number")
        return {key: _owned(part, records, left, depth + 1) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [_owned(part, records, left, depth + 1) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    if isinstance(value, np.generic) and value.dtype.kind in "fiub":
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"it holds a {type(value).__name__}")


def read_array(path) -> np.ndarray:
    """The numbers in an .npy file; Refusal for objects, for a header that promises other than what follows."""
    raw = read_bounded(path, ANSWERS_LIMIT)
    try:
        if raw[:6] != b"\x93NUMPY" or raw[6:8] not in (b"\x01\x00", b"\x02\x00"):
            raise ValueError("no .npy file of version 1 or 2")
        wide = raw[6] == 2
        start = 12 if wide else 10
        (length,) = struct.unpack("<I" if wide else "<H", raw[8:start])
        if length > 10_000:
            raise ValueError("its header is too long")
        header = ast.literal_eval(raw[start : start + length].decode("latin-1").strip())
        descr, shape = header["descr"], header["shape"]
        if not isinstance(descr, str) or len(descr) > 8 or np.dtype(descr).kind not in "iufb":
            raise ValueError("it holds no plain numbers")
        dtype = np.dtype(descr)
        if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 8 or header["fortran_order"] not in (0, 1):
            raise ValueError("its shape is none")
        if math.prod(shape) * dtype.itemsize != len(raw) - start - length:
            raise ValueError(f"its header promises {math.prod(shape)} numbers and others follow")
        return np.load(io.BytesIO(raw), allow_pickle=False)
    except Exception as error:  # a damaged or hostile file may raise nearly anything
        why = " ".join(str(error).split())[:80]
        raise Refusal(f"{path} is no array of plain numbers that can be read safely ({why})") from error
