"""Which images are used: settings and the flags that set them."""

import argparse
from dataclasses import dataclass

from utils.data.images import SIZE, Data
from utils.data.sets import DATASETS, load_data
from utils.system.flags import number
from utils.system.processes import chief_first


@dataclass(frozen=True)
class DataSettings:
    """A data set by name, the folder of its files, how many training images are used (None: all), their size in pixels.
    """

    name: str
    root: str = "data"
    train_size: int | None = None
    skip_bad_images: bool = False
    size: int = SIZE

    def load(self) -> Data:
        """The data set; under torchrun rank 0 loads it first, so that it is downloaded and decoded once."""
        with chief_first():
            return load_data(self.name, self.root, self.train_size, self.skip_bad_images, size=self.size)


def image_size(text):
    """An argparse type: pixels, 16 to 256; None for `SIZE`, as if the flag were absent."""
    size = number(int, 16, 256)(text)
    return None if size == SIZE else size


def add_data_flags(parser: argparse.ArgumentParser):
    """Declare -dt and its like; returns their group of the help."""
    p = parser.add_argument_group("data")
    p.add_argument("-dt", "--dataset", default="cifar10", choices=DATASETS, help="the source's data set")
    p.add_argument("--data-dir", default="data", help="folder of downloads, or of the images of -dt folder")
    p.add_argument("--image-size", type=image_size, metavar="N",
                   help=f"height and width that images are resized to, 16 to 256 (default: {SIZE})")
    p.add_argument("--skip-bad-images", action="store_true", help="-dt folder: go on without unreadable images")
    return p
