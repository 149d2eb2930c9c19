"""How fast a step is on this GPU: our renderings against the official one, for each architecture.

Contenders are measured one after the other, each with the GPU's memory for itself, so that its peak is its own.
"""

import gc
import statistics
from dataclasses import replace
from typing import NamedTuple

import torch

from utils.cost.contenders import Contenders
from utils.cost.settings import BenchmarkSettings, parse_benchmark
from utils.cost.timing import PeakMemory, matrix_product, seconds_per_call
from utils.gpu_checks.result import describe_error
from utils.training.cuda_graph import WARM_UP

ROUNDS, SECONDS = 3, 0.4  # timings of a rendering, and how long each repeats its step


class Rendering(NamedTuple):
    """A way to compute a step; `need` is the seconds that must be left to begin with it."""

    name: str
    official: bool = False
    amp: bool = False
    tf32: bool = True
    graph: bool = False
    compile: bool = False
    need: float = 8.0


OFFICIAL = Rendering("official, TF32", official=True)
RENDERINGS = (
    OFFICIAL,
    Rendering("TF32, recorded (default)", graph=True),
    Rendering("bf16, recorded (--amp)", amp=True, graph=True),
    Rendering("bf16", amp=True),
    Rendering("TF32"),
    Rendering("fp32", tf32=False),
)
COMPILED = Rendering("bf16, recorded, compiled (--amp --compile)", amp=True, graph=True, compile=True, need=75.0)


def settings_of(model: str) -> BenchmarkSettings:
    """The benchmark's settings for a model: the paper's batches, triggers and K."""
    return replace(parse_benchmark([]), model=model, graph=False)


def measure_rates(pairs, device, left, settings_of=settings_of, renderings=RENDERINGS, compiled=COMPILED,
                  show=lambda row: None) -> list[dict]:
    """Rows of all renderings for each of `pairs` (model, objective); the compiled ones come last.

    left  a function that gives the seconds that are left; a rendering that needs more is not measured, and its row
          says so under "missing"; one that raises an error has that under "failed"
    show  called with each row
    """
    plan = [(*pair, rendering) for pair in pairs for rendering in renderings]
    plan += [(*pair, compiled) for pair in pairs] if compiled else []
    rows, official, products = [], {}, {}
    for model, objective, rendering in plan:
        row = {"model": model, "objective": objective, "rendering": rendering.name}
        if left() < rendering.need:
            row["missing"] = "out of time"
        else:
            settings = replace(settings_of(model), graph=rendering.graph, compile=rendering.compile)
            try:
                row |= measure_rendering(settings, objective, rendering, device, products)
            except Exception as error:  # too little memory, no compiler: the other rows are still worth having
                row["failed"] = describe_error(error)
        measured = "ms_per_step" in row
        if rendering is renderings[0] and measured:
            official[model, objective] = row
        if (model, objective) in official and measured:
            first = official[model, objective]
            row["step_ratio"] = first["ms_per_step"] / row["ms_per_step"]
            row["epoch_ratio"] = first["s_per_epoch"] / row["s_per_epoch"]
        rows.append(row)
        show(row)
    return rows


def measure_rendering(settings, objective: str, rendering: Rendering, device, products: dict) -> dict:
    """The figures of one rendering; `products` keeps the seconds of the matrix product of each precision."""
    _free(device)
    torch.backends.cudnn.allow_tf32 = rendering.tf32
    contenders, said = Contenders(settings, device), []

    def build():
        if rendering.official:
            return contenders.official_step(objective)
        call, model, step = contenders.our_step(objective, rendering.amp)
        if step.recorder is not None:
            step.recorder.log = said.append
        return call, model

    if not rendering.compile:  # cuDNN tries algorithms, with memory for each, when it first sees a convolution
        seconds_per_call(build()[0], 2, device)
        _free(device)
    with PeakMemory(device) as memory:
        call, model = build()
        seconds_per_call(call, WARM_UP + 2, device)
    once = seconds_per_call(call, 3, device)
    repeats = min(300, max(3, round(SECONDS / once)))
    rounds = [seconds_per_call(call, repeats, device) for _ in range(ROUNDS)]
    seconds = statistics.median(rounds)
    if rendering.official:
        loaded, _ = contenders.official_step(objective, loader=True)
        seconds_per_call(loaded, 3, device)
        loaded_s = seconds_per_call(loaded, max(3, round(2 * SECONDS / once)), device)
        evaluate = lambda: contenders.official_evaluation(model)
    else:
        loaded_s, evaluate = seconds, lambda: contenders.our_evaluation(model, rendering.amp)
    evaluate()
    evaluation = evaluate()
    key = (rendering.amp, rendering.tf32)
    if key not in products:
        torch.backends.cuda.matmul.allow_tf32 = rendering.tf32  # as the convolutions; training leaves it off
        product, flop = matrix_product(device, rendering.amp)
        seconds_per_call(product, 3, device)
        products[key] = flop / statistics.median(seconds_per_call(product, 10, device) for _ in range(ROUNDS))
        torch.backends.cuda.matmul.allow_tf32 = False
    flop = contenders.flop(objective, "official" if rendering.official else "ours")
    epoch = contenders.steps * loaded_s + evaluation
    row = {
        "ms_per_step": 1e3 * seconds, "s_per_epoch": epoch, "hours_of_200_epochs": 200 * epoch / 3600,
        "evaluation_s": evaluation, "peak_memory_bytes": memory.peak, "flop_per_s": flop / seconds,
        "rounds_ms_per_step": [1e3 * t for t in rounds], "matmul_flop_per_s": products[key],
        "fraction_of_matmul": flop / seconds / products[key],
    }
    if said:
        row["fell_back"] = said[0]
    return row


def _free(device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def format_rates(rows) -> str:
    """The rows as a Markdown table for docs/cost.md."""
    titles = ("model", "objective", "rendering", "ms a step", "s an epoch", "200 epochs", "peak memory",
              "of the matrix-product rate", "step: times as fast as the official", "epoch")
    lines = [f"| {' | '.join(titles)} |", "|" + " --- |" * len(titles)]
    for row in rows:
        head = f"| {row['model']} | {row['objective']} | {row['rendering']} |"
        if "ms_per_step" not in row:
            lines.append(f"{head} not measured: {row.get('missing') or row['failed']} | | | | | | |")
            continue
        memory = "-" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 1e9:.2f} GB"
        ratios = [f"{row[name]:.2f}" if name in row else "-" for name in ("step_ratio", "epoch_ratio")]
        lines.append(
            f"{head} {row['ms_per_step']:.2f} | {row['s_per_epoch']:.1f} | {row['hours_of_200_epochs']:.2f} h "
            f"| {memory} | {100 * row['fraction_of_matmul']:.1f} % | {ratios[0]} | {ratios[1]} |")
    return "\n".join(lines)
