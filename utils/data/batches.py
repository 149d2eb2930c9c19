"""Batches of training images, cropped and flipped on the device."""

from typing import NamedTuple

import torch

from utils.data.images import SIZE, Images


class EpochPlan(NamedTuple):
    """All random numbers of one epoch, drawn before it begins; they depend on the seed and the epoch alone."""

    order: torch.Tensor  # (steps, batch) positions in the training set
    shift: torch.Tensor  # (steps, batch, 2) rows and columns of the crop's corner, 0..8
    flip: torch.Tensor  # (steps, batch) bool


class Batches:
    """The training images on the device, cropped and flipped by batch there.

    Each image is flipped with probability 1/2 and then cropped to 32x32 out of a zero padding of 4 pixels.
    The last partial batch of an epoch is dropped.
    """

    PAD = 4

    def __init__(self, images: Images, batch_size: int, flip: bool, device="cpu", dtype=torch.float32):
        pixels = images.images.permute(0, 2, 3, 1)  # channels last, the memory format of the batches
        self.padded = torch.nn.functional.pad(pixels, (0, 0, *[self.PAD] * 4)).contiguous().to(device)
        self.labels = images.labels.to(device)
        self.batch_size, self.may_flip, self.device, self.dtype = batch_size, flip, device, dtype
        self.steps = len(images.labels) // batch_size
        self.span = torch.arange(SIZE, device=device)

    def plan(self, generator: torch.Generator) -> EpochPlan:
        """Draw an epoch's plan from a CPU generator, so that every device sees the same one."""
        n = self.steps * self.batch_size
        order = torch.randperm(len(self.labels), generator=generator)[:n]
        shift = torch.randint(0, 2 * self.PAD + 1, (n, 2), generator=generator)
        flip = torch.rand(n, generator=generator) < (0.5 if self.may_flip else 0.0)
        shape = (self.steps, self.batch_size)
        return EpochPlan(*(t.view(*shape, *t.shape[1:]).to(self.device) for t in (order, shift, flip)))

    def batch(self, order, shift, flip):
        """Rows of a plan -> x (B, 3, 32, 32) in [0, 1] in channels-last memory, y (B,)."""
        rows = shift[:, :1] + self.span  # (B, 32)
        columns = shift[:, 1:] + self.span
        # column c of the padded mirror image is column 39 - c of the padded image
        columns = torch.where(flip[:, None], SIZE + 2 * self.PAD - 1 - columns, columns)
        pixels = self.padded[order[:, None, None], rows[:, :, None], columns[:, None, :]]  # (B, 32, 32, 3)
        return pixels.permute(0, 3, 1, 2).to(self.dtype).div(255), self.labels[order]
