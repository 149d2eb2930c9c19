"""A user's own images: `-dt folder`.

Which files are images of which class; how they are read is in `decoding`.
"""

import os
from pathlib import Path

import torch

from utils.data.decoding import FILE_LIMIT, decode_files, decode_image
from utils.data.images import SIZE
from utils.data.stored import pick_images
from utils.system.refusals import Refusal
from utils.system.untrusted import read_bounded

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


def load_folder(root: Path, skip_bad_images: bool, size: int = SIZE):
    """((images, labels) of training, (images, labels) of test, class names, notes) of the images below `root`.

    `root` holds `train/<class>/*` and `test/<class>/*`, or `<class>/*` alone; then a fifth, drawn with seed 0, becomes
    the test set. Images are uint8 (N, 3, size, size), `StoredImages` where they are many. Raises Refusal for missing
    classes and unreadable images.
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
            names = image_files(part / name)
            if not names and part is parts[0]:
                raise Refusal(f"--data-dir {root}: the class folder {part / name} holds no images")
            files += names
            labels += [label] * len(names)
        sizes.append(len(files))
    if has_parts and sizes[0] == sizes[1]:
        raise Refusal(f"--data-dir {root}: {parts[1]} holds no images")
    images, good, notes = decode_files(root, files, skip_bad_images, size)
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
    (train, train_labels), (test, test_labels) = ((pick_images(images, part), labels[part]) for part in (train, test))
    return (train, train_labels), (test, test_labels), classes, notes


def image_files(folder: Path) -> list[str]:
    """Paths of the image files in `folder` itself, in the order of their names; none without a folder."""
    if not folder.is_dir():
        return []
    return sorted(entry.path for entry in os.scandir(folder)
                  if entry.name.lower().endswith(IMAGE_ENDINGS) and not entry.name.startswith("."))


def read_images(files: list[str], size: int, flag: str):
    """uint8 (N, 3, size, size) of image files; Refusal, which `flag` begins, for one that cannot be read."""
    images = []
    for path in files:
        try:
            images.append(torch.from_numpy(decode_image(read_bounded(path, FILE_LIMIT), size).copy()))
        except Exception as error:  # a damaged image may raise nearly anything
            raise Refusal(f"{flag}: {path} cannot be read ({type(error).__name__}); mend or remove it") from error
    return torch.stack(images)


def _subfolders(folder: Path):
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
