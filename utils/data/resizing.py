"""Images of a data set brought to another size: in memory, or in a file of the data folder where they are many."""

import contextlib
import math
import os
import secrets
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils.data import stored
from utils.system.refusals import Refusal

AT_ONCE = 1000  # images; the result does not depend on it


def resize(images, size: int):
    """uint8 images (N, 3, H, W) -> (N, 3, size, size), bilinearly and with antialiasing; themselves if of that size."""
    if images.shape[-2:] == (size, size):
        return images
    resized = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    for part, target in zip(images.split(AT_ONCE), resized.split(AT_ONCE)):
        target.copy_(_resized(part, size))
    return resized


def resize_parts(parts: list, size: int, cache: Path) -> list:
    """[(images, labels), ...] with each part's uint8 images (N, 3, H, W) resized.

    Where all of them would take more than `stored.IN_MEMORY` bytes they are written to `cache`, a .npy file, one part
    after the other, and stay there as `StoredImages`; a later call takes them from it. Raises Refusal where there is
    no room.
    """
    shape = (sum(len(images) for images, _ in parts), 3, size, size)
    if math.prod(shape) <= stored.IN_MEMORY or all(images.shape[-2:] == (size, size) for images, _ in parts):
        return [(resize(images, size), labels) for images, labels in parts]
    if not stored.is_file_of_images(cache, shape):
        _write([images for images, _ in parts], shape, cache)
    everything, begin, found = stored.StoredImages(cache), 0, []
    for images, labels in parts:
        found.append((everything.pick(torch.arange(begin, begin + len(images))), labels))
        begin += len(images)
    return found


def _resized(images, size: int):
    x = torch.nn.functional.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
    return x.round().clamp(0, 255).to(torch.uint8)


def _write(parts: list, shape: tuple, cache: Path) -> None:
    partial = cache.with_suffix(f".{secrets.token_hex(4)}")  # a name at which nobody can have put a link
    bar = tqdm(total=shape[0], desc=f"resizing to {shape[-1]} pixels", unit="image", disable=None, leave=False)
    at_once = max(1, stored.CHUNK // (4 * math.prod(shape[1:])))  # of a float32 batch
    try:
        with open(partial, "xb") as file, bar:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for part in (part for images in parts for part in images.split(at_once)):
                file.write(_resized(part, shape[-1]).numpy().tobytes())
                bar.update(len(part))
        os.replace(partial, cache)
    except OSError as error:
        raise Refusal(f"--image-size {shape[-1]}: {math.prod(shape) >> 20} MiB of resized images cannot be kept in "
                      f"{cache.parent} ({error.strerror}); make room, pass a smaller --image-size, or name another "
                      "--data-dir") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
