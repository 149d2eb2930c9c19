"""Batches of training images, cropped and flipped: on the device, or of stored images ahead of the step."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

from utils.data.files import StoredImages
from utils.data.sets import Images

AHEAD = 3  # batches of stored images that are read before they are asked for


class EpochPlan(NamedTuple):
    """All random numbers of one epoch, drawn before it begins; they depend on the seed and the epoch alone."""

    order: torch.Tensor  # (steps, batch) positions in the training set
    shift: torch.Tensor  # (steps, batch, 2) rows and columns of the crop's corner, 0..2 pad
    flip: torch.Tensor  # (steps, batch) bool


class Batches:
    """The training images on the device, cropped and flipped by batch there.

    Each image is flipped with probability 1/2 and then cropped to its size out of a zero padding of an eighth of it (4
    pixels of 32). The last partial batch of an epoch is dropped. Stored images are read and augmented on the CPU, in a
    second thread, some batches ahead of the step.
    """

    def __init__(self, images: Images, batch_size: int, flip: bool, device="cpu", dtype=torch.float32):
        self.size = images.images.shape[-1]
        self.pad = self.size // 8
        self.labels = images.labels.to(device)
        self.batch_size, self.may_flip, self.device, self.dtype = batch_size, flip, device, dtype
        self.steps = len(images.labels) // batch_size
        self.on_disk = isinstance(images.images, StoredImages)
        self.span = torch.arange(self.size, device="cpu" if self.on_disk else device)
        if self.on_disk:
            self.stored, self.planned = images.images, []
            self.rows, self.ahead = iter(()), deque()  # rows still to be read; (row, future of its pixels), ...
            self.reader = ThreadPoolExecutor(1)  # joined when the interpreter ends: torch aborts if a thread still runs
        else:
            pixels = images.images.permute(0, 2, 3, 1)  # channels last, the memory format of the batches
            self.padded = torch.nn.functional.pad(pixels, (0, 0, *[self.pad] * 4)).contiguous().to(device)

    def plan(self, generator: torch.Generator) -> EpochPlan:
        """Draw an epoch's plan from a CPU generator, so that every device sees the same one."""
        n = self.steps * self.batch_size
        order = torch.randperm(len(self.labels), generator=generator)[:n]
        shift = torch.randint(0, 2 * self.pad + 1, (n, 2), generator=generator)
        flip = torch.rand(n, generator=generator) < (0.5 if self.may_flip else 0.0)
        shape = (self.steps, self.batch_size)
        parts = [t.view(*shape, *t.shape[1:]) for t in (order, shift, flip)]
        if self.on_disk:
            self.planned = list(zip(*parts))
        return EpochPlan(*(t.to(self.device) for t in parts))

    def batch(self, order, shift, flip):
        """Rows of a plan -> x (B, 3, S, S) in [0, 1] in channels-last memory, y (B,)."""
        if self.on_disk:
            pixels = self._stored_batch(order.cpu(), shift.cpu(), flip.cpu()).to(self.device)
        else:
            pixels = self._cut(self.padded, order, shift, flip)
        return pixels.permute(0, 3, 1, 2).to(self.dtype).div(255), self.labels[order]

    def _cut(self, padded, order, shift, flip):
        """Rows `order` of padded images (N, S + 2 pad, S + 2 pad, 3), cropped and flipped: (B, S, S, 3)."""
        rows = shift[:, :1] + self.span  # (B, S)
        columns = shift[:, 1:] + self.span
        # column c of the padded mirror image is column S + 2 pad - 1 - c of the padded image
        columns = torch.where(flip[:, None], self.size + 2 * self.pad - 1 - columns, columns)
        return padded[order[:, None, None], rows[:, :, None], columns[:, None, :]]

    def _stored_batch(self, *row):
        """The pixels of a batch (B, S, S, 3): read ahead where the plan foresaw it, else now."""
        is_row = lambda other: all(torch.equal(a, b) for a, b in zip(row, other))
        if not self.ahead or not is_row(self.ahead[0][0]):  # an epoch begins, an interrupted one in its middle
            start = next((i for i, other in enumerate(self.planned) if is_row(other)), None)
            if start is None:
                return self._load(*row)
            while self.ahead:
                self.ahead.pop()[1].cancel()
            self.rows = iter(self.planned[start:])
        while len(self.ahead) <= AHEAD and (coming := next(self.rows, None)):
            self.ahead.append((coming, self.reader.submit(self._load, *coming)))
        return self.ahead.popleft()[1].result()  # raises what the reading raised

    def _load(self, order, shift, flip):
        pixels = self.stored[order].permute(0, 2, 3, 1)
        padded = torch.nn.functional.pad(pixels, (0, 0, *[self.pad] * 4))
        return self._cut(padded, torch.arange(len(order)), shift, flip)
