"""EWE (Jia et al., 2021), `train.py -tt ewe`: phase 1 trains plainly, phase 2 makes triggers, phase 3 entangles them.

Phase 3 mixes watermark batches into the normal ones: triggers, and clean images of the target class. The soft nearest
neighbour loss (SNNL) entangles the features of the two. Constants and conventions are those of the official code.

Departures from it: normal batches are shuffled and augmented as everywhere in this project (no rotation, no
standardisation of each image), and shuffled again in every epoch of phase 3; this project's post-activation models;
cross-entropy without the 1e-12 inside its logarithm; a lower bound on the temperatures; the patch is placed without an
exchange of rows and columns; `svhn:D` means the digit D as printed (the authors' class 8 is `svhn:9`); scikit-learn's
digits, a folder of images and classes of the data set itself are additional sources of images.
"""

import argparse
import hashlib
import math
import os
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import models
from utils.data.batches import Batches
from utils.data.files import image_files, read_images
from utils.data.sets import Data, Images, load_data
from utils.system.machine import is_distributed
from utils.system.refusals import COUNT, SHARE, Refusal, number
from utils.training.loop import Objective, batch_accuracy
from utils.watermark.batchnorm import RunningStatistics
from utils.watermark.trigger_files import read_triggers
from utils.watermark.triggers import TriggerSet, chooses_triggers, validation_images

# the authors' settings where they differ from the margin paper's, and the defaults of EWE's own flags
DEFAULTS = {"epoch": 50, "lr": 1e-3, "weight_decay": 0.0, "ewe_epochs": 6.0, "ewe_ratio": 4.0, "ewe_factor": 1e5,
            "ewe_temperature": 1.0, "ewe_temperature_lr": 0.1, "ewe_target": 0, "ewe_source": "svhn:9",
            "ewe_triggers": "own", "ewe_steps": 10, "ewe_step_size": 0.01, "ewe_threshold": 0.1}
DESCRIPTION = (
    f"EWE. Phase 1: -ep {DEFAULTS['epoch']} epochs of plain training by Adam, --lr {DEFAULTS['lr']} to the end, "
    "--weight-decay 0; phase 2: the triggers are made; phase 3: normal and watermark batches. -v, --steps, "
    "--trigger-batch and their like are not used")


def ewe_source(text):
    """An argparse type: the source of images of `gather_images`."""
    if os.sep not in text and not re.fullmatch(r"digits|svhn:[0-9]|[0-9]{1,4}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither svhn:DIGIT nor digits nor the number of a class nor a folder, as ./others")
    return text


def add_flags(add) -> None:
    """Declare EWE's flags; `add(flag, help, **options of argparse)`."""
    add("--ewe-epochs", "length of phase 3: its watermark batches, in epochs' worth of batches",
        type=number(float, 0, 1e4, open_low=True))
    add("--ewe-ratio", "normal batches to a watermark batch", type=number(float, 0, 1e3))
    add("--ewe-factor", "weight of the SNNL of each layer", type=number(float, 0, 1e38))
    add("--ewe-temperature", "T at the start; the SNNL's own temperature is 100 / T",
        type=number(float, LOWEST_TEMPERATURE, 1e38))
    add("--ewe-temperature-lr", "rate of the descent on T", type=number(float, 0, 1e38))
    add("--ewe-target", "number of the class to entangle with", type=number(int, 0))
    add("--ewe-source", "what becomes triggers: a digit of SVHN (the authors' class 8 is svhn:9), digits: the nines of "
        "scikit-learn, the images in a folder, as ./others, or the number of one of the data set's own classes, with "
        "a patch", type=ewe_source)
    add("--ewe-triggers", "own: made in phase 2; shared: those of -tt margin under their labels, not optimised, beside "
        "images of all classes", choices=("own", "shared"))
    add("--ewe-steps", "rounds of phase 2 (the authors: 100 on CIFAR-100)", type=COUNT)
    add("--ewe-step-size", "its step; pixels are in [0, 1]", type=SHARE)
    add("--ewe-threshold", "share of triggers that the model of phase 1 may give the target class", type=SHARE)


def check_flags(flags) -> None:
    """Refuse combinations of flags that cannot be served."""
    if flags.dataset == "folder" and flags.ewe_triggers == "own" and flags.ewe_source.startswith("svhn:"):
        raise Refusal(f"--ewe-source {flags.ewe_source}: --data-dir is the folder of your own images, not of SVHN; "
                      "pass --ewe-source digits, a folder of other images, or the number of one of your classes")
    if flags.model_type not in models.NAMES:
        raise Refusal(f"-mt {flags.model_type}: -tt ewe entangles three layers that it knows of "
                      f"{', '.join(models.NAMES)} only; pass one of these")
    if flags.compile:
        raise Refusal("--compile: -tt ewe looks at hidden layers, which compiling hides; leave it out")
    if flags.ewe_triggers == "own" and chooses_triggers(flags):
        raise Refusal("-nm, --label-strategy and --trigger-strategy: -tt ewe makes its triggers itself and labels them "
                      "--ewe-target; leave them out, or pass --ewe-triggers shared")


def check_data(flags, data: Data) -> None:
    """Refuse settings that do not fit these data; makes nothing."""
    if is_distributed():
        raise Refusal("-tt ewe trains in one process: start it without torchrun")
    watermark_batches(data.train.labels, flags.ewe_target, flags.batch_size, flags.ewe_epochs)


def draw_triggers(flags, data: Data, choose) -> tuple[TriggerSet, Images]:
    """(the trigger set, or the images that phase 2 turns into triggers; the validation images that are left).

    choose  gives those of `-tt margin`
    """
    if flags.ewe_triggers == "shared":
        return choose()
    images = gather_images(flags.ewe_source, flags.ewe_target, flags.num_query, data, flags.data_dir, flags.seed)
    return images, validation_images(data, images)


# ---- the soft nearest neighbour loss ----

LOWEST_TEMPERATURE = 1e-3  # of T; not in the official code. At T = 0 the kernel would be 1 everywhere


def snnl(features, w, t):
    """Soft nearest neighbour loss, a scalar: the higher, the more the two groups of rows are mixed.

    features  (B, ...), flattened and passed through ReLU before distances are taken
    w         (B,) 0 or 1, the group of a row
    t         the temperature, a number or a scalar tensor

    With the distance d_ij = 1 - cos(x_i, x_j), K_ij = exp(-d_ij / t) and K_ii = 0:
    -mean_i log(1e-5 + sum_{j: w_j = w_i} K_ij / (1e-5 + sum_k K_ik)).
    """
    x = features.flatten(1).relu()
    x = x * x.square().sum(1, keepdim=True).clamp_min(1e-12).rsqrt()
    k = torch.exp((x @ x.T - 1) / t).clamp(0, 1).masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0)
    share = (k * (w[:, None] == w)).sum(1) / (1e-5 + k.sum(1))
    return -(1e-5 + share).log().mean()


def temperature_step(temperatures, gradient, lr: float):
    """Temperatures (L,) after a step of plain gradient descent; `LOWEST_TEMPERATURE` bounds them from below."""
    return (temperatures - lr * gradient).clamp_min(LOWEST_TEMPERATURE)


def entanglement(features, w, temperatures):
    """SNNL of each of L layers, (L,): features [(B, ...)], w (B,), temperatures T (L,); the loss uses t = 100 / T."""
    return torch.stack([snnl(f, w, 100 / t) for f, t in zip(features, temperatures)])


def observe_features(model, forward, x):
    """(logits of `forward(x)`, the outputs of three layers of `model` in float32, the deepest first).

    The layers are the pooled features and the two blocks before the last one: on ResNet-34 the second and the first
    block of stage 4, on ResNet-18 the first block of stage 4 and the last of stage 3. The authors did not use VGG-11;
    here its blocks are convolution, BatchNorm and ReLU.
    """
    network, outputs = model[1], []
    if hasattr(network, "layer4"):
        blocks = [*network.layer3, *network.layer4]
    else:
        blocks = [m for m in network.layers if isinstance(m, nn.ReLU)]
    handles = [b.register_forward_hook(lambda module, inputs, output: outputs.append(output)) for b in blocks[-3:-1]]
    handles.append(network.linear.register_forward_pre_hook(lambda module, inputs: outputs.append(inputs[0])))
    try:
        logits = forward(x)
    finally:
        for handle in handles:
            handle.remove()
    return logits, [f.float() for f in reversed(outputs)]


# ---- phase 2: which images become triggers, and how ----

PUSHES, LAST_PUSHES = 50, 5  # steps away from the target class: at most so many between SNNL steps; at the end
PATCH = 3  # pixels of 32, height and width of the patch


def gather_images(source: str, target: int, m: int, data: Data, root, seed: int) -> TriggerSet:
    """The m images that phase 2 turns into triggers of class `target`, drawn without replacement.

    source  "digits": the nines of scikit-learn's digits; "svhn:D": the digit D among SVHN's training images; a path
            with a separator: the image files in this folder; or the number of a class of `data`, whose training images
            then get a patch
    root    folder of SVHN
    seed    of the draw

    True labels and sources of the `TriggerSet` are empty where the images are from another data set. Raises Refusal
    where the images do not exist, are too few, or are training images of `data`.
    """
    classes, is_own_class, is_folder = len(data.classes), source.isdecimal(), os.sep in source
    if is_own_class:
        own_class = int(source)
        if own_class >= classes or own_class == target:
            others = f"name a class from 0 to {classes - 1} other than --ewe-target {target}"
            raise Refusal(f"--ewe-source {source}: {others}")
        members = data.train.pick((data.train.labels == own_class).nonzero().flatten())
        images = members.images
    elif is_folder:
        images = image_files(Path(source))
        if not images:
            raise Refusal(f"--ewe-source {source}: no image files lie in this folder; name one that holds some")
    else:
        name, digit = source.split(":") if ":" in source else (source, "9")
        if name == data.name:
            raise Refusal(f"--ewe-source {source}: -dt {data.name} holds these images itself; name one of its classes "
                          f"by its number, other than --ewe-target {target}")
        other = load_data(name, root, flag="--ewe-source", image_size=data.size)
        images = torch.cat([part.images[part.labels == int(digit)] for part in (other.train, other.held_out)])
    if m > len(images):
        raise Refusal(f"-nq {m}: --ewe-source {source} has only {len(images)} images; pass -nq {len(images)} or fewer")
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:m]
    flag, labels, unknown = f"--ewe-source {source}", torch.full((m,), target), torch.zeros(m, 0, dtype=torch.long)
    images = read_images([images[i] for i in drawn], data.size, flag) if is_folder else images[drawn]
    if is_own_class:
        return TriggerSet(images, labels, torch.full((m, 1), own_class), members.indices[drawn][:, None])
    check_foreign(images, data, flag)
    return TriggerSet(images, labels, unknown, unknown)


def check_foreign(images, data: Data, what: str) -> None:
    """Refuse triggers that are images of `data`, for training, validation or test.

    images uint8 (m, 3, S, S); `what` begins the error message.
    """
    secret = {image.numpy().tobytes() for image in images}
    for kind, part in (("training", data.train), ("validation", data.held_out), ("test", data.test)):
        same = sum(image.numpy().tobytes() in secret for image in part.images)
        if same:
            raise Refusal(f"{what}: {same} {kind} images of -dt {data.name} are triggers too; "
                          "name another --ewe-source")


def patch_size(size: int) -> int:
    """Height and width of the patch on images of `size` pixels: the authors' 3 of 32."""
    return max(1, round(PATCH * size / 32))


def patch_position(gradient) -> tuple[int, int]:
    """(row, column) of the window of a patch's size with the smallest sum of gradient (..., H, W).

    The official code exchanges rows and columns; this one does not.
    """
    g = gradient.reshape(-1, *gradient.shape[-2:]).sum(0)
    side = patch_size(g.shape[-1])
    sums = g.unfold(0, side, 1).unfold(1, side, 1).sum((2, 3))
    return divmod(int(sums.argmin()), sums.shape[1])


def make_triggers(model, source, target, *, label: int, temperatures, steps: int, step_size: float, threshold: float,
                  patch: bool = False):
    """Phase 2: source (m, 3, S, S) in [0, 1] -> triggers of the same shape, entangled with class `label`.

    target        (k, h, 3, S, S), images of the class: h for each of the k = ceil(m / h) batches of h triggers. The
                  last batch is filled up with the first triggers
    temperatures  T of the three layers, (3,)
    steps         rounds; a round first moves away from `label` until at most the share `threshold` of the batch is
                  classified as `label`, then takes one step towards a higher SNNL. `LAST_PUSHES` steps away from
                  `label` follow the last round
    step_size     how far a step moves every pixel
    patch         first write a patch at the place that the SNNL's gradient favours: 1 in the first channel

    `model` is expected in eval mode and is not changed.
    """
    m, h = len(source), target.shape[1]
    w = torch.arange(2 * h, device=source.device) < h
    batches = [torch.arange(i * h, (i + 1) * h) % m for i in range(len(target))]

    def snnl_gradient(x, partners):
        x = x.detach().requires_grad_()
        _, features = observe_features(model, model, torch.cat([x, partners]))
        return torch.autograd.grad(entanglement(features, w, temperatures).sum(), x)[0]

    def label_gradient(x):
        x = x.detach().requires_grad_()
        logits = model(x)
        share = (logits.argmax(1) == label).float().mean()
        return torch.autograd.grad(logits[:, label].sum(), x)[0], float(share)

    if patch:
        gradient = sum(snnl_gradient(source[rows], partners).sum(0) for rows, partners in zip(batches, target))
        row, column = patch_position(gradient)
        source, side = source.clone(), patch_size(source.shape[-1])
        source[:, 0, row : row + side, column : column + side] = 1
    made = torch.empty_like(source)
    bar = tqdm(total=len(target) * steps, desc="making triggers", disable=None, leave=False)
    for rows, partners in zip(batches, target):
        x, pushes = source[rows], 0
        for _ in range(steps):
            while pushes < PUSHES:
                gradient, share = label_gradient(x)
                if share <= threshold:
                    break
                x, pushes = (x - step_size * gradient.sign()).clamp(0, 1), pushes + 1
            x = (x + step_size * snnl_gradient(x, partners).sign()).clamp(0, 1)
            bar.update()
        for _ in range(LAST_PUSHES):
            x = (x - step_size * label_gradient(x)[0].sign()).clamp(0, 1)
        fresh = rows[: m - int(rows[0])]  # without the triggers that fill up the last batch
        made[fresh] = x[: len(fresh)]
    bar.close()
    return made


# ---- the objective of all phases ----


def ewe_adam(parameters, lr, weight_decay: float, fused: bool):
    """Adam with the betas and eps of EWE's authors, who train sources and copies so."""
    return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99), eps=1e-5, weight_decay=weight_decay, fused=fused)


def constant_rate(lr: float, epoch: int, epochs: int) -> float:
    """The same learning rate in every epoch."""
    return lr


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
    optimizer, rate = staticmethod(ewe_adam), staticmethod(constant_rate)  # as in the authors' code

    def __init__(self, model, batches: Batches, triggers: TriggerSet, *, target: int, made: bool, patch: bool,
                 epochs: int, w_epochs: float, ratio: float, factor: float, temperature: float,
                 temperature_lr: float, making: dict, bn_stats: str, keep_triggers=lambda triggers: triggers):
        self.model, self.batches, self.target, self.epochs = model, batches, target, epochs
        self.first_best = epochs  # a model of phase 1 has seen no triggers
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

    def plan(self, batches, epoch: int, generator):
        """(order, shift, flip, picks), each with an entry a step; those of picks are positions of triggers, (h,), or
        empty, (0,), for a normal batch. Epochs of phase 3 may have fewer steps.

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

    def begin(self, model, optimizer, epoch: int, generator) -> None:
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


def objective(flags, model, batches, triggers: TriggerSet, *, data, run, commit) -> EntangledObjective:
    """The objective of all phases; `commit` (TriggerSet -> None) is called with the triggers that phase 2 makes."""

    def keep_triggers(made: TriggerSet) -> TriggerSet:
        path = run.path / "triggers.pt"
        if path.exists():  # written before the run was interrupted, and perhaps committed to: use these
            made = read_triggers(path, len(data.classes))
        check_foreign(made.images, data, f"--ewe-source {flags.ewe_source}")
        commit(made)
        return made

    making = {"steps": flags.ewe_steps, "step_size": flags.ewe_step_size, "threshold": flags.ewe_threshold}
    return EntangledObjective(
        model, batches, triggers, target=flags.ewe_target, made=flags.ewe_triggers == "own",
        patch=flags.ewe_source.isdecimal(), epochs=flags.epoch, w_epochs=flags.ewe_epochs, ratio=flags.ewe_ratio,
        factor=flags.ewe_factor, temperature=flags.ewe_temperature, temperature_lr=flags.ewe_temperature_lr,
        making=making, bn_stats=flags.bn_stats, keep_triggers=keep_triggers)
