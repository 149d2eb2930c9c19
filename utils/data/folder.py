"""A user's own images: `-dt folder`.

Files are read with a size limit and decoded with a fixed list of formats. The decoded images are kept beside the files,
under a name that depends on every file's name and content.
"""

import hashlib
import io
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils.data.images import SIZE
from utils.system.refusals import Refusal
from utils.system.untrusted import read_bounded

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
FILE_LIMIT = 256 << 20  # bytes of one image file
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "PPM", "TIFF")


def load_folder(root: Path, skip_bad_images: bool):
    """((images, labels) of training, (images, labels) of test, class names, notes) of the images below `root`.

    `root` holds `train/<class>/*` and `test/<class>/*`, or `<class>/*` alone; then a fifth, drawn with seed 0, becomes
    the test set. Images are uint8 (N, 3, 32, 32). Raises Refusal for missing classes and unreadable images.
    """
    if not root.is_dir():
        raise Refusal(f"--data-dir {root}: no such folder; it should hold train/<class>/ and test/<class>/ images")
    has_parts = (root / "train").is_dir() and (root / "test").is_dir()
    parts = [root / "train", root / "test"] if has_parts else [root]
    classes = _subfolders(parts[0])
    if len(classes) < 2:
        found = f"only the class {classes[0]}" if classes else "no class folders"
        raise Refusal(f"--data-dir {root}: {found} in {parts[0]}; a classifier needs two class folders or more")
    if has_parts and (unknown := sorted(set(_subfolders(parts[1])) - set(classes))):
        raise Refusal(f"--data-dir {root}: test has classes that train has not: {', '.join(unknown[:5])}")

    files, labels, sizes = [], [], []
    for part in parts:
        for label, name in enumerate(classes):
            names = sorted(_image_files(part / name))
            if not names and part is parts[0]:
                raise Refusal(f"--data-dir {root}: the class folder {part / name} holds no images")
            files += names
            labels += [label] * len(names)
        sizes.append(len(files))
    if has_parts and sizes[0] == sizes[1]:
        raise Refusal(f"--data-dir {root}: {parts[1]} holds no images")
    images, good, notes = _decode_files(root, files, skip_bad_images)
    labels = torch.tensor(labels)[good]
    if has_parts:
        n_train = int(good[: sizes[0]].sum())
        order = torch.arange(len(labels))
    else:
        n_train = len(labels) - len(labels) // 5
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    if n_train < 20:
        raise Refusal(f"--data-dir {root}: {n_train} training images are too few; 20 are the least")
    if len(labels) == n_train:
        raise Refusal(f"--data-dir {root}: no readable test images are left")
    train, test = order[:n_train], order[n_train:]
    return (images[train], labels[train]), (images[test], labels[test]), classes, notes


def _subfolders(folder: Path):
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _image_files(folder: Path):
    if not folder.is_dir():
        return []
    return [
        entry.path
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(IMAGE_ENDINGS) and not entry.name.startswith(".")
    ]


def _decode_files(root: Path, files: list[str], skip_bad_images: bool):
    """uint8 images (N, 3, 32, 32) of the readable files and the mask (all files,) of which are readable.

    The decoded tensor is kept in `root/.decoded-<hash of all names and bytes>.npy` and used only if nothing changed.
    """
    digest = hashlib.sha256(b"32x32 RGB bilinear 2")
    for path in tqdm(files, desc="reading images", unit="image", disable=None, leave=False):
        try:
            content = read_bounded(path, FILE_LIMIT)
        except (OSError, Refusal):
            content = b""  # the decoding below names it as unreadable
        digest.update(f"{os.path.relpath(path, root)}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    cache = root / f".decoded-{digest.hexdigest()[:32]}.npy"
    decoded = _read_cache(cache, len(files))
    if decoded is not None:
        return torch.from_numpy(decoded), torch.ones(len(files), dtype=torch.bool), []

    images, bad = np.zeros((len(files), 3, SIZE, SIZE), np.uint8), []
    good = torch.ones(len(files), dtype=torch.bool)
    for i, path in enumerate(tqdm(files, desc="decoding images", unit="image", disable=None, leave=False)):
        try:
            images[i] = decode_image(read_bounded(path, FILE_LIMIT))
        except Exception as error:  # a damaged image may raise nearly anything
            bad.append((path, type(error).__name__))
            good[i] = False
    if bad and not skip_bad_images:
        some = ", ".join(f"{os.path.relpath(path, root)} ({why})" for path, why in bad[:5])
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise Refusal(
            f"--data-dir {root}: {len(bad)} of {len(files)} images cannot be read: {some}{more}; "
            "mend or remove them, or pass --skip-bad-images"
        )
    if not bad:
        _write_cache(cache, images)
    notes = [f"skipped {len(bad)} unreadable images: {', '.join(p for p, _ in bad[:20])}"] if bad else []
    return torch.from_numpy(images)[good], good, notes


def decode_image(content: bytes) -> np.ndarray:
    """One encoded image -> uint8 (3, 32, 32) RGB, resized bilinearly; raises whatever Pillow raises.

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
            if picture.size != (SIZE, SIZE):
                picture = picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            return np.asarray(picture).transpose(2, 0, 1)


def _read_cache(path: Path, n: int):
    try:
        images = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return images if images.dtype == np.uint8 and images.shape == (n, 3, SIZE, SIZE) else None


def _write_cache(path: Path, images) -> None:
    try:
        for old in path.parent.glob(".decoded-*"):
            old.unlink()
        partial = path.with_suffix(f".{os.getpid()}")
        with open(partial, "wb") as file:
            np.save(file, images)
        os.replace(partial, path)
    except OSError:
        pass  # the next run decodes the images again
