"""What the benchmark measures: steps and epochs, the components of our margin step, and the rivals' additional work.

All contenders of one measurement run in one process, by turns (see `utils.cost.timing`): a figure is the median of
the rounds, a ratio the median of the rounds' own ratios. An epoch is estimated: its number of steps times the seconds
of a step, plus the seconds of the evaluation; the official step then takes its batches from the official loader.
"""

import statistics

import torch

from utils.cost.contenders import LR, WEIGHT_DECAY
from utils.cost.rivals import rival_parts, rival_sums
from utils.cost.timing import PeakMemory, matrix_product, median_ratio, seconds_per_call, time_by_turns
from utils.training.step import Step

SECONDS = 0.5  # each timing repeats its call for about this long


def measure_steps(contenders, names, rounds) -> tuple[list[dict], dict]:
    """(rows, ratios) for the objectives in `names`: a row for each contender, and official time / our time.

    A row's `fraction_of_matmul` is its FLOP/s divided by that of a large matrix product in the same precision.
    """
    settings, device = contenders.settings, contenders.device
    # matrix products in the precision of the convolutions
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    products = {p: matrix_product(device, p == "amp") for p in ("fp32", "amp")}
    rows, ratios = [], {}
    for name in names:
        precisions = ("fp32", "amp")
        ours = {p: contenders.our_step(name, p == "amp") for p in precisions}
        step, model = contenders.official_step(name)
        loaded, _ = contenders.official_step(name, loader=True)
        calls = {"official": step, "loader": loaded} | {p: ours[p][0] for p in precisions}
        calls |= {f"product {p}": products[p][0] for p in precisions}
        evaluations = {"official": lambda m=model: contenders.official_evaluation(m)}
        evaluations |= {p: lambda p=p, m=ours[p][1]: contenders.our_evaluation(m, p == "amp") for p in precisions}
        evaluation_s = {key: statistics.median(call() for _ in range(2)) for key, call in evaluations.items()}
        peaks = {}
        for key in ("official", *precisions):
            with PeakMemory(device) as memory:
                seconds_per_call(calls[key], 2, device)
            peaks[key] = memory.peak
        times = time_by_turns(calls, rounds, device, SECONDS)
        epochs = {p: [contenders.steps * t + evaluation_s[p] for t in times[p]] for p in precisions}
        epochs["official"] = [contenders.steps * t + evaluation_s["official"] for t in times["loader"]]
        for key in ("official", *precisions):
            seconds, rendering = statistics.median(times[key]), "official" if key == "official" else "ours"
            precision = "amp" if key == "amp" else "fp32"
            flop = contenders.flop(name, rendering)
            rate = products[precision][1] / statistics.median(times[f"product {precision}"])
            rows.append({
                "objective": name, "rendering": rendering, "precision": precision,
                "images_per_s": settings.batch_size / seconds, "ms_per_step": 1e3 * seconds,
                "s_per_epoch": statistics.median(epochs[key]), "evaluation_s": evaluation_s[key],
                "peak_memory_bytes": peaks[key], "flop_per_step": flop, "flop_per_s": flop / seconds,
                "matmul_flop_per_s": rate, "fraction_of_matmul": flop / seconds / rate,
                "rounds_ms_per_step": [1e3 * t for t in times[key]],
            })
        for p in precisions:
            ratios[f"{name}_step_{p}"] = median_ratio(times["official"], times[p])
            ratios[f"{name}_epoch_{p}"] = median_ratio(epochs["official"], epochs[p])
    return rows, ratios


def measure_components(contenders, rounds) -> list[dict]:
    """Milliseconds a step of the components of our margin step, and their shares, in both precisions."""
    return [row for amp in (False, True) for row in _components_at(contenders, rounds, amp)]


def _components_at(contenders, rounds, amp):
    _, model, step = contenders.our_step("margin", amp)
    objective, forward = step.objective, step.forward
    row = next(contenders.rows(objective))
    *place, picks = row
    x, y = contenders.batches.batch(*place)
    x_q, y_q = contenders.x_q[picks], contenders.y_q[picks]
    running_statistics = objective.statistics

    def one_pass(images, labels, batchnorm_mode):
        with batchnorm_mode():
            logits = forward(images)
        model.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(logits, labels).backward()

    def ascent():
        with running_statistics.ascent():
            objective.perturb(forward, x_q, y_q)

    one_pass(x, y, running_statistics.clean_batch)  # the optimiser alone is timed too, and needs gradients
    whole = Step(model, objective, contenders.batches, lr=LR, weight_decay=WEIGHT_DECAY, amp=amp,
                 compile=contenders.settings.compile)
    calls = {
        "data": lambda: contenders.batches.batch(*place),
        "optimiser": whole.optimizer.step,
        "clean pass": lambda: one_pass(x, y, running_statistics.clean_batch),
        "ascent": ascent,
        "trigger pass": lambda: one_pass(x_q, y_q, running_statistics.trigger_batch),
        "whole step": lambda: whole(row),
    }
    times = {k: 1e3 * statistics.median(v) for k, v in time_by_turns(calls, rounds, contenders.device, 0.2).items()}
    times["evaluation"] = 1e3 * contenders.our_evaluation(model, amp) / contenders.steps  # once an epoch, per step
    total = times["whole step"] + times["evaluation"]
    precision = "amp" if amp else "fp32"
    return [{"precision": precision, "component": k, "ms_per_step": v, "share": v / total} for k, v in times.items()]


def measure_rivals(contenders, rounds) -> dict:
    """Milliseconds of the parts of the rivals' methods in fp32, and their sums relative to plain training; prints both.

    See `rival_parts` and `rival_sums`.
    """
    def step_of(objective, model, batches):
        rows = contenders.rows(objective, batches)
        step = Step(model, objective, batches, lr=1e-3, weight_decay=WEIGHT_DECAY)
        return lambda: step(next(rows))

    times = time_by_turns(rival_parts(contenders, step_of), rounds, contenders.device, SECONDS)
    ms = {part: 1e3 * statistics.median(values) for part, values in times.items()}
    sums = rival_sums(ms, contenders.steps, contenders.settings.batch_size)
    for part, value in ms.items():
        print(f"{part:<50}{value:>10.2f} ms")
    for what, (measured, counted) in sums.items():
        print(f"{what:<50}{measured:>10.2f} x" + (f"   counted: {counted:g} x" if counted else ""))
    return {"ms": ms, "times_plain": {what: pair[0] for what, pair in sums.items()}}
