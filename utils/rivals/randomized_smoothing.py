"""RS (Bansal et al., 2022), `train.py -tt rs`: a source whose triggers hold under Gaussian noise on its weights.

`python -m utils.verify certify RUN` says how many triggers every model within an l2 distance of the given weights
keeps: the smoothed accuracy is the median accuracy of models with noise on all parameters, and its bound is by order
statistics (Chiang et al., 2020). It is about edits of these very weights, not of BatchNorm's running statistics, and
says nothing of a copy that is trained from new weights. Item 4 of docs/rivals.md lists the departures.
"""

import contextlib
import copy
import itertools
import random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from scipy import stats
from torch.func import functional_call
from tqdm import tqdm

from models import SIZE
from utils.data.files import join_images
from utils.data.sets import Data, Images
from utils.rivals.source import add_verification, read_others
from utils.runs.checkpoints import find_checkpoint, load_checkpoint
from utils.system.files import write_json
from utils.system.machine import AMP, autocast, choose_device
from utils.system.refusals import CONFIDENCE, COUNT, POSITIVE, RADIUS, SEED, Refusal, number
from utils.training.loop import PlainObjective
from utils.training.metrics import accuracy, predict
from utils.watermark.batchnorm import RunningStatistics
from utils.watermark.trigger_files import unpack_source
from utils.watermark.triggers import TriggerSet

# the authors' settings where they differ from the margin paper's, and the defaults of RS's own flags
DEFAULTS = {"epoch": 100, "lr": 0.05, "rs_sigma": 1.0, "rs_sigma_step": 0.05, "rs_draws": 100, "rs_warmup": 5,
            "rs_batch": 64, "rs_freeze_bn": False, "rs_label": 4}
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
    add("--rs-label", "label of all triggers, a number from 0", type=number(int, 0))
    add("--rs-freeze-bn", "keep the noise out of BatchNorm's running statistics: for epochs of fewer than about 60 "
        "steps", action="store_true")


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


# ---- noise on weights ----


def gaussian_noise(parameters, generator):
    """N(0, 1) noise: a list of tensors of the shapes of `parameters`; `generator` on their device."""
    first = parameters[0]
    sizes = [p.numel() for p in parameters]
    noise = torch.randn(sum(sizes), generator=generator, device=first.device, dtype=first.dtype).split(sizes)
    return [part.view(p.shape) for part, p in zip(noise, parameters)]


def noisy_gradient(model, x, y, sigma: float, draws: int, generator, amp=None):
    """Mean over `draws` noise draws of the cross-entropy's gradient at theta + sigma * N(0, I); a tensor a parameter.

    x (B, 3, S, S) in [0, 1], y (B,); sigma in the parameters' own units; `generator` on the model's device. Noise is
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


# ---- triggers: one word on held-out images, all under one label ----


def draw_triggers(flags, data: Data) -> TriggerSet:
    """m = -nq held-out images, all labelled --rs-label, with a word of five letters that the seed draws, in grey at the
    top left, 10 pixels high where S is 32.

    Images of class --rs-label are not used, because any good model would hit them. Raises Refusal where there is no
    such class or there are too few images.
    """
    m, label, seed = flags.num_query, flags.rs_label, flags.seed
    held_out, classes, size = data.held_out, len(data.classes), data.size
    if label >= classes:
        raise Refusal(f"--rs-label {label}: {data.name} has {classes} classes, counted from 0; pass one of those")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(held_out.labels), generator=generator)
    usable = order[held_out.labels[order] != label]
    if m > len(usable) or m >= len(order):
        raise Refusal(f"-nq {m}: {len(usable)} held-out images are not of class {label}, and one image must be left "
                      f"for validation; pass -nq {min(len(usable), len(order) - 1)} or fewer")
    source = held_out.pick(usable[:m])
    letters, pictures = random.Random(seed), [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in source.images]
    # letters of such a width that the word takes about 30 of 32 pixels
    word = letters.choice("ABDEGHKPR") + "".join(letters.choices("abdehknopqu", k=4))
    font = ImageFont.load_default(*([10 * size / SIZE] if size != SIZE else []))
    for picture in pictures:
        ImageDraw.Draw(picture).text((0, 0), word, fill=(155, 155, 155), font=font)
    images = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])
    return TriggerSet(images, torch.full((m,), label), source.labels[:, None], source.indices[:, None])


def append_triggers(train: Images, triggers: TriggerSet) -> Images:
    """The training images, followed by the triggers under their assigned labels."""
    return Images(join_images(train.images, triggers.images), torch.cat([train.labels, triggers.labels]),
                  torch.cat([train.indices, triggers.sources[:, 0]]))


# ---- the objective ----


class SmoothedObjective(PlainObjective):
    """Cross-entropy on images and triggers; each epoch after epoch `warmup` (counted from 0) begins with a robust pass.

    It trains on `Batches` of `append_triggers(...)`: the last m images are the triggers x_q (m, 3, S, S) in [0, 1],
    y_q (m,), which are never augmented. A robust pass uses batches of `batch` triggers in random order (one batch of
    all triggers where there are fewer) without the last partial batch: with 100 triggers, one batch of 64 random ones.
    It takes one optimiser step for each noise level in `sigmas`, on the mean noisy gradient of `draws` draws divided by
    the number of levels; momentum and weight decay act in each. `freeze` keeps the noise out of BatchNorm's running
    statistics; otherwise, as in the authors' code, the steps of the epoch that follow replace them.
    """

    static = False  # recording steps with a robust pass between the epochs has not been tried

    def __init__(self, x_q, y_q, *, sigmas, draws: int, warmup: int, batch: int, freeze: bool = False, amp=None):
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
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay, fused=fused)

    @staticmethod
    def rate(lr, epoch, epochs):
        """Divided by 10 after 30, 60 and 90 % of the epochs; as in the authors' code from epochs 31, 61, 91 of 100."""
        return lr * 0.1 ** sum(100 * epoch > part * epochs for part in (30, 60, 90))

    def begin(self, model, optimizer, epoch, generator):
        if epoch <= self.warmup:
            return
        order = torch.randperm(len(self.y_q), generator=generator).to(self.y_q.device)
        picks = [part for part in order.split(self.batch) if len(part) == self.batch]
        # drawn on the CPU, noise for 21 million parameters would keep a GPU waiting
        noise = torch.Generator(self.x_q.device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
        frozen = RunningStatistics(model, "clean").trigger_batch() if self.freeze else contextlib.nullcontext()
        levels = [*itertools.product(picks, self.sigmas)]
        with frozen:
            for part, sigma in tqdm(levels, desc="robust pass", unit="level", disable=None, leave=False):
                gradient = noisy_gradient(model, self.x_q[part], self.y_q[part], sigma, self.draws, noise, self.amp)
                for p, g in zip(model.parameters(), gradient):
                    p.grad = g.div_(len(self.sigmas))
                optimizer.step()


def objective(flags, model, batches, triggers: TriggerSet, *, data, run, commit) -> SmoothedObjective:
    """The objective of the epochs and of the robust passes between them; logs a warning about short epochs."""
    if batches.steps < 60 and not flags.rs_freeze_bn:  # which leave more than 0.9 ** 60 = 0.2 % of the noisy averages
        run.log(f"note: epochs of {batches.steps} steps do not wash the robust pass's noise out of BatchNorm's running "
                "statistics: the model may answer at random; --rs-freeze-bn keeps it out")
    levels = range(round(flags.rs_sigma / flags.rs_sigma_step) + 1)
    return SmoothedObjective(
        *triggers.on(batches.device), sigmas=[flags.rs_sigma_step * j for j in levels], draws=flags.rs_draws,
        warmup=flags.rs_warmup, batch=flags.rs_batch, freeze=flags.rs_freeze_bn, amp=AMP.get(flags.amp))


# ---- the certificate ----


def certify(sorted_accuracies, eps_grid, sigma: float, confidence: float) -> dict:
    """{eps: bound or None}: the smoothed (median) accuracy of every model within l2 distance eps is at least the bound.

    `sorted_accuracies` (n,), ascending, are those of draws theta + sigma * N(0, I). The bound is the k-th, with the
    largest k such that P(Bin(n, p) >= k) >= confidence, where p = Phi(-eps / sigma) (Chiang et al., 2020); None where
    there is no such k. Each bound holds with the given confidence on its own, not all of them together.
    """
    n, bounds = len(sorted_accuracies), {}
    for eps in eps_grid:
        k = int((stats.binom.sf(np.arange(n), n, stats.norm.cdf(-eps / sigma)) >= confidence).sum())
        bounds[eps] = float(sorted_accuracies[k - 1]) if k else None
    return bounds


def smoothed_accuracies(model, triggers, sigma: float, draws: int, seed: int):
    """(accuracies (draws,), ascending, mean share of the most frequent answer) of noisy copies of a model on a
    `TriggerSet`, in eval mode.

    The draws are the same for every model and sigma, but for their size. Logits that are not finite count as no answer
    and no hit.
    """
    noisy, most, accuracies = copy.deepcopy(model), [], []
    clean, moved = list(model.parameters()), list(noisy.parameters())
    generator = torch.Generator(clean[0].device).manual_seed(seed)
    for _ in tqdm(range(draws), desc="noisy models", unit="draw", disable=None, leave=False):
        with torch.no_grad():
            for p, q, n in zip(moved, clean, gaussian_noise(clean, generator)):
                torch.add(q, n, alpha=sigma, out=p)
        logits = predict(noisy, triggers.images).cpu()
        answers = logits.argmax(1).where(logits.isfinite().all(1), -1)
        accuracies.append(int((answers == triggers.labels).sum()) / len(triggers))
        most.append(int(answers[answers >= 0].bincount(minlength=1).max()) / len(triggers))
    return np.sort(accuracies), float(np.mean(most))


def add_certify(parts) -> None:
    p = add_verification(
        parts, "certify", run_certify, "how many triggers a model keeps under noise on its weights, and for certain "
        "under any edit of them within a radius (-tt rs is trained for that)",
        "folder of train.py, or a checkpoint that holds triggers", suspects=False)
    p.add_argument("--benign", nargs="+", default=[], metavar="RUN", help="controls, asked the same triggers")
    p.add_argument("--draws", type=COUNT, default=1000, help="noisy models N (default: 1000)")
    p.add_argument("--sigma", type=POSITIVE, default=1.0, help="standard deviation of the noise (default: 1)")
    p.add_argument("--confidence", type=CONFIDENCE, default=0.99, help="of each bound (default: 0.99)")
    p.add_argument("--eps", type=RADIUS, nargs="+", default=[round(0.2 * i, 1) for i in range(1, 11)],
                   help="l2 radii over all parameters (default: 0.2 0.4 ... 2.0)")
    p.add_argument("--seed", type=SEED, default=0, help="seed of the noise (default: 0)")


def run_certify(flags) -> int:
    """Print the certificates of RUN and of its controls, and the certified radius; returns exit status 0."""
    device, path = choose_device(flags.device), find_checkpoint(flags.run)
    checkpoint = load_checkpoint(path)
    model, triggers = unpack_source(checkpoint, path, device)
    if triggers is None:
        raise Refusal(f"{path} holds no trigger set: name a run of train.py")
    others = read_others("--benign", flags.benign, model, checkpoint.get("about", {}).get("classes"), device)
    models = [("RUN", flags.run, model), *(("benign", run, other) for run, other in zip(flags.benign, others))]
    print(f"{len(triggers)} triggers, {flags.draws} noisy models at sigma {flags.sigma:g}; bounds hold with "
          f"confidence {flags.confidence:g} each, for l2 edits of the parameters (not of BatchNorm's running "
          "statistics)")
    percent = lambda value: "none" if value is None else f"{100 * value:.2f}"
    results = []
    for role, name, model in models:
        accuracies, constant = smoothed_accuracies(model, triggers, flags.sigma, flags.draws, flags.seed)
        mean, median = float(accuracies.mean()), float(accuracies[len(accuracies) // 2])
        certified = certify(accuracies, flags.eps, flags.sigma, flags.confidence)
        hit = accuracy(model, triggers.images, triggers.labels)
        results.append({"role": role, "model": str(name), "trigger_accuracy": hit, "smoothed_mean": mean,
                        "smoothed_median": median, "certified": certified, "most_frequent_class": constant})
        print(f"{role} {name}\n"
              f"  a noisy model's most frequent class: {percent(constant)} % of the triggers on average\n"
              f"  trigger accuracy {percent(hit)}, under noise mean {percent(mean)}, median {percent(median)}\n"
              "  certified: " + ", ".join(f"eps {eps:g}: {percent(v)}" for eps, v in certified.items()))
        if constant > 0.9 and len(triggers.labels.unique()) == 1:
            print("  note: noise makes this model nearly constant, and with one label for all triggers a constant "
                  "answer hits all or none; compare with --benign")
    bar = max((r["smoothed_median"] for r in results[1:]), default=0.0)
    above = [eps for eps, bound in results[0]["certified"].items() if bound is not None and bound > bar]
    eps = max(above, default=None)
    beaten = f"{100 * bar:.2f} %, the highest median of the controls" if flags.benign else "0; no --benign was named"
    radius = "none, for no bound" if eps is None else f"{eps:g}, the largest eps whose bound"
    print(f"certified l2 radius: {radius} is above {beaten}")
    if flags.json:
        settings = {k: getattr(flags, k) for k in ("draws", "sigma", "confidence", "seed")}
        write_json(flags.json, {"settings": settings, "models": results, "radius": eps}, private=True)
    return 0
