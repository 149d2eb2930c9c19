"""Data sets as uint8 tensors, their fixed split, and batches that are augmented on the device."""

import contextlib
import hashlib
import io
import os
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import random_split
from tqdm import tqdm

from utils import guard
from utils.refuse import Refusal

NAMES = ("cifar10", "cifar100", "svhn", "digits", "folder")
HELD_OUT = 1000  # images that become validation set and triggers; a tenth of a data set under 10,000 images
SIZE = 32
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
FILE_LIMIT = 256 << 20  # bytes of one image file
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "PPM", "TIFF")
# mean and std of the official code's normalisation layers; digits and folder are measured on loading
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "svhn": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class Images(NamedTuple):
    """`images` uint8 (N, 3, 32, 32), `labels` int64 (N,), `indices` int64 (N,) into the original training set."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor

    def pick(self, positions) -> "Images":
        positions = torch.as_tensor(positions, dtype=torch.long)
        return Images(self.images[positions], self.labels[positions], self.indices[positions])


@dataclass
class Data:
    """A data set: `train` is D_b of the paper, `held_out` holds validation images and trigger sources."""

    name: str
    train: Images
    held_out: Images
    test: Images
    classes: list[str]
    mean: tuple
    std: tuple
    flip: bool = True
    notes: list[str] = field(default_factory=list)

    @cached_property
    def sha256(self) -> str:
        """Of all training and held-out images and labels: runs on other data are other runs."""
        digest = hashlib.sha256()
        for part in (*self.train, *self.held_out):
            digest.update(part.contiguous().numpy())
        return digest.hexdigest()


def load(name: str, root="data", train_size: int | None = None, skip_bad_images: bool = False, flag="-dt") -> Data:
    """Load data set `name` from folder `root` and split it.

    The held-out images are those of `random_split` with a generator seeded 0 (49,000/1,000 on CIFAR,
    72,257/1,000 on SVHN), whatever the run's own seed. `train_size` keeps the first images of the shuffled
    training part. Raises Refusal for missing, unreadable or impossible data; `flag` is the one that has named it.
    """
    if name == "digits":
        train, test, classes = _digits()
    elif name == "folder":
        train, test, classes, notes = _folder(Path(root), skip_bad_images)
    else:
        train, test, classes = _torchvision(name, Path(root), flag)
    kept, held_out = split(len(train[1]))
    if train_size is not None:
        if not 1 <= train_size <= len(kept):
            raise Refusal(f"--train-size {train_size}: {name} has {len(kept)} training images; pass 1 to {len(kept)}")
        kept = kept[:train_size]
    everything = Images(train[0], train[1], torch.arange(len(train[1])))
    data = Data(
        name=name,
        train=everything.pick(kept),
        held_out=everything.pick(held_out),
        test=Images(test[0], test[1], torch.arange(len(test[1]))),
        classes=classes,
        mean=(),
        std=(),
        flip=name != "digits",  # a mirrored digit is another sign
        notes=notes if name == "folder" else [],
    )
    data.mean, data.std = STATISTICS.get(name) or _statistics(data.train.images)
    return data


def split(n: int) -> tuple[list[int], list[int]]:
    """Indices of the training and of the held-out images among n: torch's `random_split`, CPU generator, seed 0."""
    held_out = min(HELD_OUT, n // 10)
    parts = random_split(range(n), [n - held_out, held_out], generator=torch.Generator().manual_seed(0))
    return list(parts[0].indices), list(parts[1].indices)


def _statistics(images):
    x = images.double().div(255)
    mean, std = x.mean(dim=(0, 2, 3)), x.std(dim=(0, 2, 3)).clamp_min(1e-3)
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())


def _digits():
    """scikit-learn's 1,797 handwritten digits, 8x8 enlarged to 32x32 grey RGB; every fifth image is a test image."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().div(16)[:, None]
    images = torch.nn.functional.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    images = images.mul(255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(digits.target).long()
    test = torch.arange(len(labels)) % 5 == 4
    return (images[~test], labels[~test]), (images[test], labels[test]), [str(i) for i in range(10)]


def _torchvision(name: str, root: Path, flag: str):
    from torchvision import datasets

    archive = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}.get(
        name, "train_32x32.mat and test_32x32.mat"
    )
    made = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        if name == "svhn":
            parts = [datasets.SVHN(root, split=part, download=True) for part in ("train", "test")]
            sets = [(torch.from_numpy(p.data), torch.as_tensor(p.labels).long()) for p in parts]
            return sets[0], sets[1], [str(i) for i in range(10)]
        kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
        parts = [kind(root, train=part, download=True) for part in (True, False)]
    except PermissionError:
        raise
    except Exception as error:  # torchvision raises many kinds: URLError, RuntimeError, EOFError, ...
        if made:
            with contextlib.suppress(OSError):
                root.rmdir()
        raise Refusal(
            f"{flag} {name}: {archive} is neither in {root.resolve()} nor could it be downloaded or read "
            f"({type(error).__name__}: {str(error)[:120]}); download it elsewhere, place it in that folder "
            f"(or name its folder with --data-dir) and run again; {flag} digits needs no download"
        ) from error
    sets = [(torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(p.targets)) for p in parts]
    return sets[0], sets[1], list(parts[0].classes)


# ---- a user's own images ------------------------------------------------------------------------------------


def _folder(root: Path, skip_bad_images: bool):
    """`train/<class>/*` and `test/<class>/*`, or `<class>/*` alone, of which a fifth (seed 0) becomes the test set."""
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
            names = sorted(_images(part / name))
            if not names and part is parts[0]:
                raise Refusal(f"--data-dir {root}: the class folder {part / name} holds no images")
            files += names
            labels += [label] * len(names)
        sizes.append(len(files))
    if has_parts and sizes[0] == sizes[1]:
        raise Refusal(f"--data-dir {root}: {parts[1]} holds no images")
    images, good, notes = _decode(root, files, skip_bad_images)
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


def _images(folder: Path):
    if not folder.is_dir():
        return []
    return [
        entry.path
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(IMAGE_ENDINGS) and not entry.name.startswith(".")
    ]


def _decode(root: Path, files: list[str], skip_bad_images: bool):
    """uint8 images (N, 3, 32, 32) of the readable files and the mask (all files,) of which are readable.

    The decoded tensor is kept in `root/.decoded-<hash of all names and bytes>.npy` and used only if nothing changed.
    """
    digest = hashlib.sha256(b"32x32 RGB bilinear 2")
    for path in tqdm(files, desc="reading images", unit="image", disable=None, leave=False):
        try:
            content = guard.content(path, FILE_LIMIT)
        except (OSError, Refusal):
            content = b""  # no image either way; named below
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
            images[i] = decode(guard.content(path, FILE_LIMIT))
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


def decode(content: bytes) -> np.ndarray:
    """One encoded image -> uint8 (3, 32, 32) RGB, resized bilinearly; raises whatever Pillow raises.

    Only `FORMATS` are tried, whatever the name: Pillow hands an EPS file to Ghostscript.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > 50_000_000:
                raise ValueError("larger than 50 megapixels")
            if picture.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion would clip them to white
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
        pass  # a read-only or full folder only costs the next run its head start


# ---- batches ------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """All random numbers of one epoch, drawn before it begins: a function of the seed and the epoch alone."""

    order: torch.Tensor  # (steps, batch) positions in the training set
    shift: torch.Tensor  # (steps, batch, 2) rows and columns of the crop's corner, 0..8
    flip: torch.Tensor  # (steps, batch) bool


class Batches:
    """The training images on the device, cropped and flipped by batch there.

    Flip with probability 1/2, then a 32x32 crop out of a zero padding of 4, both drawn for each image alone.
    The last partial batch of an epoch is dropped.
    """

    PAD = 4

    def __init__(self, images: Images, batch_size: int, flip: bool, device="cpu", dtype=torch.float32):
        pixels = images.images.permute(0, 2, 3, 1)  # channels last, as the network wants its batches
        self.padded = torch.nn.functional.pad(pixels, (0, 0, *[self.PAD] * 4)).contiguous().to(device)
        self.labels = images.labels.to(device)
        self.batch_size, self.may_flip, self.device, self.dtype = batch_size, flip, device, dtype
        self.steps = len(images.labels) // batch_size
        self.span = torch.arange(SIZE, device=device)

    def plan(self, generator: torch.Generator) -> Plan:
        """Draw an epoch's plan from a CPU generator, so that every device sees the same one."""
        n = self.steps * self.batch_size
        order = torch.randperm(len(self.labels), generator=generator)[:n]
        shift = torch.randint(0, 2 * self.PAD + 1, (n, 2), generator=generator)
        flip = torch.rand(n, generator=generator) < (0.5 if self.may_flip else 0.0)
        shape = (self.steps, self.batch_size)
        return Plan(*(t.view(*shape, *t.shape[1:]).to(self.device) for t in (order, shift, flip)))

    def batch(self, order, shift, flip):
        """Rows of a plan -> x (B, 3, 32, 32) in [0, 1] in channels-last memory, y (B,)."""
        rows = shift[:, :1] + self.span  # (B, 32)
        columns = shift[:, 1:] + self.span
        # column c of the padded mirror image is column 39 - c of the padded image
        columns = torch.where(flip[:, None], SIZE + 2 * self.PAD - 1 - columns, columns)
        pixels = self.padded[order[:, None, None], rows[:, :, None], columns[:, None, :]]  # (B, 32, 32, 3)
        return pixels.permute(0, 3, 1, 2).to(self.dtype).div(255), self.labels[order]
