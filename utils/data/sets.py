"""The data sets that `-dt` names, their flags, and the fixed split into training and held-out images."""

import argparse
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from models import SIZE
from utils.data.files import StoredImages, chunk_length, load_folder, load_torchvision, pick_images, some
from utils.system.machine import rank_0_first
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
    """Some images of a data set."""

    images: torch.Tensor | StoredImages  # uint8 (N, 3, S, S); stored where a tensor would be large
    labels: torch.Tensor  # int64 (N,)
    indices: torch.Tensor  # int64 (N,), positions in the set that they come from: training, val/ or test

    def pick(self, positions) -> "Images":
        """The images at these positions, a list, range or tensor of integers."""
        positions = torch.as_tensor(positions, dtype=torch.long)
        return Images(pick_images(self.images, positions), self.labels[positions], self.indices[positions])


@dataclass
class Data:
    """A data set, split."""

    name: str
    train: Images  # D_b of the paper
    held_out: Images  # for validation, and the sources of triggers
    test: Images
    classes: list[str]
    mean: tuple  # of each channel, for pixels in [0, 1]
    std: tuple
    flip: bool = True  # whether a mirrored image is still of its class
    notes: list[str] | tuple = ()  # what the log should say of the loading

    @property
    def size(self) -> int:
        """Height and width of the images, pixels."""
        return self.train.images.shape[-1]

    def mirrors(self, flags, log) -> bool:
        """Whether training images are mirrored at random; tells the log that, and whether they are cropped."""
        how = "not mirrored" if flags.no_flip or not self.flip else "mirrored (--no-flip: not)"
        log(f"training images are {'not cropped' if flags.no_crop else 'cropped at random'} and {how}")
        return self.flip and not flags.no_flip

    @cached_property
    def sha256(self) -> str:
        """Digest of images, labels and indices, training and held-out, by which a run recognises its data."""
        digest = hashlib.sha256()
        for part in (*self.train, *self.held_out):
            for chunk in part.split(chunk_length(part)):
                digest.update(chunk.contiguous().numpy())
        return digest.hexdigest()

    @property
    def classes_sha256(self) -> str:
        """Digest of the class names, of which `sha256` says nothing."""
        return hashlib.sha256(json.dumps(self.classes).encode()).hexdigest()


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
    """Load a data set by its name, with the files in `data_dir`, and split it in the same way for every seed of a run.

    `train_size` keeps the first images of the shuffled training part; images are resized to `image_size` pixels (None:
    `SIZE`), bilinearly. Under torchrun rank 0 loads first, so that the files are downloaded and decoded once. Raises
    Refusal for missing, unreadable or impossible data, which names `flag` or that of `data_dir`.
    """
    root, size, notes = Path(data_dir), image_size or SIZE, []
    folder_flag = "--data-dir-source" if flag == "-dsrc" else "--data-dir"
    with rank_0_first():
        if dataset == "digits":
            sets, classes = _digits(size)
        elif dataset == "folder":
            sets, classes, notes = load_folder(root, skip_bad_images, size, folder_flag)
        else:
            sets, classes = load_torchvision(dataset, root, size, flag, folder_flag)
    train, test, *val = (Images(images, labels, torch.arange(len(labels))) for images, labels in sets)
    kept, rest = split_indices(len(train.labels), 0 if val else HELD_OUT)
    held_out = val[0] if val else train.pick(rest)
    if train_size is not None:
        if not 1 <= train_size <= len(kept):
            raise Refusal(f"--train-size {train_size}: {dataset} has {len(kept)} training images; that is the most")
        kept = kept[:train_size]
    train = train.pick(kept)
    for part, images in (("training", train), ("test", test)):
        if absent := [name for label, name in enumerate(classes) if not (images.labels == label).any()]:
            notes.append(f"warning: no {part} image is of the class {some(absent)}: all are in other parts or left out")
    mean, std = STATISTICS.get(dataset) or _channel_statistics(train.images)
    flip = dataset != "digits"  # a mirrored digit is none
    return Data(dataset, train, held_out, test, classes, mean, std, flip, notes)


def split_indices(n: int, held_out: int = HELD_OUT) -> tuple[list[int], list[int]]:
    """Indices of the training and of the held-out images among n: those of torch's `random_split` with seed 0.

    49,000 and 1,000 on CIFAR, 72,257 and 1,000 on SVHN. Shuffled even where none is held out: the files of a folder
    are in the order of their classes.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()
    n_train = n - min(held_out, n // 10)
    return order[:n_train], order[n_train:]


def _channel_statistics(images) -> tuple[tuple, tuple]:
    """Mean and standard deviation of each channel of uint8 images (N, 3, S, S), as of pixels in [0, 1]."""
    counts = torch.zeros(3, 256, dtype=torch.float64)  # how often each level of a channel occurs
    for part in images.split(chunk_length(images)):  # so that no pixel takes more than its byte
        counts += torch.stack([part[:, channel].flatten().bincount(minlength=256) for channel in range(3)])
    levels, n = torch.arange(256, dtype=torch.float64) / 255, counts.sum(1)
    mean = counts @ levels / n
    square = (counts * (levels - mean[:, None]).square()).sum(1)
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
    return [(images[part], labels[part]) for part in (~test, test)], [str(i) for i in range(10)]
