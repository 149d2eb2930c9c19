"""What a step and an epoch cost, ours against a literal rendering of the official code: `python -m utils.benchmark`.

Everything is timed in one process, the contenders by turns, so that a ratio holds on a busy machine too: each round
times every contender once, a figure is the median of the rounds, a ratio the median of the rounds' own ratios.
Pixels are noise; no figure depends on them.
"""

import argparse
import itertools
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import models
from utils import attacks, costs, losses, official
from utils.args import COUNT
from utils.data import Batches, Images
from utils.files import check_output
from utils.metrics import accuracy
from utils.refuse import Parser, plainly
from utils.run import choose_device, prepare
from utils.step import Step, precise
from utils.timing import Memory, by_turns, product, ratio, timed

OBJECTIVES = ("margin", "base", "soft")
LR, WEIGHT_DECAY, WEIGHT, PIXEL = 0.1, 1e-4, 0.1, 1 / 255
EPOCH, VALIDATION, TEST, CLASSES = 49_000, 1000, 10_000, 10  # images of CIFAR-10
SECONDS = 0.5  # the least that one timing lasts


class Bench:
    """Data, models and contenders of one setting."""

    def __init__(self, args, device):
        self.args, self.device = args, device
        generator = torch.Generator().manual_seed(0)
        count = max(2048, 8 * args.batch_size)
        pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        self.images = Images(pixels, torch.randint(0, CLASSES, (count,), generator=generator), torch.arange(count))
        self.x_q = torch.rand(args.num_query, 3, 32, 32, generator=generator).to(device)
        self.y_q = torch.randint(0, CLASSES, (args.num_query,), generator=generator).to(device)
        self.batches = Batches(self.images, args.batch_size, True, device)
        self.steps = EPOCH // args.batch_size

    def model(self, placed=True):
        torch.manual_seed(0)
        model = models.build(self.args.model, CLASSES, (0.5,) * 3, (0.25,) * 3, self.args.width)
        return models.place(model, self.device) if placed else model.to(self.device)

    def objective(self, name, model, amp):
        if name == "soft":
            source = self.model().requires_grad_(False).eval()
            return attacks.Copy(precise(source, amp), attacks.soft, False)
        k = self.args.steps if name == "margin" else 0
        return losses.Watermark(
            model, self.x_q, self.y_q, weight=WEIGHT, reduction="joint", batch=self.args.trigger_batch, steps=k,
            step_size=PIXEL, eps=k * PIXEL, bn_stats="paper",
        )

    def ours(self, name, amp):
        """`step()`, data and augmentation included, as the training loop does it."""
        model = self.model().train()
        objective = self.objective(name, model, amp)
        step = Step(model, objective, self.batches, lr=LR, weight_decay=WEIGHT_DECAY, amp=amp,
                    compile=self.args.compile, graph=self.args.graph)
        rows = self.rows(objective)
        return lambda: step(next(rows)), model, step

    def rows(self, objective, batches=None):
        generator = torch.Generator().manual_seed(1)
        plan = objective.plan(batches or self.batches, 0, generator)
        return itertools.cycle(list(zip(*plan)))

    def official(self, name, loader=False):
        """`step()` of the official rendering, on batches that lie ready or that its loader makes."""
        model = self.model(placed=False).train()
        optimizer = official.plain_sgd(model, LR, WEIGHT_DECAY)
        teacher = self.model(placed=False).eval()
        picks = torch.randint(0, self.args.num_query, (64, self.args.trigger_batch)).to(self.device)
        picks = itertools.cycle(picks)
        batches = self.endless(official.loader(*self.images[:2], self.args.batch_size)) if loader else self.ready()
        k = self.args.steps if name == "margin" else 0

        def step():
            x, y = (t.to(self.device) for t in next(batches))
            if name == "soft":
                return official.soft_step(model, teacher, optimizer, x, y)
            pick = next(picks)
            return official.watermark_step(
                model, optimizer, x, y, self.x_q[pick], self.y_q[pick], weight=WEIGHT, steps=k, step_size=PIXEL
            )

        return step, model

    def ready(self):
        plan = self.batches.plan(torch.Generator().manual_seed(1))
        return itertools.cycle([tuple(t.contiguous() for t in self.batches.batch(*row)) for row in zip(*plan)])

    @staticmethod
    def endless(loader):
        while True:
            yield from loader

    # ---- what an epoch does besides its steps

    def our_rest(self, model, amp):
        """Seconds of an epoch's plan and evaluation: validation and triggers once, under both sets of statistics."""
        pixels = self.images.images.repeat(-(-VALIDATION // len(self.images.images)), 1, 1, 1)[:VALIDATION]
        labels = self.images.labels.repeat(-(-VALIDATION // len(self.images.labels)))[:VALIDATION]
        triggers = self.x_q.mul(255).round().to(torch.uint8)
        began = time.perf_counter()
        for _ in range(2):
            accuracy(model, pixels, labels, amp)
            accuracy(model, triggers, self.y_q, amp)
        return time.perf_counter() - began

    def official_rest(self, model):
        """Seconds of the official evaluation, every batch with all triggers again; a tenth of it is timed."""
        share = 10
        n = (VALIDATION + TEST) // share
        x = torch.rand(n, 3, 32, 32, device=self.device)
        y = torch.zeros(n, dtype=torch.long, device=self.device)
        began = time.perf_counter()
        official.evaluate(model, x, y, self.x_q, self.y_q)
        return share * (time.perf_counter() - began)

    # ---- counted work

    def flop(self, name, rendering):
        """FLOP of a step: forward 1, backward to the input 1, full backward 2 of the model's forward FLOP an image."""
        model = self.model(placed=False).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 3, 32, 32, device=self.device))
        return counter.get_total_flops() * passes(name, rendering, self.args)


def passes(name, rendering, args):
    """Image passes of a step, in forward passes of one image."""
    if name == "soft":
        return (3 + (1 if rendering == "ours" else 3)) * args.batch_size
    ascent = args.steps * (2 if rendering == "ours" else 3) if name == "margin" else 0
    return 3 * args.batch_size + (3 + ascent) * args.trigger_batch


# ---- the report -----------------------------------------------------------------------------------------------


def measure(bench, names, rounds) -> tuple[list[dict], dict]:
    """Rows (one a contender) and the ratios of the official rendering's time to ours."""
    args, device = bench.args, bench.device
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32  # the products as the convolutions
    products = {p: product(device, p == "amp") for p in ("fp32", "amp")}
    rows, ratios = [], {}
    for name in names:
        precisions = ("fp32", "amp")
        ours = {p: bench.ours(name, p == "amp") for p in precisions}
        step, model = bench.official(name)
        loaded, _ = bench.official(name, loader=True)
        calls = {"official": step, "loader": loaded} | {p: ours[p][0] for p in precisions}
        calls |= {f"product {p}": products[p][0] for p in precisions}
        rests = {"official": lambda m=model: bench.official_rest(m)}
        rests |= {p: lambda p=p, m=ours[p][1]: bench.our_rest(m, p == "amp") for p in precisions}
        rest = {key: statistics.median(call() for _ in range(2)) for key, call in rests.items()}
        peaks = {}
        for key in ("official", *precisions):
            with Memory(device) as memory:
                timed(calls[key], 2, device)
            peaks[key] = memory.peak
        times = by_turns(calls, rounds, device, SECONDS)
        epochs = {p: [bench.steps * t + rest[p] for t in times[p]] for p in precisions}
        epochs["official"] = [bench.steps * t + rest["official"] for t in times["loader"]]
        for key in ("official", *precisions):
            seconds, rendering = statistics.median(times[key]), "official" if key == "official" else "ours"
            precision = "amp" if key == "amp" else "fp32"
            flop = bench.flop(name, rendering)
            rate = products[precision][1] / statistics.median(times[f"product {precision}"])
            rows.append({
                "objective": name, "rendering": rendering, "precision": precision,
                "images_per_s": args.batch_size / seconds, "ms_per_step": 1e3 * seconds,
                "s_per_epoch": statistics.median(epochs[key]), "evaluation_s": rest[key],
                "peak_memory_bytes": peaks[key], "flop_per_step": flop, "flop_per_s": flop / seconds,
                "matmul_flop_per_s": rate, "fraction_of_matmul": flop / seconds / rate,
                "rounds_ms_per_step": [1e3 * t for t in times[key]],
            })
        for p in precisions:
            ratios[f"{name}_step_{p}"] = ratio(times["official"], times[p])
            ratios[f"{name}_epoch_{p}"] = ratio(epochs["official"], epochs[p])
    return rows, ratios


def components(bench, rounds) -> list[dict]:
    """Milliseconds a step of the parts of our margin step, in both precisions."""
    return [row for amp in (False, True) for row in _components(bench, rounds, amp)]


def _components(bench, rounds, amp):
    _, model, step = bench.ours("margin", amp)
    objective, forward = step.objective, step.forward
    row = next(bench.rows(objective))
    *place, picks = row
    x, y = bench.batches.batch(*place)
    x_q, y_q = bench.x_q[picks], bench.y_q[picks]
    statistics_of = objective.statistics

    def one_pass(images, labels, within):
        with within():
            logits = forward(images)
        model.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(logits, labels).backward()

    def ascent():
        with statistics_of.ascent():
            objective.perturb(forward, x_q, y_q)

    one_pass(x, y, statistics_of.clean_batch)  # gradients for the optimiser
    whole = Step(model, objective, bench.batches, lr=LR, weight_decay=WEIGHT_DECAY, amp=amp, compile=bench.args.compile)
    calls = {
        "data": lambda: bench.batches.batch(*place),
        "optimiser": whole.optimizer.step,
        "clean pass": lambda: one_pass(x, y, statistics_of.clean_batch),
        "ascent": ascent,
        "trigger pass": lambda: one_pass(x_q, y_q, statistics_of.trigger_batch),
        "whole step": lambda: whole(row),
    }
    times = {k: 1e3 * statistics.median(v) for k, v in by_turns(calls, rounds, bench.device, 0.2).items()}
    times["evaluation"] = 1e3 * bench.our_rest(model, amp) / bench.steps  # an epoch's, spread over its steps
    total = times["whole step"] + times["evaluation"]
    precision = "amp" if amp else "fp32"
    return [{"precision": precision, "component": k, "ms_per_step": v, "share": v / total} for k, v in times.items()]


def compare(bench, rounds) -> dict:
    """Milliseconds of the rivals' parts in fp32, and what they sum to beside plain training."""
    def step_of(objective, model, batches):
        rows = bench.rows(objective, batches)
        step = Step(model, objective, batches, lr=1e-3, weight_decay=WEIGHT_DECAY)
        return lambda: step(next(rows))

    times = by_turns(costs.parts(bench, step_of), rounds, bench.device, SECONDS)
    ms = {part: 1e3 * statistics.median(values) for part, values in times.items()}
    sums = costs.sums(ms, bench.steps, bench.args.batch_size)
    for part, value in ms.items():
        print(f"{part:<50}{value:>10.2f} ms")
    for what, (measured, counted) in sums.items():
        print(f"{what:<50}{measured:>10.2f} x" + (f"   counted: {counted:g} x" if counted else ""))
    return {"ms": ms, "times_plain": {what: pair[0] for what, pair in sums.items()}}


def table(rows, ratios, parts) -> str:
    lines = [f"{'':<22}{'images/s':>10}{'ms/step':>10}{'s/epoch':>10}{'peak MB':>9}{'GFLOP/step':>12}"
             f"{'GFLOP/s':>10}{'of matmul':>10}"]
    for r in rows:
        peak = "-" if r["peak_memory_bytes"] is None else f"{r['peak_memory_bytes'] / 1e6:.0f}"
        lines.append(
            f"{r['objective']:<7}{r['rendering']:<10}{r['precision']:<5}{r['images_per_s']:>10.1f}"
            f"{r['ms_per_step']:>10.2f}{r['s_per_epoch']:>10.1f}{peak:>9}{r['flop_per_step'] / 1e9:>12.2f}"
            f"{r['flop_per_s'] / 1e9:>10.1f}{100 * r['fraction_of_matmul']:>9.1f}%"
        )
    if ratios:
        lines.append("times as fast as the official rendering: "
                     + ", ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    for p in parts:
        lines.append(f"{p['precision']:<5}{p['component']:<13}{p['ms_per_step']:>10.2f} ms {100 * p['share']:>6.1f}%")
    return "\n".join(lines)


def surroundings(args, device) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": str(device), "name": name, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "tf32": torch.backends.cudnn.allow_tf32, "settings": vars(args)}


def parse(argv=None):
    p = Parser(prog="python -m utils.benchmark", description=__doc__,
               formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--model", default="res34", choices=models.NAMES, help="architecture")
    p.add_argument("--width", type=COUNT, default=64, help="channels of the first stage")
    p.add_argument("--batch-size", type=COUNT, default=128, help="images a step")
    p.add_argument("--trigger-batch", type=COUNT, default=25, help="triggers a step")
    p.add_argument("-nq", "--num-query", type=COUNT, default=100, help="triggers")
    p.add_argument("--steps", type=COUNT, default=5, help="ascent steps K")
    p.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu", "mps"), help="where to compute")
    p.add_argument("--rounds", type=COUNT, default=5, help="timings of each contender")
    p.add_argument("--objectives", nargs="+", default=OBJECTIVES, choices=OBJECTIVES, help="what to time")
    p.add_argument("--components", action="store_true", help="also the parts of our margin step")
    p.add_argument("--rivals", action="store_true", help="instead: the steps of EWE, RS, DI and EEF beside a plain one")
    p.add_argument("--compile", action="store_true", help="our model through torch.compile")
    p.add_argument("--no-graph", dest="graph", action="store_false", help="CUDA: ordinary steps, no graph")
    p.add_argument("--no-tf32", dest="tf32", action="store_false", help="CUDA: full fp32 convolutions")
    p.add_argument("--json", metavar="FILE", help="write rows and ratios there")
    return p.parse_args(argv)


@plainly
def main(argv=None):
    args = parse(argv)
    check_output(args.json, "--json")
    device = choose_device(args.device)
    args.graph = args.graph and device.type == "cuda"
    prepare(0, deterministic=False, tf32=args.tf32)
    bench = Bench(args, device)
    result = surroundings(args, device)
    if args.rivals:
        result["rivals"] = compare(bench, args.rounds)
    else:
        rows, ratios = measure(bench, args.objectives, args.rounds)
        parts = components(bench, args.rounds) if args.components else []
        print(table(rows, ratios, parts))
        result |= {"rows": rows, "ratios": ratios, "components": parts}
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
