"""Images as tensors, and a data set with its split."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch

from utils.data.stored import StoredImages, chunk_length, pick_images

SIZE = 32  # height and width unless --image-size says otherwise, pixels


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

    @cached_property
    def sha256(self) -> str:
        """Digest of all training and held-out images and labels, by which a run recognises its data."""
        digest = hashlib.sha256()
        for part in (*self.train, *self.held_out):
            for chunk in part.split(chunk_length(part)):
                digest.update(chunk.contiguous().numpy())
        return digest.hexdigest()
