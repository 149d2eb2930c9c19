"""The data sets that `-dt` names, their flags, and the fixed split into training and held-out images."""

import argparse
import contextlib
import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import random_split

from utils.data.files import SIZE, StoredImages, chunk_length, load_folder, pick_images, resize_parts
from utils.system.machine import chief_first
from utils.system.refusals import Refusal, number

DATASETS = ("cifar10", "cifar100", "svhn", "digits", "folder")
HELD_OUT = 1000  # images for validation and triggers; a tenth of the images of a smaller set
# mean and std of the official code's normalisation layers; those of digits and folder are measured
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "svhn": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class Images(NamedTuple):
    """`images` uint8 (N, 3, S, S), `labels` int64 (N,), `indices` int64 (N,) into the original training set.

    `images` is a tensor, or `StoredImages` where a tensor would be large.
    """

    images: torch.Tensor | StoredImages
    labels: torch.Tensor
    indices: torch.Tensor

    def pick(self, positions) -> "Images":
        """The images at these positions, a list, range or tensor of integers."""
        positions = torch.as_tensor(positions, dtype=torch.long)
        return Images(pick_images(self.images, positions), self.labels[positions], self.indices[positions])


@dataclass
class Data:
    """A data set: `train` is D_b of the paper; validation images and the sources of triggers come from `held_out`.

    mean, std  of each channel, for pixels in [0, 1]
    flip       whether a mirrored image is still of its class
    notes      what the log should say of the loading
    """

    name: str
    train: Images
    held_out: Images
    test: Images
    classes: list[str]
    mean: tuple
    std: tuple
    flip: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Height and width of the images, pixels."""
        return self.train.images.shape[-1]

    def mirrors(self, no_flip: bool, log) -> bool:
        """Whether training images are mirrored at random, with --no-flip or without; tells the log."""
        how = "not mirrored" if no_flip or not self.flip else "mirrored (--no-flip: not)"
        log(f"training images are cropped at random and {how}")
        return self.flip and not no_flip

    @cached_property
    def sha256(self) -> str:
        """Digest of all training and held-out images and labels, by which a run recognises its data."""
        digest = hashlib.sha256()
        for part in (*self.train, *self.held_out):
            for chunk in part.split(chunk_length(part)):
                digest.update(chunk.contiguous().numpy())
        return digest.hexdigest()


def add_data_flags(parser: argparse.ArgumentParser):
    """Declare -dt and its like; returns their group of the help."""
    p = parser.add_argument_group("data")
    p.add_argument("-dt", "--dataset", default="cifar10", choices=DATASETS, help="the source's data set")
    p.add_argument("--data-dir", default="data", help="folder of downloads, or of the images of -dt folder")
    p.add_argument("--image-size", type=image_size, metavar="N",
                   help=f"height and width that images are resized to, 16 to 256 (default: {SIZE})")
    p.add_argument("--skip-bad-images", action="store_true", help="-dt folder: go on without unreadable images")
    return p


def image_size(text):
    """An argparse type: pixels, 16 to 256; None for `SIZE`, as if the flag were absent."""
    size = number(int, 16, 256)(text)
    return None if size == SIZE else size


def load_data(dataset: str, data_dir="data", *, train_size: int | None = None, skip_bad_images: bool = False,
              image_size: int | None = None, flag: str = "-dt") -> Data:
    """Load a data set by its name, with the files in `data_dir`, and split it.

    The held-out images are those of `random_split` with a generator seeded 0 (49,000/1,000 on CIFAR, 72,257/1,000 on
    SVHN), or a folder's own; the run's own seed does not change the split. `train_size` keeps the first images of the
    shuffled training part; images are resized to `image_size` pixels (None: `SIZE`), bilinearly. Under torchrun rank 0
    loads first, so that the files are downloaded and decoded once. Raises Refusal for missing, unreadable or impossible
    data, which names `flag`.
    """
    root, size, apart, notes = Path(data_dir), image_size or SIZE, [], []  # apart: held-out images beside the others
    with chief_first():
        if dataset == "digits":
            train, test, classes = _digits(size)
        elif dataset == "folder":
            (train, test, *apart), classes, notes = load_folder(root, skip_bad_images, size)
        else:
            *parts, classes = _torchvision(dataset, root, flag)
            train, test = resize_parts(parts, size, root / f".resized-{dataset}-{size}.npy")
    kept, held_out = split_indices(len(train[1])) if not apart else (list(range(len(train[1]))), [])
    if train_size is not None:
        if not 1 <= train_size <= len(kept):
            raise Refusal(f"--train-size {train_size}: {dataset} has {len(kept)} training images; "
                          f"pass 1 to {len(kept)}")
        kept = kept[:train_size]
    parts = [Images(images, labels, torch.arange(len(labels))) for images, labels in (train, test, *apart)]
    train, test, held_out = parts[0].pick(kept), parts[1], parts[2] if apart else parts[0].pick(held_out)
    if absent := [name for label, name in enumerate(classes) if not (train.labels == label).any()]:
        notes = [*notes, f"warning: no training image is of the class {', '.join(absent[:5])}"
                 f"{', ...' if absent[5:] else ''}: all there are became test or held-out images or were left out"]
    mean, std = STATISTICS.get(dataset) or _channel_statistics(train.images)
    # a mirrored digit is no digit
    return Data(dataset, train, held_out, test, classes, mean, std, flip=dataset != "digits", notes=notes)


def split_indices(n: int) -> tuple[list[int], list[int]]:
    """Indices of the training and of the held-out images among n: torch's `random_split`, CPU generator, seed 0."""
    held_out = min(HELD_OUT, n // 10)
    parts = random_split(range(n), [n - held_out, held_out], generator=torch.Generator().manual_seed(0))
    return list(parts[0].indices), list(parts[1].indices)


def _channel_statistics(images):
    values = torch.zeros(3, 256, dtype=torch.float64)  # how often each value of a channel occurs
    for part in images.split(chunk_length(images)):  # so that no pixel takes more than its byte
        for channel, counts in enumerate(values):
            counts += torch.bincount(part[:, channel].flatten(), minlength=256)
    levels, n = torch.arange(256, dtype=torch.float64) / 255, values.sum(1)
    mean = values @ levels / n
    square = (values * (levels - mean[:, None]).square()).sum(1)
    std = (square / (n - 1)).sqrt().clamp_min(1e-3)
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())


def _digits(size: int):
    """scikit-learn's 1,797 handwritten digits, 8x8 enlarged to grey RGB; every fifth image is a test image."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().div(16)[:, None]
    images = torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
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
