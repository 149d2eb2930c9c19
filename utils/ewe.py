"""Entangled Watermark Embedding (Jia et al., USENIX Security 2021), a rival: triggers that share features with a class.

Phase 1 trains plainly, phase 2 makes triggers on that model, phase 3 trains on and mixes in watermark batches of
triggers and images of the target class, whose features the soft nearest neighbour loss (SNNL) entangles. Numbers and
conventions are those of the official code; what differs is said where it does.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from utils import data as datasets
from utils.batchnorm import RunningStatistics
from utils.data import Batches, Data
from utils.losses import Objective, correct
from utils.refuse import Refusal
from utils.triggers import Trigger

LOWEST = 1e-3  # of a temperature; the official code has no bound, and at 0 the kernel would be 1 everywhere
PUSHES, LAST = 50, 5  # steps away from the target class: at most between the others, and at the end
PATCH = 3


def snnl(features, w, t, metric="cosine"):
    """Soft nearest neighbour loss, a scalar: how much the two groups of rows are mixed (low: apart).

    features (B, ...), flattened and through ReLU; w (B,) 0 or 1; t the temperature, a number or scalar tensor.
    metric "cosine": d = 1 - cos, or "euclidean": d = |x_i - x_j|^2. K = exp(-d / t), 0 on the diagonal:
    -mean_i log(1e-5 + sum_{j: w_j = w_i} K_ij / (1e-5 + sum_k K_ik)).
    """
    x = features.flatten(1).relu()
    if metric == "cosine":
        x = x * x.square().sum(1, keepdim=True).clamp_min(1e-12).rsqrt()
        d = 1 - x @ x.T
    else:
        squares = x.square().sum(1)
        d = squares[:, None] + squares - 2 * x @ x.T
    k = torch.exp(-d / t).clamp(0, 1).masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0)
    share = (k * (w[:, None] == w)).sum(1) / (1e-5 + k.sum(1))
    return -(1e-5 + share).log().mean()


def temperature_step(temperatures, gradient, lr: float):
    """One step of plain gradient descent; (L,) each. Temperatures stay above `LOWEST`, which is not official."""
    return (temperatures - lr * gradient).clamp_min(LOWEST)


def entanglement(features, w, temperatures):
    """SNNL of each layer, (L,). The stored temperatures are inverse ones: t = 100 / T."""
    return torch.stack([snnl(f, w, 100 / t) for f, t in zip(features, temperatures)])


def observe(model, forward, x):
    """Logits of `forward(x)` and three of the model's features in float32, the deepest first.

    Pooled features, then the outputs of the two blocks before the last: on ResNet-34 the second and first of stage 4,
    on ResNet-18 the first of stage 4 and the last of stage 3. VGG-11, which the authors did not use: a block is a
    convolution with BatchNorm and ReLU.
    """
    network, seen = model[1], []
    if hasattr(network, "layer4"):
        blocks = [*network.layer3, *network.layer4]
    else:
        blocks = [m for m in network.layers if isinstance(m, nn.ReLU)]
    handles = [b.register_forward_hook(lambda module, inputs, output: seen.append(output)) for b in blocks[-3:-1]]
    handles.append(network.linear.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])))
    try:
        logits = forward(x)
    finally:
        for handle in handles:
            handle.remove()
    return logits, [f.float() for f in reversed(seen)]


# ---- phase 2: triggers --------------------------------------------------------------------------------------


def gather(source: str, target: int, m: int, data: Data, root, seed: int) -> Trigger:
    """The m images that are to become triggers of class `target`, drawn without replacement.

    source  "digits": nines of scikit-learn's digits; "svhn:D": the digit D among SVHN's training images; or the
            number of a class of `data`, whose training images then get a patch
    True labels and sources are empty where the images are of no class of the data set. Raises Refusal where the
    images are not there, too few, or training images.
    """
    classes, inside = len(data.classes), source.isdecimal()
    if inside:
        kind = int(source)
        if kind >= classes or kind == target:
            others = f"name a class from 0 to {classes - 1} other than --ewe-target {target}"
            raise Refusal(f"--ewe-source {source}: {others}")
        found = data.train.pick((data.train.labels == kind).nonzero().flatten())
        images = found.images
    else:
        name, digit = source.split(":") if ":" in source else (source, "9")
        if name == data.name:
            raise Refusal(f"--ewe-source {source}: -dt {data.name} holds these images itself; name one of its classes "
                          f"by its number, other than --ewe-target {target}")
        other = datasets.load(name, root, flag="--ewe-source")
        images = torch.cat([part.images[part.labels == int(digit)] for part in (other.train, other.held_out)])
    if m > len(images):
        raise Refusal(f"-nq {m}: --ewe-source {source} has only {len(images)} images; pass -nq {len(images)} or fewer")
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:m]
    labels, none = torch.full((m,), target), torch.zeros(m, 0, dtype=torch.long)
    if inside:
        return Trigger(images[drawn], labels, torch.full((m, 1), kind), found.indices[drawn][:, None])
    check_foreign(images[drawn], data, f"--ewe-source {source}")
    return Trigger(images[drawn], labels, none, none)


def check_foreign(images, data: Data, what: str) -> None:
    """Refuse triggers that are training images; images uint8 (m, 3, 32, 32)."""
    secret = {image.numpy().tobytes() for image in images}
    same = sum(image.numpy().tobytes() in secret for image in data.train.images)
    if same:
        raise Refusal(f"{what}: {same} training images of -dt {data.name} are triggers too; name another --ewe-source")


def patch_position(gradient) -> tuple[int, int]:
    """(row, column) of the 3x3 window whose summed gradient is least; gradient (..., H, W).

    The official code exchanges rows and columns.
    """
    g = gradient.reshape(-1, *gradient.shape[-2:]).sum(0)
    sums = g.unfold(0, PATCH, 1).unfold(1, PATCH, 1).sum((2, 3))
    return divmod(int(sums.argmin()), sums.shape[1])


def make_triggers(model, source, target, *, label: int, temperatures, steps: int, step_size: float, threshold: float,
                  patch: bool = False):
    """Phase 2: source (m, 3, 32, 32) in [0, 1] -> triggers of the same shape, entangled with class `label`.

    target (k, h, 3, 32, 32): for each of the k = ceil(m / h) batches the images of the class that go with it; the last
    batch is filled up with triggers from the beginning. Each of `steps` rounds first steps away from `label` until at
    most the share `threshold` of a batch is classified so, then towards a higher SNNL; `LAST` steps away from the
    label end it. A step moves every pixel by step_size. `patch`: a 3x3 patch of the first channel at its maximum
    where the SNNL's gradient says. The model is in eval mode and stays as it is.
    """
    m, h = len(source), target.shape[1]
    w = torch.arange(2 * h, device=source.device) < h
    batches = [torch.arange(i * h, (i + 1) * h) % m for i in range(len(target))]

    def mix(x, partners):
        x = x.detach().requires_grad_()
        _, features = observe(model, model, torch.cat([x, partners]))
        return torch.autograd.grad(entanglement(features, w, temperatures).sum(), x)[0]

    def certainty(x):
        x = x.detach().requires_grad_()
        logits = model(x)
        share = (logits.argmax(1) == label).float().mean()
        return torch.autograd.grad(logits[:, label].sum(), x)[0], float(share)

    if patch:
        gradient = sum(mix(source[rows], partners).sum(0) for rows, partners in zip(batches, target))
        row, column = patch_position(gradient)
        source = source.clone()
        source[:, 0, row : row + PATCH, column : column + PATCH] = 1
    made = torch.empty_like(source)
    bar = tqdm(total=len(target) * steps, desc="making triggers", disable=None, leave=False)
    for rows, partners in zip(batches, target):
        x, pushes = source[rows], 0
        for _ in range(steps):
            while pushes < PUSHES:
                gradient, share = certainty(x)
                if share <= threshold:
                    break
                x, pushes = (x - step_size * gradient.sign()).clamp(0, 1), pushes + 1
            x = (x + step_size * mix(x, partners).sign()).clamp(0, 1)
            bar.update()
        for _ in range(LAST):
            x = (x - step_size * certainty(x)[0].sign()).clamp(0, 1)
        fresh = rows[: m - int(rows[0])]  # without what the last batch was filled up with
        made[fresh] = x[: len(fresh)]
    bar.close()
    return made


# ---- phases 1 and 3: training -------------------------------------------------------------------------------


def slices(labels, target: int, batch_size: int, w_epochs: float) -> int:
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


def schedule(n: int, n_w: int, ratio: float, w_epochs: float) -> list[bool]:
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


class Entangled(Objective):
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

    def __init__(self, model, batches: Batches, trigger: Trigger, *, target: int, made: bool, patch: bool, epochs: int,
                 w_epochs: float, ratio: float, factor: float, temperature: float, temperature_lr: float, making: dict,
                 bn_stats: str, settle=lambda trigger: trigger):
        self.model, self.batches, self.target, self.epochs = model, batches, target, epochs
        self.factor, self.temperature_lr = factor, temperature_lr
        self.made, self.patch, self.making, self.settle = made, patch, making, settle
        self.temperatures = torch.full((3,), float(temperature), device=batches.device)
        self.half = min(batches.batch_size // 2, len(trigger))
        self.members = (batches.labels.cpu() == target).nonzero().flatten()
        n_w = slices(batches.labels, target, batches.batch_size, w_epochs)
        kinds = torch.tensor(schedule(batches.steps, n_w, ratio, w_epochs), dtype=torch.bool)
        self.more = math.ceil(len(kinds) / batches.steps)
        self.kinds = kinds.tensor_split(self.more) if self.more else ()
        self.statistics = RunningStatistics(model, bn_stats)
        self.start, self.trigger = trigger, None
        if not made:
            self.members = torch.arange(len(batches.labels))
            self._take(trigger)

    def _take(self, trigger: Trigger) -> None:
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
        self._take(self.settle(Trigger(images.mul(255).round().to(torch.uint8).cpu(), *self.start[1:])))

    def state(self) -> dict:
        """The temperatures, and the triggers where they are made already."""
        triggers = {"images": self.trigger.images} if self.made and self.trigger is not None else {}
        return {"temperatures": self.temperatures.cpu(), **triggers}

    def restore(self, state: dict) -> None:
        self.temperatures = state["temperatures"].to(self.batches.device)
        if "images" in state:
            self._take(Trigger(state["images"], *self.start[1:]))

    # ---- the steps ------------------------------------------------------------------------------------------

    def __call__(self, forward, x, y, picks):
        normal, watermark = self.share  # the loop divides sums by all steps
        if picks[0] < 0:
            with self.statistics.clean_batch():
                logits = forward(x)
            loss = F.cross_entropy(logits, y, reduction="sum")
            return loss, {"loss": loss.detach() / len(y), "train_accuracy": correct(logits, y) / normal}
        h = len(picks)
        x, y = torch.cat([self.x_q[picks], x[:h]]), torch.cat([self.y_q[picks], y[:h]])
        w = torch.arange(2 * h, device=x.device) < h
        with self.statistics.trigger_batch():
            logits, features = observe(self.model, forward, x)
        temperatures = self.temperatures.clone().requires_grad_()
        mixed = entanglement(features, w, temperatures)
        (gradient,) = torch.autograd.grad(mixed.sum(), temperatures, retain_graph=True)
        self.temperatures = temperature_step(self.temperatures, gradient, self.temperature_lr)
        l_wat = F.cross_entropy(logits, y, reduction="sum")
        loss = l_wat - self.factor * mixed.sum()
        means = {"loss_wat": l_wat.detach() / len(y), "trigger_batch_accuracy": correct(logits[:h], y[:h])}
        means |= {f"snnl_{i + 1}": value for i, value in enumerate(mixed.detach())}
        means |= {f"temperature_{i + 1}": value for i, value in enumerate(self.temperatures)}
        return loss, {"loss": loss.detach() / len(y)} | {name: value / watermark for name, value in means.items()}
