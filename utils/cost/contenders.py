"""The contenders of the benchmark: our step and the official one, on the same model, images and triggers.

Images are noise of CIFAR-10's shape, labels are random; no figure depends on them. An epoch is that of CIFAR-10:
49,000 training images, 1,000 for validation and 10,000 for testing.
"""

import itertools
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

import models
from utils.attacks.losses import soft_loss
from utils.attacks.objectives import ExtractionObjective
from utils.cost import official_rendering
from utils.cost.settings import BenchmarkSettings
from utils.data.batches import Batches
from utils.data.images import Images
from utils.training.metrics import accuracy
from utils.training.step import Step, autocast_forward
from utils.watermark.objective import WatermarkObjective

LR, WEIGHT_DECAY, WEIGHT, PIXEL = 0.1, 1e-4, 0.1, 1 / 255
EPOCH, VALIDATION, TEST, CLASSES = 49_000, 1000, 10_000, 10  # images of CIFAR-10


class Contenders:
    """Data, models and steps of one setting.

    images    `Images` that both contenders train on
    x_q, y_q  the triggers, (num_query, 3, 32, 32) in [0, 1] and (num_query,), on the device
    steps     steps of an epoch
    """

    def __init__(self, settings: BenchmarkSettings, device):
        self.settings, self.device = settings, device
        generator = torch.Generator().manual_seed(0)
        count = max(2048, 8 * settings.batch_size)
        pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        self.images = Images(pixels, torch.randint(0, CLASSES, (count,), generator=generator), torch.arange(count))
        self.x_q = torch.rand(settings.num_query, 3, 32, 32, generator=generator).to(device)
        self.y_q = torch.randint(0, CLASSES, (settings.num_query,), generator=generator).to(device)
        self.batches = Batches(self.images, settings.batch_size, True, device)
        self.steps = EPOCH // settings.batch_size

    def model(self, placed=True):
        """A new model, the same weights at every call; `placed`: in the memory format of our training, else plain."""
        torch.manual_seed(0)
        model = models.build(self.settings.model, CLASSES, (0.5,) * 3, (0.25,) * 3, self.settings.width)
        return models.place(model, self.device) if placed else model.to(self.device)

    def objective(self, name, model, amp):
        """Our objective of that name, one of `TIMED_OBJECTIVES`, with the paper's eps = K/255."""
        if name == "soft":
            source = self.model().requires_grad_(False).eval()
            return ExtractionObjective(autocast_forward(source, amp), soft_loss, False)
        k = self.settings.steps if name == "margin" else 0
        return WatermarkObjective(
            model, self.x_q, self.y_q, weight=WEIGHT, reduction="joint", batch=self.settings.trigger_batch, steps=k,
            step_size=PIXEL, eps=k * PIXEL, bn_stats="paper",
        )

    def our_step(self, name, amp):
        """(call, model, `Step`): a call is one training step of ours, batch and augmentation included."""
        model = self.model().train()
        objective = self.objective(name, model, amp)
        step = Step(model, objective, self.batches, lr=LR, weight_decay=WEIGHT_DECAY, amp=amp,
                    compile=self.settings.compile, graph=self.settings.graph)
        rows = self.rows(objective)
        return lambda: step(next(rows)), model, step

    def rows(self, objective, batches=None):
        """Rows of an epoch's plan, see `Objective.plan`, repeated without end."""
        generator = torch.Generator().manual_seed(1)
        plan = objective.plan(batches or self.batches, 0, generator)
        return itertools.cycle(list(zip(*plan)))

    def official_step(self, name, loader=False):
        """(call, model): a call is one official step, on batches prepared beforehand or made by the official loader."""
        model = self.model(placed=False).train()
        optimizer = official_rendering.plain_sgd(model, LR, WEIGHT_DECAY)
        teacher = self.model(placed=False).eval()
        picks = torch.randint(0, self.settings.num_query, (64, self.settings.trigger_batch)).to(self.device)
        picks = itertools.cycle(picks)
        if loader:
            batches = self.endless(official_rendering.loader(*self.images[:2], self.settings.batch_size))
        else:
            batches = self.prepared_batches()
        k = self.settings.steps if name == "margin" else 0

        def step():
            x, y = (t.to(self.device) for t in next(batches))
            if name == "soft":
                return official_rendering.soft_step(model, teacher, optimizer, x, y)
            pick = next(picks)
            return official_rendering.watermark_step(
                model, optimizer, x, y, self.x_q[pick], self.y_q[pick], weight=WEIGHT, steps=k, step_size=PIXEL
            )

        return step, model

    def prepared_batches(self):
        """Augmented batches (x, y) of one epoch on the device, repeated without end."""
        plan = self.batches.plan(torch.Generator().manual_seed(1))
        return itertools.cycle([tuple(t.contiguous() for t in self.batches.batch(*row)) for row in zip(*plan)])

    @staticmethod
    def endless(loader):
        """A loader's batches, epoch after epoch."""
        while True:
            yield from loader

    # ---- what an epoch does besides its steps ----

    def our_evaluation(self, model, amp):
        """Seconds of our evaluation after an epoch: validation images and triggers, under both BatchNorm statistics."""
        pixels = self.images.images.repeat(-(-VALIDATION // len(self.images.images)), 1, 1, 1)[:VALIDATION]
        labels = self.images.labels.repeat(-(-VALIDATION // len(self.images.labels)))[:VALIDATION]
        triggers = self.x_q.mul(255).round().to(torch.uint8)
        began = time.perf_counter()
        for _ in range(2):
            accuracy(model, pixels, labels, amp)
            accuracy(model, triggers, self.y_q, amp)
        return time.perf_counter() - began

    def official_evaluation(self, model):
        """Seconds of the official evaluation, which repeats all triggers with every batch; a tenth of it is timed."""
        share = 10
        n = (VALIDATION + TEST) // share
        x = torch.rand(n, 3, 32, 32, device=self.device)
        y = torch.zeros(n, dtype=torch.long, device=self.device)
        began = time.perf_counter()
        official_rendering.evaluate(model, x, y, self.x_q, self.y_q)
        return share * (time.perf_counter() - began)

    # ---- counted work ----

    def flop(self, name, rendering):
        """FLOP of a step of `rendering` "ours" or "official", counted as `image_passes` times a forward pass."""
        model = self.model(placed=False).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 3, 32, 32, device=self.device))
        return counter.get_total_flops() * image_passes(name, rendering, self.settings)


def image_passes(name, rendering, settings: BenchmarkSettings):
    """Work of a step in forward passes of one image: a forward pass costs 1, a backward pass to the input alone 1, a
    full backward pass 2.

    The official ascent and the official teacher also compute gradients of weights, which they do not use.
    """
    if name == "soft":
        return (3 + (1 if rendering == "ours" else 3)) * settings.batch_size
    ascent = settings.steps * (2 if rendering == "ours" else 3) if name == "margin" else 0
    return 3 * settings.batch_size + (3 + ascent) * settings.trigger_batch
