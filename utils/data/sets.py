"""The data sets that `-dt` names, and the fixed split into training and held-out images."""

import contextlib
from pathlib import Path

import torch
from torch.utils.data import random_split

from utils.data.folder import load_folder
from utils.data.images import SIZE, Data, Images
from utils.data.resizing import resize_parts
from utils.data.stored import chunk_length
from utils.system.refusals import Refusal

DATASETS = ("cifar10", "cifar100", "svhn", "digits", "folder")
HELD_OUT = 1000  # images for validation and triggers; a tenth of the images of a smaller set
# mean and std of the official code's normalisation layers; those of digits and folder are measured
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "svhn": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def load_data(name: str, root="data", train_size: int | None = None, skip_bad_images=False, flag="-dt",
              size: int = SIZE) -> Data:
    """Load data set `name` from folder `root` and split it.

    The held-out images are those of `random_split` with a generator seeded 0 (49,000/1,000 on CIFAR, 72,257/1,000 on
    SVHN); the run's own seed does not change the split. `train_size` keeps the first images of the shuffled training
    part; images are resized to `size` pixels, bilinearly. Raises Refusal for missing, unreadable or impossible data; it
    names the flag `flag`.
    """
    if name == "digits":
        train, test, classes = _digits(size)
    elif name == "folder":
        train, test, classes, notes = load_folder(Path(root), skip_bad_images, size)
    else:
        *parts, classes = _torchvision(name, Path(root), flag)
        train, test = resize_parts(parts, size, Path(root) / f".resized-{name}-{size}.npy")
    kept, held_out = split_indices(len(train[1]))
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
        flip=name != "digits",  # a mirrored digit is no digit
        notes=notes if name == "folder" else [],
    )
    data.mean, data.std = STATISTICS.get(name) or _channel_statistics(data.train.images)
    return data


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
