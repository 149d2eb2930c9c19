"""The images and trainings of figures.rivals: two halves of the digits as PNG files, and runs of train.py on them."""

import contextlib
import io
import json
import shlex
import sys
from pathlib import Path

import torch
from PIL import Image

import train
from figures.false_claims.settings import COMMON
from utils.command_line.train import train_command
from utils.data.sets import Images, load_data


def write_image_halves(halves: dict) -> None:
    """Write digits as PNG files into the two folders of `halves`: every other training image each, all test images.

    Held-out images count as training images; train.py splits them off again.
    """
    digits = load_data("digits")
    images = Images(*(torch.cat(parts) for parts in zip(digits.train, digits.held_out)))
    for half, folder in enumerate(halves.values()):
        own_half = images.pick((images.indices % 2 == half).nonzero().flatten())
        for part, content in (("train", own_half), ("test", digits.test)):
            for image, label, index in zip(*content):
                path = folder / part / str(int(label)) / f"{int(index)}.png"
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def train_run(folder: Path, images: Path, flags: str, message: str, seed: int, bar) -> Path:
    """The folder of a finished run of train.py with `flags`, on the images in the folder `images`.

    It runs in this process, which saves starting torch for each run; `bar` is a progress bar of runs.
    """
    words = [*shlex.split(f"{COMMON} {flags}"), "-d", str(folder), "--data-dir", str(images),
             "-msg", f"{message}-{seed}", "--seed", str(seed)]
    old, sys.argv = sys.argv, ["train.py", *words]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            train.main()
    finally:
        sys.argv = old
    bar.update()
    return train_command(words).output.folder


def benign_accuracies(benign: dict) -> dict:
    """{name: [test accuracy in [0, 1]]} of the run folders {name: [folder]}."""
    accuracy = lambda path: json.loads((path / "summary.json").read_text())["test_accuracy"]
    return {name: [accuracy(path) for path in paths] for name, paths in benign.items()}
