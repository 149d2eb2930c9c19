"""TODO (figures.rivals)"""

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
from utils.command_line import train_command
from utils.data.images import Images
from utils.data.sets import load_data


def write_image_halves(halves: dict) -> None:
    """Digits as PNG files, every other training image in each folder; both have all test images."""
    digits = load_data("digits")
    images = Images(*(torch.cat(parts) for parts in zip(digits.train, digits.held_out)))
    for half, folder in enumerate(halves.values()):
        for part, kept in (("train", images.pick((images.indices % 2 == half).nonzero().flatten())),
                           ("test", digits.test)):
            for image, label, index in zip(*kept):
                path = folder / part / str(int(label)) / f"{int(index)}.png"
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def train_run(folder: Path, images: Path, flags: str, message: str, seed: int, bar) -> Path:
    """A finished run of train.py, in this process, which has paid for torch's start already."""
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
    """Test accuracies of the benign models."""
    one = lambda path: json.loads((path / "summary.json").read_text())["test_accuracy"]
    return {name: [one(path) for path in paths] for name, paths in benign.items()}
