"""EWE's training (Jia et al., 2021): phase 1 trains plainly, phase 2 makes triggers, phase 3 entangles them.

Phase 3 mixes watermark batches into the normal ones: triggers, and clean images of the target class. The soft nearest
neighbour loss (SNNL) entangles the features of the two. Constants and conventions are those of the official code.

Departures from it: normal batches are shuffled and augmented as everywhere in this project (no rotation, no
standardisation of each image), and shuffled again in every epoch of phase 3; this project's post-activation models;
cross-entropy without the 1e-12 inside its logarithm; a lower bound on the temperatures.
"""

import hashlib
import math

import torch
import torch.nn.functional as F

from utils.data.batches import Batches
from utils.rivals.ewe.snnl import entanglement, observe_features, temperature_step
from utils.rivals.ewe.trigger_making import make_triggers
from utils.system.refusals import Refusal
from utils.training.objective import Objective, batch_accuracy, ewe_adam
from utils.watermark.running_statistics import RunningStatistics
from utils.watermark.triggers import TriggerSet


def watermark_batches(labels, target: int, batch_size: int, w_epochs: float) -> int:
    """Number of watermark batches of a pass, n_w = 2 * floor(|D_t| / B), D_t the training images of class `target`.

    labels (N,) of the training images, B the batch size. Raises Refusal where phase 3 would be empty.
    """
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
    """The steps of phase 3, True for a watermark batch: round(w_epochs * n / n_w) passes of n_w watermark batches each.

    `ratio` normal batches precede each watermark batch; n is the number of normal batches of an epoch. Where the ratio
    is no whole number it is rounded down, and one more is added before watermark batch b (from 0) of a pass where
    ratio * b has reached the number of normal batches in the pass so far, those before batch b included.
    """
    one_pass, used = [], 0
    for b in range(n_w):
        normal = int(ratio)
        if ratio % 1 and ratio * b >= used + normal:
            normal += 1
        used += normal
        one_pass += [False] * normal + [True]
    return one_pass * round(w_epochs * n / n_w)


class EntangledObjective(Objective):
    """Phase 1 for `epochs` epochs, then phase 3, split into `more` epochs of at most n steps each.

    The loss of a normal batch is the sum of its cross-entropies. A watermark batch consists of h triggers and h clean
    images without augmentation, where h is half a batch, or m where there are fewer triggers; its loss is the sum of
    the cross-entropies - factor * (sum of the SNNL of three layers). The temperatures of the SNNL take a step of
    gradient descent on the same forward pass. Adam at a constant rate.

    With `bn_stats` "shared", which is not the authors', a normal batch passes through the network with each watermark
    batch: its cross-entropies join the sum, and BatchNorm normalises all of them together, nearly as in an evaluation.
    Alone, a watermark batch is answered right under its own statistics and wrong under the running averages.

    made           whether phase 2 makes the triggers, from `triggers.images`, before phase 3; then all clean images are
                   of class `target`. Otherwise `triggers` is final, its labels may differ from each other, and the
                   clean images are any training images under their true labels
    w_epochs       length of phase 3: its watermark batches, in epochs' worth of batches
    ratio          normal batches to a watermark batch
    factor         weight of the SNNL of each layer
    temperature    T of all three layers at the start; the SNNL's own temperature is 100 / T
    temperature_lr  rate of the descent on T
    patch, making  arguments of `make_triggers`; `making` holds steps, step_size and threshold
    keep_triggers  called with the triggers that phase 2 made, rounded to 8 bits; returns the `TriggerSet` to train on
    """

    static = False  # normal and watermark steps differ

    def __init__(self, model, batches: Batches, triggers: TriggerSet, *, target: int, made: bool, patch: bool,
                 epochs: int, w_epochs: float, ratio: float, factor: float, temperature: float,
                 temperature_lr: float, making: dict, bn_stats: str, keep_triggers=lambda triggers: triggers):
        self.model, self.batches, self.target, self.epochs = model, batches, target, epochs
        self.factor, self.temperature_lr = factor, temperature_lr
        self.made, self.patch, self.making, self.keep_triggers = made, patch, making, keep_triggers
        self.temperatures = torch.full((3,), float(temperature), device=batches.device)
        self.half = min(batches.batch_size // 2, len(triggers))
        self.members = (batches.labels.cpu() == target).nonzero().flatten()
        n_w = watermark_batches(batches.labels, target, batches.batch_size, w_epochs)
        schedule = torch.tensor(phase3_schedule(batches.steps, n_w, ratio, w_epochs), dtype=torch.bool)
        self.more = math.ceil(len(schedule) / batches.steps)
        self.is_watermark = [part.tolist() for part in schedule.tensor_split(self.more)] if self.more else []
        self.statistics = RunningStatistics(model, bn_stats)
        self.initial, self.triggers = triggers, None
        if not made:
            self.members = torch.arange(len(batches.labels))
            self._use_triggers(triggers)

    def _use_triggers(self, triggers: TriggerSet) -> None:
        self.triggers = triggers
        self.x_q = triggers.images.to(self.batches.device).float().div(255)
        self.y_q = triggers.labels.to(self.batches.device)

    # ---- phases, epochs and batches ----

    def steps(self, batches, epoch: int) -> int:
        """Steps of an epoch, counted from 0; those of phase 3 may be fewer."""
        return batches.steps if epoch < self.epochs else len(self.is_watermark[epoch - self.epochs])

    def optimizer(self, parameters, lr, weight_decay: float, fused: bool):
        """Adam with the authors' betas and eps."""
        return ewe_adam(parameters, lr, weight_decay, fused)

    def rate(self, lr: float, epoch: int, epochs: int) -> float:
        """Constant, as in the authors' code."""
        return lr

    def eligible(self, epoch: int) -> bool:
        """Only epochs of phase 3: a model of phase 1 has seen no triggers."""
        return epoch >= self.epochs

    def plan(self, batches, epoch: int, generator):
        """(order, shift, flip, picks), each with an entry a step; those of picks are positions of triggers, (h,), or
        empty, (0,), for a normal batch.

        Triggers are drawn without replacement. In the row of a watermark batch the first h images are the clean ones;
        they are neither shifted nor mirrored. A normal batch follows them where `bn_stats` is "shared".
        """
        shared = self.statistics.mode == "shared" and epoch >= self.epochs
        beside = zip(*batches.plan(generator)) if shared else ()
        order, shift, flip = batches.plan(generator)
        self.shares = 1.0, 0.0  # of normal and of watermark batches among the steps of the epoch
        no_picks = order.new_zeros(0)
        if epoch < self.epochs:
            return order, shift, flip, [no_picks] * len(order)
        is_watermark = self.is_watermark[epoch - self.epochs]
        count, marked = len(is_watermark), sum(is_watermark)
        self.shares = 1 - marked / count, marked / count
        picks = iter(self._draw(marked, len(self.initial), self.half, generator).to(order.device))
        drawn = self._draw(marked, len(self.members), batches.batch_size, generator)
        clean = iter(self.members[drawn].to(order.device))
        unmoved = torch.full_like(shift[0], batches.pad), torch.zeros_like(flip[0])
        normal = zip(order, shift, flip)
        watermark = ((c, *unmoved) for c in clean)
        if shared:
            h = self.half
            watermark = (tuple(torch.cat([c[:h], b]) for c, b in zip(*pair)) for pair in zip(watermark, beside))
        rows = [(*next(watermark), next(picks)) if w else (*next(normal), no_picks) for w in is_watermark]
        return tuple(zip(*rows))

    @staticmethod
    def _draw(rows: int, n: int, k: int, generator):
        """Positions (rows, k); each row is drawn from range(n) without replacement."""
        drawn = torch.empty(rows, k, dtype=torch.long)
        for row in drawn:
            row.copy_(torch.randperm(n, generator=generator)[:k])
        return drawn

    def begin(self, model, forward, optimizer, epoch: int, generator) -> None:
        """Phase 2, before the first epoch of phase 3: make the triggers on the model of phase 1, in float32."""
        if epoch < self.epochs or self.triggers is not None:
            return
        source = self.initial.images.to(self.batches.device).float().div(255)
        drawn = self._draw(math.ceil(len(source) / self.half), len(self.members), self.half, generator)
        order = self.members[drawn].to(source.device)
        no_shift = torch.full((self.half, 2), self.batches.pad, device=source.device)
        partners = [self.batches.batch(rows, no_shift, torch.zeros_like(rows, dtype=torch.bool))[0] for rows in order]
        model.eval()
        images = make_triggers(model, source, torch.stack(partners), label=self.target, patch=self.patch,
                               temperatures=self.temperatures, **self.making)
        model.train()
        pixels = images.mul(255).round().to(torch.uint8).cpu()
        self._use_triggers(self.keep_triggers(TriggerSet(pixels, *self.initial[1:])))

    def state(self) -> dict:
        """The temperatures, and the images of the triggers once phase 2 has made them; before, a digest of theirs."""
        state = {"temperatures": self.temperatures.cpu()}
        if self.made:
            made = self.triggers is not None
            state |= {"images": self.triggers.images} if made else {"source_sha256": self._source_sha256()}
        return state

    def restore(self, state: dict) -> None:
        """Take back what `state()` gave; Refusal where the images to become triggers are not those of the beginning."""
        if state.get("source_sha256", self._source_sha256()) != self._source_sha256():
            raise Refusal("--ewe-source: these are not the images that the run began with; bring them back, or begin "
                          "anew with --overwrite")
        self.temperatures = state["temperatures"].to(self.batches.device)
        if "images" in state:
            self._use_triggers(TriggerSet(state["images"], *self.initial[1:]))

    def _source_sha256(self) -> str:
        return hashlib.sha256(self.initial.images.numpy()).hexdigest()

    # ---- one step ----

    def __call__(self, forward, x, y, picks):
        normal, watermark = self.shares  # the loop divides its sums by the number of all steps of the epoch
        if not len(picks):
            with self.statistics.clean_batch():
                logits = forward(x)
            loss = F.cross_entropy(logits, y, reduction="sum")
            return loss, {"loss": loss.detach() / len(y), "train_accuracy": batch_accuracy(logits, y) / normal}
        h, shared = len(picks), self.statistics.mode == "shared"
        x, y = (torch.cat([q[picks], part if shared else part[:h]]) for q, part in ((self.x_q, x), (self.y_q, y)))
        w = torch.arange(2 * h, device=x.device) < h
        with self.statistics.clean_batch() if shared else self.statistics.trigger_batch():
            logits, features = observe_features(self.model, forward, x)
        temperatures = self.temperatures.clone().requires_grad_()
        snnls = entanglement([f[: 2 * h] for f in features], w, temperatures)
        (gradient,) = torch.autograd.grad(snnls.sum(), temperatures, retain_graph=True)
        self.temperatures = temperature_step(self.temperatures, gradient, self.temperature_lr)
        cross_entropy = F.cross_entropy(logits, y, reduction="sum")
        loss = cross_entropy - self.factor * snnls.sum()
        means = {"loss_wat": cross_entropy.detach() / len(y)}
        means |= {"trigger_batch_accuracy": batch_accuracy(logits[:h], y[:h])}
        means |= {f"snnl_{i + 1}": value for i, value in enumerate(snnls.detach())}
        means |= {f"temperature_{i + 1}": value for i, value in enumerate(self.temperatures)}
        return loss, {"loss": loss.detach() / len(y)} | {name: value / watermark for name, value in means.items()}
