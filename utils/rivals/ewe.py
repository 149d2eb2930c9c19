"""EWE (Jia et al., 2021), `train.py -tt ewe`: phase 1 trains plainly, phase 2 makes triggers, phase 3 entangles them.

Phase 3 mixes watermark batches into the normal ones: triggers, and clean images of the target class. The soft nearest
neighbour loss (SNNL) entangles the features of the two. Constants and conventions are those of the official code; items
1 to 3 of docs/rivals.md list the departures.
"""

import argparse
import contextlib
import hashlib
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import models
from utils.data.files import image_files, read_images
from utils.data.sets import Data, load_data
from utils.system.refusals import COUNT, SHARE, Refusal, number
from utils.training.loop import Objective, batch_accuracy
from utils.watermark.batchnorm import RunningStatistics
from utils.watermark.trigger_files import read_triggers
from utils.watermark.triggers import TriggerSet

# the authors' settings where they differ from the margin paper's, and the defaults of EWE's own flags
DEFAULTS = {"epoch": 50, "lr": 1e-3, "weight_decay": 0.0, "ewe_epochs": 6.0, "ewe_ratio": 4.0, "ewe_factor": 1e5,
            "ewe_temperature": 1.0, "ewe_temperature_lr": 0.1, "ewe_target": 0, "ewe_source": "svhn:9",
            "ewe_steps": 10, "ewe_step_size": 0.01, "ewe_threshold": 0.1}
DESCRIPTION = (
    f"EWE. Phase 1: -ep {DEFAULTS['epoch']} epochs of Adam, --lr {DEFAULTS['lr']} to the end, --weight-decay 0; phase "
    "2 makes triggers; phase 3: normal and watermark batches. -v, --steps and their like are not used")
LOWEST_TEMPERATURE = 1e-3  # not in the official code; at T = 0 the kernel of the SNNL would be 1 everywhere
PUSHES, LAST_PUSHES = 50, 5  # steps away from the target class: at most so many between SNNL steps; at the end


def ewe_source(text):
    """An argparse type: the name of a source of images, see --ewe-source."""
    if os.sep not in text and not re.fullmatch(r"digits|svhn:[0-9]|[0-9]{1,4}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no svhn:DIGIT, digits, number of a class or folder, as ./others")
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
    add("--ewe-steps", "rounds of phase 2 (the authors: 100 on CIFAR-100)", type=COUNT)
    add("--ewe-step-size", "its step; pixels are in [0, 1]", type=SHARE)
    add("--ewe-threshold", "share of triggers that the model of phase 1 may give the target class", type=SHARE)


def check_flags(flags) -> None:
    """Refuse combinations of flags that cannot be served."""
    if flags.dataset == "folder" and flags.ewe_source.startswith("svhn:"):
        raise Refusal(f"--ewe-source {flags.ewe_source}: --data-dir is the folder of your own images, not of SVHN; "
                      "pass --ewe-source digits, a folder of other images, or the number of one of your classes")
    if flags.model_type not in models.NAMES:
        raise Refusal(f"-mt {flags.model_type}: -tt ewe knows layers of {', '.join(models.NAMES)} only; pass one")
    if flags.compile:
        raise Refusal("--compile: -tt ewe looks at hidden layers, which compiling hides; leave it out")


def draw_triggers(flags, data: Data) -> TriggerSet:
    """Images that phase 2 changes: the seed draws m = -nq of --ewe-source for class --ewe-target.

    They have no sources, as none is a held-out image, and no true labels but where they are training images of `data`.
    Raises Refusal where the images do not exist, are too few, or belong to `data` though their source is another.
    """
    phase3_schedule(data.train.labels, flags.ewe_target, flags.batch_size, flags.ewe_ratio, flags.ewe_epochs)  # refuses
    source, target, m, flag = flags.ewe_source, flags.ewe_target, flags.num_query, f"--ewe-source {flags.ewe_source}"
    is_own_class, is_folder = source.isdecimal(), os.sep in source  # an own class gets a patch
    if is_own_class:
        if int(source) >= len(data.classes) or int(source) == target:
            raise Refusal(f"{flag}: name a class from 0 to {len(data.classes) - 1} other than --ewe-target {target}")
        images = data.train.pick((data.train.labels == int(source)).nonzero().flatten()).images
    elif is_folder:
        if not (images := image_files(Path(source))):
            raise Refusal(f"{flag}: no image files lie in this folder; name one that holds some")
    else:
        name, _, digit = source.partition(":")
        if name == data.name:
            raise Refusal(f"{flag}: -dt {name} holds these images itself; pass the number of a class, not {target}")
        other = load_data(name, flags.data_dir, flag="--ewe-source", image_size=data.size)
        images = torch.cat([part.images[part.labels == int(digit or 9)] for part in (other.train, other.held_out)])
    if m > len(images):
        raise Refusal(f"-nq {m}: {flag} has only {len(images)} images; pass -nq {len(images)} or fewer")
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(flags.seed))[:m]
    true_labels = None
    if is_own_class:
        images, true_labels = images[drawn], torch.full((m, 1), int(source))
    else:
        images = read_images([images[i] for i in drawn], data.size, flag) if is_folder else images[drawn]
        check_foreign(images, data, flag)
    return TriggerSet(images, torch.full((m,), target), true_labels)


def check_foreign(images, data: Data, flag: str) -> None:
    """Refuse triggers, uint8 (m, 3, S, S), that are images of `data`, for training, validation or test."""
    secret = {image.numpy().tobytes() for image in images}
    for kind, part in (("training", data.train), ("validation", data.held_out), ("test", data.test)):
        if same := sum(image.numpy().tobytes() in secret for image in part.images):
            raise Refusal(f"{flag}: {same} {kind} images of -dt {data.name} are triggers too; name another source")


def make_triggers(model, source, target, *, label: int, temperatures, steps: int, step_size: float, threshold: float,
                  patch: bool = False):
    """Phase 2: source (m, 3, S, S) in [0, 1] -> triggers of the same shape, entangled with class `label`.

    target (k, h, 3, S, S) are images of the class: h for each of the k = ceil(m / h) batches of h triggers, the last of
    which the first triggers fill up. temperatures (3,) are T of the three layers. `patch` first writes 1 into the first
    channel of a window, where the sum of the SNNL's gradient is smallest. In each of `steps` rounds a batch moves away
    from `label`, every pixel by `step_size`, until at most the share `threshold` is classified so, then takes one step
    towards a higher SNNL; `LAST_PUSHES` steps away follow. `model`, in eval mode, is not changed.
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
        return torch.autograd.grad(logits[:, label].sum(), x)[0], float((logits.argmax(1) == label).float().mean())

    if patch:
        side = max(1, round(3 * source.shape[-1] / 32))  # the authors' 3 of 32 pixels
        gradient = sum(snnl_gradient(source[rows], partners).sum(0) for rows, partners in zip(batches, target)).sum(0)
        sums = gradient.unfold(0, side, 1).unfold(1, side, 1).sum((2, 3))  # of each window
        row, column = divmod(int(sums.argmin()), sums.shape[1])
        source = source.clone()
        source[:, 0, row : row + side, column : column + side] = 1
    made = []
    for rows, partners in zip(batches, target):
        x, pushes = source[rows], 0
        for _ in tqdm(range(steps), desc="making triggers", disable=None, leave=False):
            while pushes < PUSHES:
                gradient, share = label_gradient(x)
                if share <= threshold:
                    break
                x, pushes = (x - step_size * gradient.sign()).clamp(0, 1), pushes + 1
            x = (x + step_size * snnl_gradient(x, partners).sign()).clamp(0, 1)
        for _ in range(LAST_PUSHES):
            x = (x - step_size * label_gradient(x)[0].sign()).clamp(0, 1)
        made.append(x)
    return torch.cat(made)[:m]  # without the triggers that fill up the last batch


def snnl(features, w, t):
    """Soft nearest neighbour loss, a scalar: the higher, the more the two groups of rows are mixed.

    features (B, ...), flattened and passed through ReLU; w (B,) 0 or 1, the group of a row; t the temperature.
    With the distance d_ij = 1 - cos(x_i, x_j), K_ij = exp(-d_ij / t) and K_ii = 0:
    -mean_i log(1e-5 + sum_{j: w_j = w_i} K_ij / (1e-5 + sum_k K_ik)).
    """
    x = features.flatten(1).relu()
    x = x * x.square().sum(1, keepdim=True).clamp_min(1e-12).rsqrt()
    k = torch.exp((x @ x.T - 1) / t).clamp(0, 1).masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0)
    share = (k * (w[:, None] == w)).sum(1) / (1e-5 + k.sum(1))
    return -(1e-5 + share).log().mean()


def entanglement(features, w, temperatures):
    """SNNL of each of L layers, (L,): features [(B, ...)], w (B,), temperatures T (L,); the loss uses t = 100 / T."""
    return torch.stack([snnl(f, w, 100 / t) for f, t in zip(features, temperatures)])


def observe_features(model, forward, x):
    """(logits of `forward(x)`, the outputs of three layers of `model` in float32, the deepest first).

    They are the pooled features and the two blocks before the last one: on ResNet-34 the second and the first block of
    stage 4. The authors did not use VGG-11; here its blocks are convolution, BatchNorm and ReLU.
    """
    network, outputs = model[1], []
    blocks = ([*network.layer3, *network.layer4] if hasattr(network, "layer4") else
              [m for m in network.layers if isinstance(m, torch.nn.ReLU)])
    with contextlib.ExitStack() as hooks:
        for block in blocks[-3:-1]:
            hooks.enter_context(block.register_forward_hook(lambda module, inputs, output: outputs.append(output)))
        hooks.enter_context(network.linear.register_forward_pre_hook(lambda module, inputs: outputs.append(inputs[0])))
        logits = forward(x)
    return logits, [f.float() for f in reversed(outputs)]


# ---- the objective of all phases ----


def ewe_adam(parameters, lr, weight_decay: float, fused: bool):
    """Adam with the betas and eps of EWE's authors, who train sources and copies so."""
    return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99), eps=1e-5, weight_decay=weight_decay, fused=fused)


def constant_rate(lr: float, epoch: int, epochs: int) -> float:
    return lr


def phase3_schedule(labels, target: int, batch_size: int, ratio: float, w_epochs: float) -> list[bool]:
    """The steps of phase 3, True for a watermark batch: round(w_epochs * n / n_w) passes of n_w watermark batches each.

    Of N labels there are n = floor(N / B) normal batches in an epoch and n_w = 2 * floor(|D_t| / B), D_t those of class
    `target`. `ratio` normal batches, rounded down, precede each watermark batch b (from 0) of a pass; where that leaves
    the normal batches of the pass at or below ratio * b, one more does. Raises Refusal where phase 3 would be empty.
    """
    members, flag = int((labels == target).sum()), f"--ewe-target {target}"
    n, n_w = len(labels) // batch_size, 2 * (members // batch_size)
    if target > labels.max():
        raise Refusal(f"{flag}: the classes are numbered 0 to {int(labels.max())}")
    if batch_size < 2:
        raise Refusal(f"--batch-size {batch_size}: half of a watermark batch are triggers; pass 2 or more")
    if not n_w:
        way = f"pass --batch-size {members} or less" if members > 1 else "name another class"
        raise Refusal(f"{flag}: its {members} training images are fewer than --batch-size {batch_size}; {way}")
    passes, one_pass, used = round(w_epochs * n / n_w), [], 0
    if not passes:
        raise Refusal(f"--ewe-epochs {w_epochs:g}: no pass of {n_w} watermark batches; pass {n_w / n:.2g} or more")
    for b in range(n_w):
        normal = int(ratio)
        normal += bool(ratio % 1 and ratio * b >= used + normal)
        used += normal
        one_pass += [False] * normal + [True]
    return one_pass * passes


class EntangledObjective(Objective):
    """Phase 1 for -ep epochs, then phase 3, split into `more` epochs of at most n steps each.

    The loss of a normal batch is the sum of its cross-entropies. A watermark batch has h triggers and h clean images
    without augmentation, h = min(B / 2, m); its loss is the sum of the cross-entropies - factor * (sum of the SNNL of
    three layers), whose temperatures take a step of gradient descent on the same forward pass.

    With --bn-stats shared, which is not the authors', a normal batch passes through the network with each watermark
    batch, so that BatchNorm normalises all of them together, nearly as in an evaluation. Alone, a watermark batch is
    answered right under its own statistics and wrong under the running averages.

    Phase 2 makes the triggers of the images of `triggers` and passes them, rounded to 8 bits, to `keep`, which returns
    the set to train on; clean images are of class --ewe-target.
    """

    static = False  # normal and watermark steps differ
    optimizer, rate = staticmethod(ewe_adam), staticmethod(constant_rate)  # as in the authors' code

    def __init__(self, flags, model, batches, triggers: TriggerSet, keep=lambda triggers: triggers):
        self.flags, self.model, self.batches, self.initial, self.keep = flags, model, batches, triggers, keep
        self.first_best = flags.epoch  # a model of phase 1 has seen no triggers
        self.temperatures = torch.full((3,), float(flags.ewe_temperature), device=batches.device)
        self.half, labels = min(batches.batch_size // 2, len(triggers)), batches.labels.cpu()
        schedule = torch.tensor(phase3_schedule(
            labels, flags.ewe_target, batches.batch_size, flags.ewe_ratio, flags.ewe_epochs))
        self.more = math.ceil(len(schedule) / batches.steps)
        self.is_watermark = [part.tolist() for part in schedule.tensor_split(self.more)]
        self.statistics, self.shared = RunningStatistics(model, flags.bn_stats), flags.bn_stats == "shared"
        self.triggers, self.members = None, (labels == flags.ewe_target).nonzero().flatten()
        self.source_sha256 = hashlib.sha256(triggers.images.numpy()).hexdigest()

    def _use_triggers(self, triggers: TriggerSet) -> None:
        self.triggers, (self.x_q, self.y_q) = triggers, triggers.on(self.batches.device)

    def _clean_rows(self, count: int, size: int, generator) -> list:
        """(order, shift, flip) of `count` batches of clean images for watermark batches, which are not augmented."""
        drawn = [torch.randperm(len(self.members), generator=generator)[:size] for _ in range(count)]
        orders = [self.members[positions].to(self.batches.device) for positions in drawn]
        return [(o, o.new_full((len(o), 2), self.batches.pad), torch.zeros_like(o).bool()) for o in orders]

    def plan(self, batches, epoch: int, generator):
        """(order, shift, flip, picks), an entry a step; picks are positions of triggers, (h,) or, normal batch, (0,).

        The row of a watermark batch has B clean images; with --bn-stats shared h, and then a normal batch.
        """
        self.shares, no_picks = (1.0, 0.0), torch.zeros(0, dtype=torch.long, device=batches.device)
        if epoch < self.flags.epoch:
            return (*batches.plan(generator), [no_picks] * batches.steps)
        is_watermark = self.is_watermark[epoch - self.flags.epoch]
        count, marked = len(is_watermark), sum(is_watermark)
        self.shares = 1 - marked / count, marked / count  # of normal and of watermark batches among the steps
        beside = zip(*batches.plan(generator)) if self.shared else None
        normal = zip(*batches.plan(generator))
        picks = iter([torch.randperm(len(self.initial), generator=generator)[: self.half] for _ in range(marked)])
        clean, rows = iter(self._clean_rows(marked, batches.batch_size, generator)), []
        for marks in is_watermark:
            row = next(clean if marks else normal)
            if marks and self.shared:
                row = (torch.cat([one[: self.half], other]) for one, other in zip(row, next(beside)))
            rows.append((*row, next(picks).to(batches.device) if marks else no_picks))
        return tuple(zip(*rows))

    def begin(self, model, optimizer, epoch: int, generator) -> None:
        """Phase 2, before the first epoch of phase 3: make the triggers on the model of phase 1, in float32."""
        if epoch < self.flags.epoch or self.triggers is not None:
            return
        source, _ = self.initial.on(self.batches.device)
        clean = self._clean_rows(math.ceil(len(source) / self.half), self.half, generator)
        partners = torch.stack([self.batches.batch(*row)[0] for row in clean])
        flags = self.flags
        model.eval()
        images = make_triggers(
            model, source, partners, label=flags.ewe_target, temperatures=self.temperatures, steps=flags.ewe_steps,
            step_size=flags.ewe_step_size, threshold=flags.ewe_threshold, patch=flags.ewe_source.isdecimal())
        model.train()
        pixels = images.mul(255).round().to(torch.uint8).cpu()
        self._use_triggers(self.keep(replace(self.initial, images=pixels)))

    def state(self) -> dict:
        """The temperatures, and the images of the triggers once phase 2 has made them; before, a digest of theirs."""
        made = {"source_sha256": self.source_sha256} if self.triggers is None else {"images": self.triggers.images}
        return {"temperatures": self.temperatures.cpu()} | made

    def restore(self, state: dict) -> None:
        """Take back what `state()` gave; Refusal where the images to become triggers are not those of the beginning."""
        if state.get("source_sha256", self.source_sha256) != self.source_sha256:
            raise Refusal("--ewe-source: these are not the images that the run began with; bring them back, or begin "
                          "anew with --overwrite")
        self.temperatures = state["temperatures"].to(self.batches.device)
        if "images" in state:
            self._use_triggers(replace(self.initial, images=state["images"]))

    def __call__(self, forward, x, y, picks):
        normal, watermark = self.shares  # the loop divides its sums by the number of all steps of the epoch
        if not len(picks):
            with self.statistics.clean_batch():
                logits = forward(x)
            loss = F.cross_entropy(logits, y, reduction="sum")
            return loss, {"loss": loss.detach() / len(y), "train_accuracy": batch_accuracy(logits, y) / normal}
        h = len(picks)
        x, y = (x, y) if self.shared else (x[:h], y[:h])
        x, y = torch.cat([self.x_q[picks], x]), torch.cat([self.y_q[picks], y])
        w = torch.arange(2 * h, device=x.device) < h
        with self.statistics.clean_batch() if self.shared else self.statistics.trigger_batch():
            logits, features = observe_features(self.model, forward, x)
        t = self.temperatures.clone().requires_grad_()
        snnls = entanglement([f[: 2 * h] for f in features], w, t)
        (gradient,) = torch.autograd.grad(snnls.sum(), t, retain_graph=True)
        self.temperatures = (self.temperatures - self.flags.ewe_temperature_lr * gradient).clamp_min(LOWEST_TEMPERATURE)
        cost = F.cross_entropy(logits, y, reduction="sum")
        loss = cost - self.flags.ewe_factor * snnls.sum()
        means = {"loss_wat": cost.detach() / len(y), "trigger_batch_accuracy": batch_accuracy(logits[:h], y[:h])}
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

    return EntangledObjective(flags, model, batches, triggers, keep_triggers)
