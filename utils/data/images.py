"""TODO (utils.data)"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch

SIZE = 32


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
