"""The rival RS: certified watermarks by randomised smoothing (Bansal et al., 2022), noise on the parameters.

`Smoothed` trains a source whose triggers hold under Gaussian noise on its weights (`train.py -tt rs`);
`python -m utils.verify certify RUN` measures how much of that is certain. The certificate is about edits of these very
weights within a radius, and says nothing of a surrogate that is trained from new ones.

Other than in the authors' code: noisy weights are copies (adding and subtracting drifts), all triggers are asked, not a
random 64, no noisy accuracy is measured during training, the triggers are drawn on held-out images, all images are
trained on (they: half, see --train-size), in batches of 128 (256), and CIFAR-100 has no schedule of its own.
"""

import contextlib
import copy
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch.func import functional_call
from tqdm import tqdm

from utils import metrics, report
from utils.args import CONFIDENCE, COUNT, POSITIVE, RADIUS, SEED
from utils.batchnorm import RunningStatistics
from utils.checkpoint import find, load, read_model, unpack
from utils.data import Batches, Data, Images
from utils.files import check_output, write_json
from utils.losses import Plain
from utils.refuse import Refusal
from utils.run import choose_device
from utils.triggers import Trigger

WASHED = 60  # steps after which 0.9 ** 60 = 0.2 % of BatchNorm's running statistics is left
GREY, CORNER = (155, 155, 155), (0, 0)
MOMENTUM = 0.9
MILESTONES = (30, 60, 90)  # per cent of the epochs

# ---- triggers -----------------------------------------------------------------------------------------------


def triggers(data: Data, m: int, label: int, kind: str, seed: int):
    """One pattern on m held-out images, all labelled `label`: (Trigger, the images that are left).

    `text`: a word of five letters that the seed draws, in grey at the top left, Pillow's built-in font (the authors:
    "Adobe", Verdana). `noise`: one N(0, 1) tensor added to every image, clipped to [0, 1]. Images of class `label` are
    left out, as any model would hit those. Raises Refusal where class or images are missing.
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
        noise = torch.randn(3, 32, 32, generator=generator)
        images = (source.images / 255 + noise).clamp(0, 1).mul(255).round().to(torch.uint8)
    else:
        letters = random.Random(seed)
        word = letters.choice("ABDEGHKPR") + "".join(letters.choices("abdehknopqu", k=4))  # about 30 pixels wide
        images = stamp(source.images, word)
    labels = torch.full((m,), label)
    trigger = Trigger(images, labels, source.labels[:, None], source.indices[:, None])
    return trigger, held_out.pick(order[torch.isin(order, taken, invert=True)])


def stamp(images, word: str):
    """Write `word` on uint8 images (m, 3, 32, 32)."""
    from PIL import Image, ImageDraw, ImageFont

    font, stamped = ImageFont.load_default(), []
    for image in images:
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        ImageDraw.Draw(picture).text(CORNER, word, fill=GREY, font=font)
        stamped.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    return torch.stack(stamped)


def united(train: Images, trigger: Trigger) -> Images:
    """The training images, and behind them the triggers under their assigned labels."""
    return Images(torch.cat([train.images, trigger.images]), torch.cat([train.labels, trigger.labels]),
                  torch.cat([train.indices, trigger.sources[:, 0]]))


# ---- training -----------------------------------------------------------------------------------------------


def levels(sigma_max: float, step: float) -> list[float]:
    """The noise levels 0, step, ..., sigma_max."""
    return [step * j for j in range(round(sigma_max / step) + 1)]


def generator_on(device, generator) -> torch.Generator:
    """A generator on the device, seeded by one of the CPU: drawing 21 million numbers there takes a GPU's patience."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def gaussian(parameters, generator):
    """N(0, 1) noise, a tensor for each of `parameters`, in their shapes."""
    first = parameters[0]
    sizes = [p.numel() for p in parameters]
    noise = torch.randn(sum(sizes), generator=generator, device=first.device, dtype=first.dtype).split(sizes)
    return [part.view(p.shape) for part, p in zip(noise, parameters)]


def noisy_gradient(model, x, y, sigma: float, draws: int, generator, amp: bool = False):
    """Mean gradient of the cross-entropy of (x, y) at `draws` points theta + sigma * N(0, I), a tensor a parameter.

    x (B, 3, 32, 32) in [0, 1], y (B,); sigma in the weights' own units; `generator` on the model's device. Every
    parameter is noisy, scale and shift of BatchNorm too. The parameters themselves are not touched; in train mode
    BatchNorm's running statistics follow the noisy passes, as officially.
    """
    names, clean = zip(*((name, p.detach()) for name, p in model.named_parameters()))
    total = [torch.zeros_like(p) for p in clean]
    for _ in range(draws):
        moved = [torch.add(p, n, alpha=sigma).requires_grad_() for p, n in zip(clean, gaussian(clean, generator))]
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            logits = functional_call(model, dict(zip(names, moved)), (x,))
        loss = F.cross_entropy(logits.float() if amp else logits, y)
        torch._foreach_add_(total, torch.autograd.grad(loss, moved), alpha=1 / draws)
    return total


def warning(steps: int, freeze: bool) -> str | None:
    """A word of caution where an epoch's steps do not wash the noise out of the running statistics."""
    if freeze or steps >= WASHED:
        return None
    return (f"note: epochs of {steps} steps do not wash the robust pass's noise out of BatchNorm's running statistics: "
            "the model may answer at random; --rs-freeze-bn keeps it out")


def robust_pass(model, optimizer, x, y, sigmas, draws: int, generator, amp: bool = False, after=lambda: None):
    """One optimiser step a noise level, each on the mean noisy gradient divided by the number of levels.

    The steps are taken at the clean weights; momentum and weight decay act in each. `after` is called after each.
    """
    parameters = list(model.parameters())
    for sigma in sigmas:
        gradient = noisy_gradient(model, x, y, sigma, draws, generator, amp)
        for p, g in zip(parameters, gradient):
            p.grad = g.div_(len(sigmas))
        optimizer.step()
        after()


class Smoothed(Plain):
    """Cross-entropy on data and triggers, and from epoch `warmup` + 1 (counted from 0) on a robust pass before it.

    Trained on `Batches` of `united(...)` images, the last m of which are the triggers x_q (m, 3, 32, 32) in [0, 1],
    y_q (m,); these are never augmented. A robust pass takes batches of `batch` triggers in random order, of all where
    there are fewer, and drops the last partial one: with 100 triggers it is one batch of a random 64. The epoch's
    own batches wash the noise out of BatchNorm's running statistics, as officially; with `freeze` it never enters.
    """

    static = False  # no step has been recorded yet with a pass between the epochs

    def __init__(self, x_q, y_q, *, sigmas, draws: int, warmup: int, batch: int, freeze: bool = False,
                 amp: bool = False):
        self.x_q, self.y_q, self.freeze = x_q, y_q, freeze
        self.sigmas, self.draws, self.warmup, self.batch, self.amp = sigmas, draws, warmup, min(batch, len(y_q)), amp

    def plan(self, batches, epoch, generator):
        """As ever, but triggers are neither shifted nor mirrored."""
        order, shift, flip, picks = super().plan(batches, epoch, generator)
        trigger = order >= len(batches.labels) - len(self.y_q)
        return order, shift.masked_fill(trigger[..., None], Batches.PAD), flip & ~trigger, picks

    def optimizer(self, parameters, lr, weight_decay, fused):
        """SGD with momentum."""
        return torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM, weight_decay=weight_decay, fused=fused)

    def rate(self, lr, epoch, epochs):
        """It falls by 10 after 30, 60 and 90 % of the epochs, one epoch late as officially: 31, 61 and 91 of 100."""
        return lr * 0.1 ** sum(100 * epoch > part * epochs for part in MILESTONES)

    def eligible(self, epoch):
        """A model of before the first robust pass is not what is reported."""
        return epoch > self.warmup

    def begin(self, model, forward, optimizer, epoch, generator):
        """The robust pass."""
        if epoch <= self.warmup:
            return
        order = torch.randperm(len(self.y_q), generator=generator).to(self.y_q.device)
        picks = [part for part in order.split(self.batch) if len(part) == self.batch]
        noise = generator_on(self.x_q.device, generator)
        total = len(picks) * len(self.sigmas)
        still = RunningStatistics(model, "clean").trigger_batch() if self.freeze else contextlib.nullcontext()
        with still, tqdm(total=total, desc="robust pass", unit="level", disable=None, leave=False) as bar:
            for part in picks:
                robust_pass(model, optimizer, self.x_q[part], self.y_q[part], self.sigmas, self.draws, noise, self.amp,
                            bar.update)


# ---- certificate --------------------------------------------------------------------------------------------


def order_index(n: int, eps: float, sigma: float, confidence: float) -> int | None:
    """Position, from 0, in n sorted draws of a lower bound of their Phi(-eps / sigma) quantile; None where none is.

    It is k - 1 with the largest k such that P(Bin(n, p) >= k) >= confidence (Chiang et al., 2020).
    """
    tail = stats.binom.sf(np.arange(n), n, stats.norm.cdf(-eps / sigma))  # P(Bin(n, p) >= k) of k = 1, ..., n
    k = int((tail >= confidence).sum())
    return k - 1 if k else None


def certify(sorted_accuracies, eps_grid, sigma: float, confidence: float) -> dict:
    """{eps: bound or None}: the median smoothed accuracy of every model within l2 distance eps is at least the bound.

    `sorted_accuracies` ascending, of draws theta + sigma * N(0, I); each bound holds with the given confidence alone.
    """
    n = len(sorted_accuracies)
    positions = {eps: order_index(n, eps, sigma, confidence) for eps in eps_grid}
    return {eps: None if k is None else float(sorted_accuracies[k]) for eps, k in positions.items()}


def smoothed(model, images, labels, classes: int, sigma: float, draws: int, generator):
    """Accuracies (draws,), ascending, under noise on the parameters in eval mode, and how often each class is
    answered, (draws, classes) shares in the order drawn. An answer that is not finite is no answer, and no hit."""
    noisy, answers, accuracies = copy.deepcopy(model), [], []
    clean, moved = list(model.parameters()), list(noisy.parameters())
    for _ in tqdm(range(draws), desc="noisy models", unit="draw", disable=None, leave=False):
        with torch.no_grad():
            for p, q, n in zip(moved, clean, gaussian(clean, generator)):
                torch.add(q, n, alpha=sigma, out=p)
        logits = metrics.predict(noisy, images).cpu()
        answer = logits.argmax(1).where(logits.isfinite().all(1), -1)
        accuracies.append(int((answer == labels.cpu()).sum()) / len(labels))
        answers.append(answer[answer >= 0].bincount(minlength=classes) / len(labels))
    return np.sort(accuracies), torch.stack(answers).numpy()


def arguments(parts) -> None:
    """Declare `certify` among the commands of utils.verify."""
    p = parts.add_parser("certify", help="how many triggers a model keeps under noise on its weights, and for certain "
                                         "under any edit of them within a radius (-tt rs is trained for that)")
    p.set_defaults(call=run)
    p.add_argument("run", metavar="RUN", help="folder of train.py, or a checkpoint that holds triggers")
    p.add_argument("--benign", nargs="+", default=[], metavar="RUN", help="controls, asked the same triggers")
    p.add_argument("--draws", type=COUNT, default=1000, help="noisy models N (default: 1000)")
    p.add_argument("--sigma", type=POSITIVE, default=1.0, help="standard deviation of the noise (default: 1)")
    p.add_argument("--confidence", type=CONFIDENCE, default=0.99, help="of each bound (default: 0.99)")
    p.add_argument("--eps", type=RADIUS, nargs="+", default=[round(0.2 * i, 1) for i in range(1, 11)],
                   help="l2 radii over all parameters (default: 0.2 0.4 ... 2.0)")
    p.add_argument("--seed", type=SEED, default=0, help="seed of the noise (default: 0)")
    p.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu", "mps"), help="where to compute")
    p.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")


def run(args) -> int:
    """Print the certificate of RUN and its controls; 0."""
    check_output(args.json, "--json")
    device, path = choose_device(args.device), find(args.run, None)
    model, trigger = unpack(load(path), path, device)
    if trigger is None:
        raise Refusal(f"{path} holds no trigger set: name a run of train.py")
    classes = len(model[1].linear.bias)
    judge = report.Judge(trigger, classes, False)
    models = [("RUN", args.run, path, model)]
    for control in args.benign:
        path = find(control, None)
        model = read_model(path, device)
        models.append(("benign", control, path, model))
    asked = [judge.ask(model, path) for _, _, path, model in models]  # refuses other classes before the long part
    settings = {"draws": args.draws, "sigma": args.sigma, "confidence": args.confidence, "seed": args.seed}
    print(f"{len(trigger)} triggers, {args.draws} noisy models at sigma {args.sigma:g}; bounds hold with confidence "
          f"{args.confidence:g} each, for l2 edits of the parameters (not of BatchNorm's running statistics)")
    results = []
    for (role, name, path, model), logits in zip(models, asked):
        generator = torch.Generator(device).manual_seed(args.seed)
        found, shares = smoothed(model, trigger.images, trigger.labels, classes, args.sigma, args.draws, generator)
        result = {
            "role": role, "model": str(name), "checkpoint": str(path),
            "trigger_accuracy": metrics.hits(logits, trigger.labels) / len(trigger),
            "smoothed_mean": float(found.mean()), "smoothed_median": float(found[len(found) // 2]),
            "certified": certify(found, args.eps, args.sigma, args.confidence),
            "histogram": shares.mean(0).tolist(), "most_frequent_class": float(shares.max(1).mean()),
        }
        results.append(result)
        print(describe(result, one_label=len(set(trigger.labels.tolist())) == 1))
    bar = max((r["smoothed_median"] for r in results[1:]), default=0.0)
    eps = radius(results[0]["certified"], bar)
    beaten = f"{100 * bar:.2f} %, the highest median of the controls" if args.benign else "0; no --benign was named"
    found = "none, for no bound" if eps is None else f"{eps:g}, the largest eps whose bound"
    print(f"certified l2 radius: {found} is above {beaten}")
    if args.json:
        write_json(args.json, {"settings": settings, "models": results, "radius": eps}, private=True)
    return 0


def radius(certified: dict, bar: float) -> float | None:
    """The largest eps whose bound is above `bar`, a share of the triggers; None where none is."""
    return max((eps for eps, bound in certified.items() if bound is not None and bound > bar), default=None)


def describe(result: dict, one_label: bool) -> str:
    """A result as text, rates in per cent."""
    percent = lambda value: "none" if value is None else f"{100 * value:.2f}"
    order = sorted(range(len(result["histogram"])), key=lambda c: -result["histogram"][c])
    shown = ", ".join(f"{c}: {percent(result['histogram'][c])}" for c in order[:10])
    parts = [
        f"{result['role']} {result['model']}",
        f"  answers under noise, % by class: {shown}{', ...' if len(order) > 10 else ''}",
        f"  a noisy model's most frequent class: {percent(result['most_frequent_class'])} % of the triggers on average",
        f"  trigger accuracy {percent(result['trigger_accuracy'])}, under noise mean {percent(result['smoothed_mean'])}"
        f", median {percent(result['smoothed_median'])}",
        "  certified: " + ", ".join(f"eps {eps:g}: {percent(v)}" for eps, v in result["certified"].items()),
    ]
    if one_label and result["most_frequent_class"] > 0.9:
        parts.append("  note: noise makes this model nearly constant, and with one label for all triggers a constant "
                     "answer hits all or none; compare with --benign")
    return "\n".join(parts)
