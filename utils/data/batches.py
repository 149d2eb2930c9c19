"""Batches of training images, cropped and flipped: on the device, or of stored images ahead of the step."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

from utils.data.files import StoredImages
from utils.data.sets import Images

VIEWS, MOST_OF_VIEWS = 6, 1 << 30  # of an image, see `Batches.views`; bytes
AHEAD = 3  # batches of stored images that are read before they are asked for


class EpochPlan(NamedTuple):
    """All random numbers of one epoch, drawn before it begins; they depend on the seed and the epoch alone."""

    order: torch.Tensor  # (steps, batch) positions in the training set
    shift: torch.Tensor  # (steps, batch, 2) rows and columns of the crop's corner, 0..2 pad
    flip: torch.Tensor  # (steps, batch) bool


class Batches:
    """The training images on the device, cropped and flipped by batch there.

    Each is flipped with probability 1/2 and then, with `crop`, padded by zeros, an eighth of its size (4 pixels of 32),
    and cropped back at random; the last partial batch is dropped. Stored images are read and augmented on the CPU,
    in a second thread.
    """

    def __init__(self, images: Images, batch_size: int, flip: bool, device="cpu", dtype=torch.float32, crop=True):
        self.images, self.labels = images.images, images.labels.to(device)
        self.size = self.images.shape[-1]
        self.pad = self.size // 8 if crop else 0
        self.batch_size, self.may_flip, self.device, self.dtype = batch_size, flip, device, dtype
        self.steps = len(self.labels) // batch_size
        self.on_disk = isinstance(self.images, StoredImages)
        self.span = torch.arange(self.size, device="cpu" if self.on_disk else device)
        if self.on_disk:
            self.step_of, self.ahead = {}, {}  # a planned row's bytes -> step; step -> its pixels' future
            self.reader = ThreadPoolExecutor(1)  # joined when the interpreter ends: torch aborts if a thread still runs
        else:
            self.padded = self._pad(self.images).to(device)

    def plan(self, generator: torch.Generator) -> EpochPlan:
        """Draw an epoch's plan from a CPU generator, so that every device sees the same one."""
        n = self.steps * self.batch_size
        order = torch.randperm(len(self.labels), generator=generator)[:n]
        drawn = order, *self._draw_views(n, generator)
        plan = EpochPlan(*(t.view(self.steps, self.batch_size, *t.shape[1:]) for t in drawn))
        if self.on_disk:
            self.rows, self.ahead = list(zip(*plan)), {}
            self.step_of = {tuple(part.numpy().tobytes() for part in row): i for i, row in enumerate(self.rows)}
        return EpochPlan(*(t.to(self.device) for t in plan))

    def batch(self, order, shift, flip):
        """Rows of a plan -> x (B, 3, S, S) in [0, 1] in channels-last memory, y (B,)."""
        if self.on_disk:
            pixels = self._stored_batch(order.cpu(), shift.cpu(), flip.cpu()).to(self.device)
        else:
            pixels = self._crop(self.padded, order, shift, flip)
        return pixels.permute(0, 3, 1, 2).to(self.dtype).div(255), self.labels[order]

    def views(self, images):
        """(x (v * m, 3, S, S) in [0, 1], positions in images): uint8 images (m, 3, S, S) as steps see them.

        The first m are the images themselves, the others are cropped and flipped by random numbers of their own; v is
        `VIEWS`, or fewer, two at least, where these would take more than `MOST_OF_VIEWS` bytes; 1 where nothing
        changes an image.
        """
        m, number, device = len(images), 1, self.span.device
        if self.pad or self.may_flip:
            number = max(2, min(VIEWS, MOST_OF_VIEWS // (4 * images.numel())))
        rows = torch.arange(m).repeat(number)
        shift, flip = self._draw_views((number - 1) * m, torch.Generator().manual_seed(0))
        shift = torch.cat([torch.full((m, 2), self.pad), shift])
        flip = torch.cat([torch.zeros(m, dtype=torch.bool), flip])
        pixels = self._crop(self._pad(images.to(device)), *(part.to(device) for part in (rows, shift, flip)))
        return pixels.permute(0, 3, 1, 2).to(self.device, torch.float32).div_(255), rows.to(self.device)

    def _draw_views(self, n: int, generator):
        """(n, 2) corners of crops and (n,) flips, at random."""
        shift = torch.randint(0, 2 * self.pad + 1, (n, 2), generator=generator)
        return shift, torch.rand(n, generator=generator) < (0.5 if self.may_flip else 0.0)

    def _pad(self, images):
        """(n, 3, S, S) -> (n, S + 2 pad, S + 2 pad, 3): channels last, the memory format of the batches."""
        return torch.nn.functional.pad(images.permute(0, 2, 3, 1), (0, 0, *[self.pad] * 4)).contiguous()

    def _crop(self, padded, order, shift, flip):
        """Rows `order` of padded images (n, S + 2 pad, S + 2 pad, 3), cropped and flipped: (B, S, S, 3)."""
        rows = shift[:, :1] + self.span  # (B, S)
        columns = shift[:, 1:] + self.span
        # column c of the padded mirror image is column S + 2 pad - 1 - c of the padded image
        columns = torch.where(flip[:, None], self.size + 2 * self.pad - 1 - columns, columns)
        return padded[order[:, None, None], rows[:, :, None], columns[:, None, :]]

    def _stored_batch(self, *row):
        """The pixels of a batch (B, S, S, 3): read ahead where the epoch's plan foresaw it, else now."""
        step = self.step_of.get(tuple(part.numpy().tobytes() for part in row))
        if step is None:
            return self._read(*row)
        coming = range(step, min(step + AHEAD + 1, self.steps))
        self.ahead = {i: self.ahead.get(i) or self.reader.submit(self._read, *self.rows[i]) for i in coming}
        return self.ahead.pop(step).result()  # raises what the reading raised

    def _read(self, order, shift, flip):
        return self._crop(self._pad(self.images[order]), torch.arange(len(order)), shift, flip)
