"""Images that stay on the disk: `StoredImages` stands where a tensor of more than `IN_MEMORY` bytes would.

Rows are read when they are asked for and are not mapped, so that what was read before does not count as memory of the
process; the system's own cache keeps what is read often. The file stays open, so it may lose its name meanwhile.
"""

import os

import numpy as np
import torch

IN_MEMORY = 3 << 26  # bytes of a data set that is held as tensors, up to four copies; 60,000 images of 32 x 32 fit
CHUNK = 1 << 26  # bytes that a pass over all images reads at once


class StoredImages:
    """uint8 images (N, 3, S, S): rows of a .npy file, and of a tensor `more` which is numbered after them.

    Offers what this project asks of a tensor of images: `shape`, `len`, iteration, and `images[rows]` and
    `images.split(n)` as tensors; and `pick`, `with_more` and `replaced`, which read nothing.

    order  int64 (N,) positions in the file, or from its number of images on in `more`
    more   uint8 (M, 3, S, S) in memory: triggers or styled images

    Raises ValueError for a file of something else.
    """

    dtype = torch.uint8

    def __init__(self, file, order=None, more=None):
        self.file = open(file, "rb") if isinstance(file, (str, os.PathLike)) else file
        (self.in_file, *self._one), self.begin = read_header(self.file)
        self.order = torch.arange(self.in_file) if order is None else order
        self.more = torch.empty(0, *self._one, dtype=torch.uint8) if more is None else more

    @property
    def shape(self) -> torch.Size:
        """(N, 3, S, S)."""
        return torch.Size((len(self.order), *self._one))

    def __len__(self):
        return len(self.order)

    def __getitem__(self, rows):
        """The images of an integer, a slice, or a tensor or list of integers or booleans of any shape."""
        where = self.order[rows]
        images = torch.from_numpy(self._read(where.reshape(-1).numpy()))
        return images.view(*where.shape, *self._one)

    def _read(self, where):
        read = np.empty((len(where), *self._one), np.uint8)
        for i in np.argsort(where, kind="stable"):  # in the order of the file
            if where[i] >= self.in_file:
                read[i] = self.more[where[i] - self.in_file]
            elif os.preadv(self.file.fileno(), [read[i]], self.begin + int(where[i]) * read[i].nbytes) < read[i].nbytes:
                raise OSError(f"{self.file.name} ends before image {where[i]}: remove it, so that it is made anew")
        return read

    def __iter__(self):
        for part in self.split(chunk_length(self)):
            yield from part

    def split(self, n: int):
        """Tensors of n images, the last of fewer, in order."""
        return (self[i : i + n] for i in range(0, len(self), n))

    def pick(self, positions) -> "StoredImages":
        """The images at int64 positions, in their order."""
        return StoredImages(self.file, self.order[positions], self.more)

    def with_more(self, images) -> "StoredImages":
        """These, then uint8 `images` (M, 3, S, S)."""
        new = torch.arange(len(images)) + self.in_file + len(self.more)
        return StoredImages(self.file, torch.cat([self.order, new]), torch.cat([self.more, images]))

    def replaced(self, positions, images) -> "StoredImages":
        """A copy with uint8 `images` in place of those at int64 `positions`."""
        copy, order = self.with_more(images), self.order.clone()
        order[positions] = copy.order[len(self) :]
        return StoredImages(self.file, order, copy.more)


def read_header(file) -> tuple[tuple, int]:
    """(shape, position of the first number) of an open .npy file of uint8 (N, 3, S, S); ValueError for others."""
    file.seek(0)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError("no .npy file of images")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran or dtype != np.uint8 or len(shape) != 4:
        raise ValueError("no .npy file of images")
    return shape, file.tell()


def is_file_of_images(path, shape: tuple) -> bool:
    """Whether `path` is a .npy file of uint8 images of this shape."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return images.dtype == np.uint8 and images.shape == shape


def chunk_length(images) -> int:
    """How many images a pass over all of them takes at once."""
    return max(1, CHUNK // max(1, images.shape[1:].numel()))


def pick_images(images, positions):
    """The images at int64 positions: of stored ones a tensor if it is of a quarter of `IN_MEMORY` at most."""
    large = len(positions) * images.shape[1:].numel() > IN_MEMORY // 4
    return images.pick(positions) if isinstance(images, StoredImages) and large else images[positions]


def join_images(images, more):
    """`images`, tensor or stored, then the tensor `more`."""
    return images.with_more(more) if isinstance(images, StoredImages) else torch.cat([images, more])


def replace_images(images, positions, by):
    """A copy of `images`, tensor or stored, with `by` at int64 positions."""
    if isinstance(images, StoredImages):
        return images.replaced(positions, by)
    images = images.clone()
    images[positions] = by
    return images
