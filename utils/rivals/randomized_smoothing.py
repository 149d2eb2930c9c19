"""RS (Bansal et al., 2022), `train.py -tt rs`: a source whose triggers hold under Gaussian noise on its weights.

Departures from the authors' code: no accuracy under noise is measured during training; all training images are used
(the authors: half of them, see --train-size); batches of 128 (the authors: 256); CIFAR-100 has no schedule of its own;
noisy parameters are copies, because adding noise to the parameters and subtracting it again lets them drift; triggers
are made of held-out images that are not of the label's class, not of training images; the word is drawn by the seed and
written in Pillow's built-in font (the authors: "Adobe" in Verdana).
"""

import contextlib
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import functional_call
from tqdm import tqdm

from utils.data.files import SIZE, join_images
from utils.data.sets import Data, Images
from utils.system.machine import AMP, autocast, is_distributed
from utils.system.refusals import COUNT, Refusal, number
from utils.training.loop import PlainObjective
from utils.watermark.batchnorm import RunningStatistics
from utils.watermark.triggers import TriggerSet, chooses_triggers

# the authors' settings where they differ from the margin paper's, and the defaults of RS's own flags
DEFAULTS = {"epoch": 100, "lr": 0.05, "rs_sigma": 1.0, "rs_sigma_step": 0.05, "rs_draws": 100, "rs_warmup": 5,
            "rs_batch": 64, "rs_freeze_bn": False, "rs_triggers": "text", "rs_label": 4}
DESCRIPTION = (
    f"RS. -ep {DEFAULTS['epoch']} and --lr {DEFAULTS['lr']} by default; momentum 0.9; the rate falls by 10 after 30, "
    "60 and 90 percent of the epochs; the authors train on half of the images: pass --train-size for that")


def add_flags(add) -> None:
    """Declare RS's flags; `add(flag, help, **options of argparse)`."""
    add("--rs-sigma", "largest noise on the weights", type=number(float, 0, 1e6))
    add("--rs-sigma-step", "distance of the noise levels from 0 to --rs-sigma",
        type=number(float, 0, 1e6, open_low=True))
    add("--rs-draws", "noisy gradients a level: the time of a robust pass is as many times the levels, and a signal "
        "waits for its end", type=COUNT)
    add("--rs-warmup", "last epoch, counted from 0, without a robust pass", type=number(int, 0))
    add("--rs-batch", "triggers of a robust pass's batch; with fewer triggers all of them", type=number(int, 2))
    add("--rs-label", "label of all triggers text and noise, a number from 0", type=number(int, 0))
    add("--rs-freeze-bn", "keep the noise out of BatchNorm's running statistics: for epochs of fewer than about 60 "
        "steps", action="store_true")
    add("--rs-triggers", "text: a word in a corner; noise: one noise pattern; shared: the triggers and random labels "
        "of -tt margin", choices=("text", "noise", "shared"))


def check_flags(flags) -> None:
    """Refuse combinations of flags that cannot be served."""
    if flags.rs_warmup >= flags.epoch - 1:
        raise Refusal(f"--rs-warmup {flags.rs_warmup}: -ep {flags.epoch} leaves no epoch with a robust pass; pass -ep "
                      f"{flags.rs_warmup + 2} or more, or a smaller --rs-warmup")
    if flags.bn_stats != "paper":
        raise Refusal(f"--bn-stats {flags.bn_stats}: -tt rs trains on its triggers as on any image; leave it out")
    count = flags.rs_sigma / flags.rs_sigma_step
    if count > 10_000 or abs(count - round(count)) > 1e-6 or (flags.rs_sigma and not round(count)):
        raise Refusal(f"--rs-sigma {flags.rs_sigma:g} is no multiple of --rs-sigma-step {flags.rs_sigma_step:g}, or "
                      "one of more than 10,000: pass a step that divides it")
    if flags.rs_triggers != "shared" and chooses_triggers(flags):
        raise Refusal(f"--rs-triggers {flags.rs_triggers} are single images with one label for all: leave -nm, "
                      "--label-strategy and --trigger-strategy out, or pass --rs-triggers shared")


def check_data(flags, data: Data) -> None:
    """Refuse several processes; makes nothing. Any data will do."""
    if is_distributed():
        raise Refusal("-tt rs trains in one process: start it without torchrun")


def draw_triggers(flags, data: Data, choose) -> tuple[TriggerSet, Images]:
    """(trigger set, the validation images that are left); `choose` gives those of `-tt margin`."""
    if flags.rs_triggers == "shared":
        return choose()
    return draw_rs_triggers(data, flags.num_query, flags.rs_label, flags.rs_triggers, flags.seed)


# ---- noise on weights ----


def noise_levels(sigma_max: float, step: float) -> list[float]:
    """The standard deviations 0, step, ..., sigma_max of the noise, in the parameters' own units."""
    return [step * j for j in range(round(sigma_max / step) + 1)]


def generator_on(device, generator) -> torch.Generator:
    """A generator on the device, seeded by `generator` on the CPU.

    Noise for 21 million parameters that is drawn on the CPU would keep a GPU waiting.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def gaussian_noise(parameters, generator):
    """N(0, 1) noise: a list of tensors of the shapes of `parameters`; `generator` on their device."""
    first = parameters[0]
    sizes = [p.numel() for p in parameters]
    noise = torch.randn(sum(sizes), generator=generator, device=first.device, dtype=first.dtype).split(sizes)
    return [part.view(p.shape) for part, p in zip(noise, parameters)]


def noisy_gradient(model, x, y, sigma: float, draws: int, generator, amp=None):
    """Mean over `draws` noise draws of the cross-entropy's gradient at theta + sigma * N(0, I); a tensor a parameter.

    x (B, 3, 32, 32) in [0, 1], y (B,); sigma in the parameters' own units; `generator` on the model's device. Noise is
    added to every parameter, scale and shift of BatchNorm included. The model's own parameters are not changed; in
    train mode the noisy passes update BatchNorm's running statistics, as in the authors' code.
    """
    names, clean = zip(*((name, p.detach()) for name, p in model.named_parameters()))
    total = [torch.zeros_like(p) for p in clean]
    for _ in range(draws):
        moved = [torch.add(p, n, alpha=sigma).requires_grad_() for p, n in zip(clean, gaussian_noise(clean, generator))]
        with autocast(x.device.type, amp):
            logits = functional_call(model, dict(zip(names, moved)), (x,))
        loss = F.cross_entropy(logits.float() if amp else logits, y)
        torch._foreach_add_(total, torch.autograd.grad(loss, moved), alpha=1 / draws)
    return total


# ---- triggers: one pattern, a word or noise, on held-out images, all under one label ----

GREY, CORNER = (155, 155, 155), (0, 0)  # colour of the word, grey levels; its top left corner, pixels


def draw_rs_triggers(data: Data, m: int, label: int, kind: str, seed: int):
    """(`TriggerSet`, the held-out images that are left): one pattern on m held-out images, all labelled `label`.

    kind "text"   a word of five letters that the seed draws, in grey at the top left
    kind "noise"  one N(0, 1) tensor, added to every image in [0, 1] and clipped

    Images of class `label` are not used, because any good model would hit them. Raises Refusal where the class does
    not exist or there are too few images.
    """
    held_out, classes = data.held_out, len(data.classes)
    if label >= classes:
        raise Refusal(f"--rs-label {label}: {data.name} has {classes} classes, counted from 0; pass one of those")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(held_out.labels), generator=generator)
    usable = order[held_out.labels[order] != label]
    if m > len(usable) or m >= len(order):
        raise Refusal(f"-nq {m}: {len(usable)} held-out images are not of class {label}, and one image must be left "
                      f"for validation; pass -nq {min(len(usable), len(order) - 1)} or fewer")
    taken = usable[:m]
    source = held_out.pick(taken)
    if kind == "noise":
        noise = torch.randn(held_out.images.shape[1:], generator=generator)
        images = (source.images / 255 + noise).clamp(0, 1).mul(255).round().to(torch.uint8)
    else:
        letters = random.Random(seed)
        # letters of such a width that the word takes about 30 of 32 pixels
        word = letters.choice("ABDEGHKPR") + "".join(letters.choices("abdehknopqu", k=4))
        images = stamp_word(source.images, word)
    labels = torch.full((m,), label)
    triggers = TriggerSet(images, labels, source.labels[:, None], source.indices[:, None])
    return triggers, held_out.pick(order[torch.isin(order, taken, invert=True)])


def stamp_word(images, word: str):
    """uint8 images (m, 3, S, S) with `word` written on each, in letters 10 pixels high where S is 32."""
    from PIL import Image, ImageDraw, ImageFont

    size = images.shape[-1]
    font, stamped = ImageFont.load_default(*([10 * size / SIZE] if size != SIZE else [])), []
    for image in images:
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        ImageDraw.Draw(picture).text(CORNER, word, fill=GREY, font=font)
        stamped.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    return torch.stack(stamped)


def append_triggers(train: Images, triggers: TriggerSet) -> Images:
    """The training images, followed by the triggers under their assigned labels."""
    return Images(join_images(train.images, triggers.images), torch.cat([train.labels, triggers.labels]),
                  torch.cat([train.indices, triggers.sources[:, 0]]))


# ---- the objective ----

WASHED = 60  # steps after which BatchNorm's running statistics keep 0.9 ** 60 = 0.2 % of their old values
MOMENTUM = 0.9
MILESTONES = (30, 60, 90)  # per cent of the epochs, after which the learning rate falls


def short_epoch_warning(steps: int, freeze: bool) -> str | None:
    """A warning where an epoch has too few steps to replace the noisy running statistics; None where there is none."""
    if freeze or steps >= WASHED:
        return None
    return (f"note: epochs of {steps} steps do not wash the robust pass's noise out of BatchNorm's running statistics: "
            "the model may answer at random; --rs-freeze-bn keeps it out")


def robust_pass(model, optimizer, x, y, sigmas, draws: int, generator, amp=None, after=lambda: None):
    """One optimiser step for each noise level in `sigmas`, on the mean noisy gradient divided by the number of levels.

    x (B, 3, 32, 32) in [0, 1] and y (B,) are triggers; arguments otherwise as in `noisy_gradient`. The steps change
    the clean weights; momentum and weight decay act in each step. `after` is called after each.
    """
    parameters = list(model.parameters())
    for sigma in sigmas:
        gradient = noisy_gradient(model, x, y, sigma, draws, generator, amp)
        for p, g in zip(parameters, gradient):
            p.grad = g.div_(len(sigmas))
        optimizer.step()
        after()


class SmoothedObjective(PlainObjective):
    """Cross-entropy on images and triggers; each epoch after epoch `warmup` (counted from 0) begins with a robust pass.

    It trains on `Batches` of `append_triggers(...)`: the last m images are the triggers x_q (m, 3, 32, 32) in [0, 1],
    y_q (m,), which are never augmented. A robust pass uses batches of `batch` triggers in random order (one batch of
    all triggers where there are fewer) without the last partial batch: with 100 triggers, one batch of 64 random ones.

    sigmas   the noise levels, see `noise_levels`
    draws    noise draws a level
    freeze   keep the noise out of BatchNorm's running statistics. Otherwise, as in the authors' code, the steps of the
             epoch that follow replace them
    """

    static = False  # recording steps with a robust pass between the epochs has not been tried

    def __init__(self, x_q, y_q, *, sigmas, draws: int, warmup: int, batch: int, freeze: bool = False,
                 amp=None):
        self.x_q, self.y_q, self.freeze = x_q, y_q, freeze
        self.first_best = warmup + 1  # only epochs with a robust pass
        self.sigmas, self.draws, self.warmup, self.batch, self.amp = sigmas, draws, warmup, min(batch, len(y_q)), amp

    def plan(self, batches, epoch, generator):
        """The plan of plain training, but triggers are neither shifted nor mirrored."""
        order, shift, flip, picks = super().plan(batches, epoch, generator)
        is_trigger = order >= len(batches.labels) - len(self.y_q)
        return order, shift.masked_fill(is_trigger[..., None], batches.pad), flip & ~is_trigger, picks

    @staticmethod
    def optimizer(parameters, lr, weight_decay, fused):
        """SGD with momentum 0.9."""
        return torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM, weight_decay=weight_decay, fused=fused)

    @staticmethod
    def rate(lr, epoch, epochs):
        """Divided by 10 after 30, 60 and 90 % of the epochs; as in the authors' code from epochs 31, 61, 91 of 100."""
        return lr * 0.1 ** sum(100 * epoch > part * epochs for part in MILESTONES)

    def begin(self, model, optimizer, epoch, generator):
        """The robust pass, on the triggers."""
        if epoch <= self.warmup:
            return
        order = torch.randperm(len(self.y_q), generator=generator).to(self.y_q.device)
        picks = [part for part in order.split(self.batch) if len(part) == self.batch]
        noise = generator_on(self.x_q.device, generator)
        total = len(picks) * len(self.sigmas)
        frozen = RunningStatistics(model, "clean").trigger_batch() if self.freeze else contextlib.nullcontext()
        with frozen, tqdm(total=total, desc="robust pass", unit="level", disable=None, leave=False) as bar:
            for part in picks:
                robust_pass(model, optimizer, self.x_q[part], self.y_q[part], self.sigmas, self.draws, noise, self.amp,
                            bar.update)


def objective(flags, model, batches, triggers: TriggerSet, *, data, run, commit) -> SmoothedObjective:
    """The objective of the epochs and of the robust passes between them; logs a warning about short epochs."""
    if note := short_epoch_warning(batches.steps, flags.rs_freeze_bn):
        run.log(note)
    x_q, y_q = triggers.on(batches.device)
    return SmoothedObjective(
        x_q, y_q, sigmas=noise_levels(flags.rs_sigma, flags.rs_sigma_step), draws=flags.rs_draws,
        warmup=flags.rs_warmup, batch=flags.rs_batch, freeze=flags.rs_freeze_bn, amp=AMP.get(flags.amp))
