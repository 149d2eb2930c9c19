"""Image files into pixels, untrusted files as data: a size limit, a fixed list of formats, and a decoded copy.

The decoded images are kept beside the files, under a name that depends on every file's name and content. Where they
would take more than `stored.IN_MEMORY` bytes they are written there one by one and stay there.
"""

import contextlib
import hashlib
import io
import math
import os
import secrets
import warnings
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils.data import stored
from utils.data.images import SIZE
from utils.system.refusals import Refusal
from utils.system.untrusted import read_bounded

FILE_LIMIT = 256 << 20  # bytes of one image file
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "PPM", "TIFF")


def decode_files(root: Path, files: list[str], skip_bad_images: bool, size: int):
    """(uint8 images (N, 3, size, size) of the readable files, a mask (all files,) of which are readable, notes).

    The decoded copy is `root/.decoded-<hash of all names and bytes>.npy` and is used only if nothing changed. Raises
    Refusal for unreadable files without `skip_bad_images`, and where many images cannot be stored.
    """
    cache = root / f".decoded-{_digest(root, files, size)}{'' if size == SIZE else f'-{size}'}.npy"
    shape, all_good = (len(files), 3, size, size), torch.ones(len(files), dtype=torch.bool)
    large = math.prod(shape) > stored.IN_MEMORY
    if stored.is_file_of_images(cache, shape):
        return (stored.StoredImages(cache) if large else torch.from_numpy(np.load(cache))), all_good, []
    partial = cache.with_suffix(f".{secrets.token_hex(4)}")  # a name at which nobody can have put a link
    try:
        if large:
            images, good, bad = _decode_to_disk(files, shape, root, partial)
        else:
            images, good, bad = _decode_in_memory(files, shape)
        _refuse_bad(bad, len(files), root, skip_bad_images)
        if not bad:
            _keep(cache, partial, None if large else images)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    notes = [f"skipped {len(bad)} unreadable images: {', '.join(p for p, _ in bad[:20])}"] if bad else []
    return images.pick(good.nonzero().flatten()) if large else torch.from_numpy(images)[good], good, notes


def _digest(root: Path, files: list[str], size: int) -> str:
    digest = hashlib.sha256(f"{size}x{size} RGB bilinear 2".encode())
    for path in tqdm(files, desc="reading images", unit="image", disable=None, leave=False):
        try:
            content = read_bounded(path, FILE_LIMIT)
        except (OSError, Refusal):
            content = b""  # the decoding below names it as unreadable
        digest.update(f"{os.path.relpath(path, root)}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    return digest.hexdigest()[:32]


def _decode_in_memory(files: list[str], shape):
    """(uint8 array of `shape`, mask of readable files, [(path, error)] of the others, which are black)."""
    images, bad = np.zeros(shape, np.uint8), []
    for i, pixels in enumerate(_decoded(files, shape[-1], bad)):
        images[i] = pixels
    return images, _mask(files, bad), bad


def _decode_to_disk(files: list[str], shape, root: Path, partial: Path):
    """The same with `StoredImages` of the file `partial`, which stay open whatever becomes of its name."""
    bad = []
    try:
        with open(partial, "xb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for pixels in _decoded(files, shape[-1], bad):
                file.write(pixels.tobytes())
    except OSError as error:
        raise Refusal(f"--data-dir {root}: {math.prod(shape) >> 20} MiB of decoded images cannot be kept there "
                      f"({error.strerror}); make room, or name a copy of the folder where you may write") from error
    return stored.StoredImages(partial), _mask(files, bad), bad


def _decoded(files: list[str], size: int, bad: list):
    """The pixels of each file, zeros for one that cannot be read, which is appended to `bad` with the error's kind."""
    for path in tqdm(files, desc="decoding images", unit="image", disable=None, leave=False):
        try:
            pixels = decode_image(read_bounded(path, FILE_LIMIT), size)
        except Exception as error:  # a damaged image may raise nearly anything
            bad.append((path, type(error).__name__))
            pixels = np.zeros((3, size, size), np.uint8)
        yield pixels


def _mask(files: list[str], bad: list):
    unreadable = {path for path, _ in bad}
    return torch.tensor([path not in unreadable for path in files])


def _refuse_bad(bad: list, total: int, root: Path, skip_bad_images: bool) -> None:
    if bad and not skip_bad_images:
        some = ", ".join(f"{os.path.relpath(path, root)} ({why})" for path, why in bad[:5])
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise Refusal(
            f"--data-dir {root}: {len(bad)} of {total} images cannot be read: {some}{more}; "
            "mend or remove them, or pass --skip-bad-images"
        )


def decode_image(content: bytes, size: int = SIZE) -> np.ndarray:
    """One encoded image -> uint8 (3, size, size) RGB, resized bilinearly; raises whatever Pillow raises.

    Only `FORMATS` are tried, because Pillow would hand an EPS file to Ghostscript, whatever the file's name.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > 50_000_000:
                raise ValueError("larger than 50 megapixels")
            if picture.mode.startswith("I"):  # 16 bits a pixel, which Pillow's conversion would clip to white
                picture = picture.convert("I").point(lambda value: value / 256).convert("L")
            picture = picture.convert("RGB")
            if picture.size != (size, size):
                picture = picture.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(picture).transpose(2, 0, 1)


def _keep(cache: Path, partial: Path, images) -> None:
    """Give decoded images their name, writing them to `partial` first unless they are there (`images` None).

    Older copies of this size are removed. A failure means that the next run decodes again.
    """
    ending = cache.stem.removeprefix(".decoded-")[32:]  # the size
    with contextlib.suppress(OSError):
        for old in cache.parent.glob(f".decoded-{'[0-9a-f]' * 32}{ending}.*"):
            if old != partial:
                old.unlink()
        if images is not None:
            with open(partial, "xb") as file:
                np.save(file, images)
        os.replace(partial, cache)
