"""TODO (utils.ewe)"""

import math

import torch
import torch.nn.functional as F

from utils.data.batches import Batches
from utils.rivals.ewe.snnl import entanglement, observe_features, temperature_step
from utils.rivals.ewe.trigger_making import make_triggers
from utils.system.refusals import Refusal
from utils.training.objective import Objective, batch_accuracy
from utils.watermark.running_statistics import RunningStatistics
from utils.watermark.triggers import TriggerSet


def watermark_batches(labels, target: int, batch_size: int, w_epochs: float) -> int:
    """Watermark batches n_w of a pass: 2 * floor(|D_t| / B). Refusal where phase 3 would be empty."""
    if target > labels.max():
        raise Refusal(f"--ewe-target {target}: the classes are numbered 0 to {int(labels.max())}")
    if batch_size < 2:
        raise Refusal(f"--batch-size {batch_size}: half of a watermark batch are triggers; pass 2 or more")
    members = int((labels == target).sum())
    n, n_w = len(labels) // batch_size, 2 * (members // batch_size)
    if members < 2:
        raise Refusal(f"--ewe-target {target}: {members} training images are of this class; name another")
    if not n_w:
        raise Refusal(f"--ewe-target {target}: its {members} training images are fewer than --batch-size {batch_size}; "
                      f"pass --batch-size {members} or less")
    if w_epochs and not round(w_epochs * n / n_w):
        least = f"not a single pass of {n_w} watermark batches; pass {n_w / n:.2g} or more"
        raise Refusal(f"--ewe-epochs {w_epochs:g}: {least}")
    return n_w


def phase3_schedule(n: int, n_w: int, ratio: float, w_epochs: float) -> list[bool]:
    """The steps of phase 3, True for a watermark batch: round(w_epochs * n / n_w) passes of n_w watermark batches.

    Before each go `ratio` of the n normal batches; of a ratio that is not whole the integer part, and one more where
    ratio * b has reached the number used so far in the pass.
    """
    one, used = [], 0
    for b in range(n_w):
        normal = int(ratio)
        if ratio % 1 and ratio * b >= used + normal:
            normal += 1
        used += normal
        one += [False] * normal + [True]
    return one * round(w_epochs * n / n_w)


class EntangledObjective(Objective):
    """Phase 1 for `epochs` epochs, then phase 3, cut into `more` epochs of at most n steps each.

    A normal batch costs its summed cross-entropy; a watermark batch of h triggers and h clean images, not augmented,
    the summed cross-entropy - factor * (SNNL of three layers), whose temperatures descend on the same forward pass.
    Adam at a constant rate. h is half a batch, or all m triggers where they are fewer.

    made   the triggers are made when phase 3 begins, from `trigger.images`, and all clean images are of class `target`;
           `settle` (Trigger -> Trigger) hears of them, rounded to 8 bits, and says which to use. Else `trigger` is
           final, its labels may differ, and the clean images are any training images under their true labels
    patch  see `make_triggers`, which `making` is for too: steps, step_size and threshold

    Differs from the official code: normal batches are shuffled and augmented as everywhere in this project (no
    rotation, no standardisation of each image), each epoch of phase 3 anew; this project's post-activation models;
    cross-entropy without the 1e-12 inside its logarithm; a bound on the temperatures.
    """

    static = False

    def __init__(self, model, batches: Batches, trigger: TriggerSet, *, target: int, made: bool, patch: bool,
                 epochs: int, w_epochs: float, ratio: float, factor: float, temperature: float,
                 temperature_lr: float, making: dict, bn_stats: str, settle=lambda trigger: trigger):
        self.model, self.batches, self.target, self.epochs = model, batches, target, epochs
        self.factor, self.temperature_lr = factor, temperature_lr
        self.made, self.patch, self.making, self.settle = made, patch, making, settle
        self.temperatures = torch.full((3,), float(temperature), device=batches.device)
        self.half = min(batches.batch_size // 2, len(trigger))
        self.members = (batches.labels.cpu() == target).nonzero().flatten()
        n_w = watermark_batches(batches.labels, target, batches.batch_size, w_epochs)
        kinds = torch.tensor(phase3_schedule(batches.steps, n_w, ratio, w_epochs), dtype=torch.bool)
        self.more = math.ceil(len(kinds) / batches.steps)
        self.kinds = kinds.tensor_split(self.more) if self.more else ()
        self.statistics = RunningStatistics(model, bn_stats)
        self.start, self.trigger = trigger, None
        if not made:
            self.members = torch.arange(len(batches.labels))
            self._take(trigger)

    def _take(self, trigger: TriggerSet) -> None:
        self.trigger = trigger
        self.x_q = trigger.images.to(self.batches.device).float().div(255)
        self.y_q = trigger.labels.to(self.batches.device)

    # ---- order of things ------------------------------------------------------------------------------------

    def steps(self, batches, epoch: int) -> int:
        return batches.steps if epoch < self.epochs else len(self.kinds[epoch - self.epochs])

    def optimizer(self, parameters, lr, weight_decay: float, fused: bool):
        """Adam with the authors' numbers."""
        return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99), eps=1e-5, weight_decay=weight_decay, fused=fused)

    def rate(self, lr: float, epoch: int, epochs: int) -> float:
        return lr

    def eligible(self, epoch: int) -> bool:
        """A model that has seen no triggers is not what is reported."""
        return epoch >= self.epochs

    def plan(self, batches, epoch: int, generator):
        """`picks` (steps, h), on the CPU: positions of triggers without replacement, -1 for a normal batch. In the row
        of a watermark batch the first h images, not augmented, are the clean ones."""
        order, shift, flip = batches.plan(generator)
        self.share = 1.0, 0.0
        if epoch < self.epochs:
            return order, shift, flip, torch.full((len(order), 1), -1)
        watermark = self.kinds[epoch - self.epochs]
        count, marked = len(watermark), int(watermark.sum())
        self.share = 1 - marked / count, marked / count
        picks = torch.full((count, self.half), -1)
        picks[watermark] = self._draw(marked, len(self.start), self.half, generator)
        clean = self.members[self._draw(marked, len(self.members), batches.batch_size, generator)]
        rows = [part.new_zeros(count, *part.shape[1:]) for part in (order, shift, flip)]
        for new, part, still in zip(rows, (order, shift, flip), (clean.to(order.device), batches.PAD, False)):
            new[~watermark] = part[: count - marked]
            new[watermark] = still
        return *rows, picks

    @staticmethod
    def _draw(rows: int, n: int, k: int, generator):
        """(rows, k), each row k of n positions without replacement."""
        drawn = torch.empty(rows, k, dtype=torch.long)
        for row in drawn:
            row.copy_(torch.randperm(n, generator=generator)[:k])
        return drawn

    def begin(self, model, forward, optimizer, epoch: int, generator) -> None:
        """Phase 2, before the first epoch of phase 3: on the weights of phase 1 in float32."""
        if epoch < self.epochs or self.trigger is not None:
            return
        source = self.start.images.to(self.batches.device).float().div(255)
        drawn = self._draw(math.ceil(len(source) / self.half), len(self.members), self.half, generator)
        order = self.members[drawn].to(source.device)
        still = torch.full((self.half, 2), self.batches.PAD, device=source.device)
        partners = [self.batches.batch(rows, still, torch.zeros_like(rows, dtype=torch.bool))[0] for rows in order]
        model.eval()
        images = make_triggers(model, source, torch.stack(partners), label=self.target, patch=self.patch,
                               temperatures=self.temperatures, **self.making)
        model.train()
        self._take(self.settle(TriggerSet(images.mul(255).round().to(torch.uint8).cpu(), *self.start[1:])))

    def state(self) -> dict:
        """The temperatures, and the triggers where they are made already."""
        triggers = {"images": self.trigger.images} if self.made and self.trigger is not None else {}
        return {"temperatures": self.temperatures.cpu(), **triggers}

    def restore(self, state: dict) -> None:
        self.temperatures = state["temperatures"].to(self.batches.device)
        if "images" in state:
            self._take(TriggerSet(state["images"], *self.start[1:]))

    # ---- the steps ------------------------------------------------------------------------------------------

    def __call__(self, forward, x, y, picks):
        normal, watermark = self.share  # the loop divides sums by all steps
        if picks[0] < 0:
            with self.statistics.clean_batch():
                logits = forward(x)
            loss = F.cross_entropy(logits, y, reduction="sum")
            return loss, {"loss": loss.detach() / len(y), "train_accuracy": batch_accuracy(logits, y) / normal}
        h = len(picks)
        x, y = torch.cat([self.x_q[picks], x[:h]]), torch.cat([self.y_q[picks], y[:h]])
        w = torch.arange(2 * h, device=x.device) < h
        with self.statistics.trigger_batch():
            logits, features = observe_features(self.model, forward, x)
        temperatures = self.temperatures.clone().requires_grad_()
        mixed = entanglement(features, w, temperatures)
        (gradient,) = torch.autograd.grad(mixed.sum(), temperatures, retain_graph=True)
        self.temperatures = temperature_step(self.temperatures, gradient, self.temperature_lr)
        l_wat = F.cross_entropy(logits, y, reduction="sum")
        loss = l_wat - self.factor * mixed.sum()
        means = {"loss_wat": l_wat.detach() / len(y), "trigger_batch_accuracy": batch_accuracy(logits[:h], y[:h])}
        means |= {f"snnl_{i + 1}": value for i, value in enumerate(mixed.detach())}
        means |= {f"temperature_{i + 1}": value for i, value in enumerate(self.temperatures)}
        return loss, {"loss": loss.detach() / len(y)} | {name: value / watermark for name, value in means.items()}
