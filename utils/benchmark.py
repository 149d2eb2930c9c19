"""What a step and an epoch cost, ours against a literal rendering of the official code: `python -m utils.benchmark`.

All contenders are timed in one process, by turns, so that a ratio holds on a busy machine too: each round times every
contender once, a figure is the median of the rounds, a ratio the median of the rounds' own ratios. The images are
noise; no figure depends on them.
"""

import argparse
import itertools
import math
import re
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

import models
from utils.attacks.stealing import ExtractionObjective, soft_loss
from utils.data.batches import Batches
from utils.data.sets import Images
from utils.system.files import check_output_file, write_json
from utils.system.machine import AMP, add_device_flag, choose_device, describe_process, prepare_torch
from utils.system.refusals import COUNT, Parser, number, refuse_in_one_sentence
from utils.training.loop import Step
from utils.training.metrics import accuracy
from utils.training.speed import WARM_UP, autocast_forward
from utils.watermark.margin import WatermarkObjective, ascend

OBJECTIVES = ("margin", "base", "soft")
LR, WEIGHT_DECAY, WEIGHT, PIXEL = 0.1, 1e-4, 0.1, 1 / 255
EPOCH, VALIDATION, TEST, CLASSES = 49_000, 1000, 10_000, 10  # images and classes of CIFAR-10
SECONDS = 0.5  # each timing repeats its call for about this long
SIDE = {"cuda": 8192, "mps": 1024, "cpu": 1024}  # of the square matrices whose product is timed


def set_up(argv=None, description=None, prog="utils.benchmark") -> tuple[argparse.Namespace, torch.device]:
    """The flags of a command line (default: this process's), and the device, with torch prepared for timing on it."""
    p = Parser(prog=f"python -m {prog}", description=description,
               formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--model", default="res34", choices=models.NAMES, help="architecture")
    p.add_argument("--width", type=COUNT, default=64, help="channels of the first stage")
    p.add_argument("--batch-size", type=number(int, 1, EPOCH), default=128, help="images a step")
    p.add_argument("--trigger-batch", type=COUNT, default=25, help="triggers a step")
    p.add_argument("-nq", "--num-query", type=COUNT, default=100, help="triggers")
    p.add_argument("--steps", type=COUNT, default=5, help="ascent steps K")
    add_device_flag(p)
    p.add_argument("--rounds", type=COUNT, default=5, help="timings of each contender")
    p.add_argument("--objectives", nargs="+", default=OBJECTIVES, choices=OBJECTIVES, help="what to time")
    p.add_argument("--ours", action="store_true", help="our steps alone, in seconds: no official rendering, no ratios")
    p.add_argument("--amp", default="bf16", choices=tuple(AMP), help="what the rows named amp compute in")
    p.add_argument("--json", metavar="FILE", help="write rows and ratios there")
    flags = p.parse_args(argv)
    check_output_file(flags.json, "--json", ".json")
    device = choose_device(flags.device)
    prepare_torch(0, deterministic=False)
    return flags, device


# ---- the official code, written again as literally as possible; no training uses it ----
#
# Contiguous fp32; an ascent that back-propagates to all weights and discards those gradients; a teacher whose
# gradients stay enabled; SGD of one parameter at a time; numbers fetched from the device at every step; images decoded
# and augmented one by one in two loader processes; and the whole trigger set evaluated again with every batch of
# validation and test images. x is (B, 3, 32, 32) in [0, 1], y (B,); triggers are x_q (b, 3, 32, 32) and y_q (b,).

AUGMENT = transforms.Compose(
    [transforms.RandomHorizontalFlip(), transforms.RandomCrop(32, padding=4), transforms.ToTensor()])


def official_watermark_step(model, optimizer, x, y, x_q, y_q, *, weight: float, steps: int, step_size: float):
    """One step of the margin method (Eq. 4), or of ERM with triggers (Eq. 3) where `steps` is 0.

    Returns (loss, accuracy, trigger loss, trigger accuracy) as numbers. step_size is in pixel units.
    """
    model.train()
    logits = model(x)
    delta = torch.zeros_like(x_q)
    for _ in range(steps):
        delta.requires_grad_()
        F.cross_entropy(model(x_q + delta), y_q).backward()
        with torch.no_grad():
            delta = delta + step_size * delta.grad.sign()
            delta = (x_q + delta).clamp(0, 1) - x_q
        optimizer.zero_grad()
    logits_q = model((x_q + delta).detach())
    losses = F.cross_entropy(logits, y, reduction="none")
    losses_q = F.cross_entropy(logits_q, y_q, reduction="none")
    optimizer.zero_grad()
    torch.cat([losses, weight * losses_q]).mean().backward()
    optimizer.step()
    right, right_q = (logits.argmax(1) == y).float().mean(), (logits_q.argmax(1) == y_q).float().mean()
    return losses.mean().item(), right.item(), losses_q.mean().item(), right_q.item()


def official_soft_step(model, teacher, optimizer, x, y):
    """One step of soft extraction (Eq. 2): (loss, accuracy). The teacher is in eval mode with gradients enabled."""
    model.train()
    logits, answers = model(x), teacher(x)
    loss = F.kl_div(F.log_softmax(logits, dim=1), F.softmax(answers, dim=1), reduction="batchmean")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), (logits.argmax(1) == y).float().mean().item()


def decode(items):
    """[(uint8 pixels (32, 32, 3), label), ...] -> x, y: decoded by PIL, flipped and cropped, one at a time."""
    return torch.stack([AUGMENT(Image.fromarray(pixels)) for pixels, _ in items]), torch.tensor([y for _, y in items])


def rows_without_end(objective, batches):
    """Rows of an epoch's plan, see `Objective.plan`, repeated without end."""
    return itertools.cycle(list(zip(*objective.plan(batches, 0, torch.Generator().manual_seed(1)))))


class Contenders:
    """Our step and the official one on the same model, images and triggers, for the flags of `set_up`.

    x_q, y_q  the triggers, (num_query, 3, 32, 32) in [0, 1] and (num_query,), on the device
    steps     steps of an epoch of CIFAR-10
    """

    def __init__(self, flags, device):
        self.flags, self.device, self.steps = flags, device, EPOCH // flags.batch_size
        g, count = torch.Generator().manual_seed(0), max(2048, 8 * flags.batch_size)
        pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=g, dtype=torch.uint8)
        self.images = Images(pixels, torch.randint(0, CLASSES, (count,), generator=g), torch.arange(count))
        self.x_q = torch.rand(flags.num_query, 3, 32, 32, generator=g).to(device)
        self.y_q = torch.randint(0, CLASSES, (flags.num_query,), generator=g).to(device)
        self.batches = Batches(self.images, flags.batch_size, True, device)

    def model(self, placed=True):
        """A new model, the same weights at every call; `placed`: in the memory format of our training, else plain."""
        torch.manual_seed(0)
        model = models.build(self.flags.model, CLASSES, (0.5,) * 3, (0.25,) * 3, self.flags.width)
        return models.place(model, self.device) if placed else model.to(self.device)

    def our_step(self, name, amp=None):
        """(call, model): a call is one training step in the precision `amp`, with the paper's eps = K/255."""
        model, k = self.model().train(), self.flags.steps if name == "margin" else 0
        if name == "soft":
            source = self.model().requires_grad_(False).eval()
            objective = ExtractionObjective(autocast_forward(source, amp), soft_loss, False)
        else:
            objective = WatermarkObjective(
                model, self.x_q, self.y_q, weight=WEIGHT, reduction="joint", batch=self.flags.trigger_batch,
                bn_stats="paper", ascent=partial(ascend, steps=k, step_size=PIXEL, eps=k * PIXEL) if k else None)
        step = Step(model, objective, self.batches, lr=LR, weight_decay=WEIGHT_DECAY, amp=amp,
                    graph=self.device.type == "cuda")  # nothing is recorded elsewhere
        rows = rows_without_end(objective, self.batches)
        return lambda: step(next(rows)), model

    def official_step(self, name, loader=False):
        """(call, model): a call is one official step, on batches prepared beforehand or made by the official loader."""
        model, teacher = self.model(placed=False).train(), self.model(placed=False).eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, foreach=False, fused=False)
        picks = itertools.cycle(torch.randint(0, self.flags.num_query, (64, self.flags.trigger_batch)).to(self.device))
        if loader:
            items = list(zip(self.images.images.permute(0, 2, 3, 1).contiguous().numpy(), self.images.labels.tolist()))
            batches = itertools.chain.from_iterable(itertools.repeat(DataLoader(  # epoch after epoch
                items, self.flags.batch_size, shuffle=True, drop_last=True, num_workers=2, collate_fn=decode)))
        else:
            plan = self.batches.plan(torch.Generator().manual_seed(1))
            batches = itertools.cycle([tuple(t.contiguous() for t in self.batches.batch(*row)) for row in zip(*plan)])

        def step():
            x, y = (t.to(self.device) for t in next(batches))
            if name == "soft":
                return official_soft_step(model, teacher, optimizer, x, y)
            pick = next(picks)
            return official_watermark_step(model, optimizer, x, y, self.x_q[pick], self.y_q[pick], weight=WEIGHT,
                                           steps=self.flags.steps if name == "margin" else 0, step_size=PIXEL)

        return step, model

    def evaluation_s(self, model, official: bool, amp=None) -> float:
        """Seconds of the evaluation after an epoch.

        Ours: validation images and triggers, under both BatchNorm statistics. The official one repeats all triggers
        with every batch of validation and test images; a tenth of it is timed.
        """
        if not official:
            sets = [[part[:VALIDATION] for part in self.images[:2]], [self.x_q.mul(255).round().byte(), self.y_q]]
            return self._warm_seconds(lambda: [accuracy(model, *one, amp) for one in 2 * sets])
        images = torch.rand((VALIDATION + TEST) // 10, 3, 32, 32, device=self.device)
        right = torch.no_grad()(lambda x, y: (model(x).argmax(1) == y).sum().item())
        model.eval()
        return 10 * self._warm_seconds(lambda: [(right(x, 0), right(self.x_q, self.y_q)) for x in images.split(128)])

    def _warm_seconds(self, call) -> float:
        seconds_per_call(call, 1, self.device)  # the first call searches kernels for its shapes
        return seconds_per_call(call, 2, self.device)

    def flop(self, name, official):
        """FLOP of a step of ours or of the official one, counted in forward passes of one image.

        A forward pass counts 1, a backward pass to the input alone 1, a full backward pass 2. The official ascent and
        the official teacher also compute gradients of weights, which they do not use.
        """
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.model(placed=False).eval()(torch.zeros(1, 3, 32, 32, device=self.device))
        teacher, ascent = (3, 3) if official else (1, 2)
        n, m, k = self.flags.batch_size, self.flags.trigger_batch, self.flags.steps
        passes = {"soft": (3 + teacher) * n, "base": 3 * n + 3 * m, "margin": 3 * n + 3 * m + k * ascent * m}
        return counter.get_total_flops() * passes[name]


def seconds_per_call(call, n, device) -> float:
    """Seconds a call, the mean over n calls in a row, until the device has finished the work they started on it."""
    wait = getattr(torch, device.type).synchronize  # torch.cuda, torch.mps or torch.cpu
    wait()
    began = time.perf_counter()
    for _ in range(n):
        call()
    wait()
    return (time.perf_counter() - began) / n


def time_by_turns(calls: dict, rounds: int, device) -> dict:
    """{name: [seconds of a call in each round]}: every call is warmed up, then repeated for about `SECONDS` a round."""
    repeats, times = {}, {name: [] for name in calls}
    for name, call in calls.items():
        seconds_per_call(call, WARM_UP + 1 if device.type == "cuda" else 1, device)
        repeats[name] = min(200, max(1, math.ceil(SECONDS / seconds_per_call(call, 1, device))))
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds_per_call(call, repeats[name], device))
            time.sleep(0.1)  # loader processes fill their queues now, not while the next contender is timed
    return times


def peak_memory(call, device) -> int | None:
    """Peak memory in bytes of two calls: allocated on a CUDA device, else resident in this process; None if unknown.

    It holds what the process has besides, as other contenders; a step that will be recorded is still an ordinary one.
    """
    if device.type == "cuda":
        seconds_per_call(call, 1, device)  # cuDNN tries algorithms, with memory for each, at its first convolution
        torch.cuda.reset_peak_memory_stats(device)
        seconds_per_call(call, 2, device)
        return torch.cuda.max_memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak that VmHWM reports
        seconds_per_call(call, 2, device)
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
    except OSError:  # no Linux
        return None


def measure_steps(contenders, name) -> tuple[list[dict], dict]:
    """(rows, ratios) for one of `OBJECTIVES`: a row for each contender, and official time / our time.

    A row's `fraction_of_matmul` is its FLOP/s divided by that of a large matrix product in the same precision. An
    epoch is estimated: its number of steps times the seconds of a step, plus the seconds of the evaluation; the
    official step then takes its batches from the official loader.
    """
    device, flags, rows, ratios = contenders.device, contenders.flags, [], {}
    # square matrix products, in the precision of the convolutions
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    n, amps = SIDE[device.type], {"fp32": None, "amp": AMP[flags.amp]}
    steps, loader = {p: contenders.our_step(name, amp) for p, amp in amps.items()}, {}
    if not flags.ours:
        steps = {"official": contenders.official_step(name)} | steps
    evaluation_s = {key: contenders.evaluation_s(model, key == "official", amps.get(key))
                    for key, (_, model) in steps.items()}
    peaks = {key: peak_memory(call, device) for key, (call, _) in steps.items()}
    # made here, so that they are in nobody's peak
    squares = {p: torch.randn(n, n, device=device, dtype=amp or torch.float32) for p, amp in amps.items()}
    products = {f"product {p}": partial(torch.matmul, a, a) for p, a in squares.items()}
    if not flags.ours:
        loader = {"loader": contenders.official_step(name, loader=True)[0]}
    calls = {key: call for key, (call, _) in steps.items()} | loader | products
    times = time_by_turns(calls, flags.rounds, device)
    epochs = {key: [contenders.steps * t + evaluation_s[key] for t in times["loader" if key == "official" else key]]
              for key in steps}
    for key in steps:
        seconds, precision = median(times[key]), "amp" if key == "amp" else "fp32"
        flop = contenders.flop(name, key == "official")
        rate = 2 * n**3 / median(times[f"product {precision}"])
        rows.append({
            "objective": name, "rendering": "official" if key == "official" else "ours", "precision": precision,
            "images_per_s": flags.batch_size / seconds, "ms_per_step": 1e3 * seconds,
            "s_per_epoch": median(epochs[key]), "evaluation_s": evaluation_s[key],
            "peak_memory_bytes": peaks[key], "flop_per_step": flop, "flop_per_s": flop / seconds,
            "matmul_flop_per_s": rate, "fraction_of_matmul": flop / seconds / rate,
            "rounds_ms_per_step": [1e3 * t for t in times[key]],
        })
    for p, (what, t) in itertools.product(amps if loader else (), (("step", times), ("epoch", epochs))):
        ratios[f"{name}_{what}_{p}"] = median(slow / fast for slow, fast in zip(t["official"], t[p]))
    return rows, ratios


def describe_benchmark(flags, device) -> dict:
    """The process and the flags, for the JSON."""
    return {**describe_process(device), "tf32": torch.backends.cudnn.allow_tf32, "settings": vars(flags)}


@refuse_in_one_sentence
def main(argv=None):
    flags, device = set_up(argv, __doc__)
    contenders, about, rows, ratios = Contenders(flags, device), describe_benchmark(flags, device), [], {}
    for name in flags.objectives:
        more, faster = measure_steps(contenders, name)
        rows, ratios = rows + more, ratios | faster
        if flags.json:  # after each, so that a time limit takes the last one alone
            write_json(Path(flags.json), {**about, "rows": rows, "ratios": ratios})
    head = ("", "images/s", "ms/step", "s/epoch", "peak MB", "GFLOP/step", "GFLOP/s", "of matmul")
    print("{:<22}{:>10}{:>10}{:>10}{:>9}{:>12}{:>10}{:>10}".format(*head))
    for r in rows:
        peak = "-" if r["peak_memory_bytes"] is None else f"{r['peak_memory_bytes'] / 1e6:.0f}"
        print(f"{r['objective']:<7}{r['rendering']:<10}{r['precision']:<5}{r['images_per_s']:>10.1f}"
              f"{r['ms_per_step']:>10.2f}{r['s_per_epoch']:>10.1f}{peak:>9}{r['flop_per_step'] / 1e9:>12.2f}"
              f"{r['flop_per_s'] / 1e9:>10.1f}{100 * r['fraction_of_matmul']:>9.1f}%")
    if ratios:
        print("times as fast as the official rendering: " + ", ".join(f"{k} {v:.2f}" for k, v in ratios.items()))


if __name__ == "__main__":
    main()
