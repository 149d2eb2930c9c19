"""The training loop of all three scripts. It has never heard of watermarks."""

import math
import signal
import time

import torch
from tqdm import tqdm

import models
from utils.system.machine import agree_on_signal, catch_signals, is_chief
from utils.system.refusals import Interrupted, Refusal
from utils.training.progress import Progress
from utils.training.settings import TrainingSettings
from utils.training.step import Step


def fit(run, model, objective, batches, evaluate, snapshot, settings: TrainingSettings):
    """Train `model` on `objective`, or continue the run that the folder holds.

    run         a `RunFolder`, or what has its methods load, save, rows, write_rows and log
    objective   an `Objective`, which also names the optimiser and its learning rates
    batches     `data.batches.Batches`, whose plan of an epoch is a function of (seed, epoch)
    evaluate    model -> dict with "val_accuracy" and, where there are triggers, "trigger_accuracy"
    snapshot    (model, epoch, row) -> checkpoint dict

    The learning rates are those of `settings.epochs`, of which the first `settings.stop_after` are trained.

    Writes one row of `metrics.jsonl` an epoch and the checkpoints init, nat_best (best on validation images),
    query_best (best on triggers), every 20th and latest. Where the objective keeps clean BatchNorm statistics, all but
    init are written as `*_clean` too. After SIGINT or SIGTERM the current step ends, a checkpoint is written and
    Interrupted is raised. A loss that is not finite raises Refusal and leaves the last good checkpoint.
    """
    device, epochs = next(model.parameters()).device, settings.epochs
    last = min(settings.stop_after or epochs, epochs)
    # dropout and its like: seeded before each step, as an interrupted epoch has to go on with the same numbers; and a
    # recording would need them to be drawn on the device
    may_draw = not models.is_own(model)
    static = objective.static and not may_draw and not getattr(batches, "on_disk", False)
    step = Step(model, objective, batches, lr=settings.lr, weight_decay=settings.weight_decay, amp=settings.amp,
                compile=settings.compile, graph=settings.graph and static, log=run.log)
    progress = Progress(run, model, objective, step, snapshot, last)
    rows = run.rows()[: progress.epoch]
    steps_of = [objective.steps(batches, epoch) for epoch in range(last)]
    done = sum(steps_of[: progress.epoch]) + progress.first_step
    bar = tqdm(total=sum(steps_of), initial=done, disable=None if is_chief() else True, unit="step", leave=False)
    with bar, catch_signals() as received:
        for epoch in range(progress.epoch, last):
            rate = objective.rate(settings.lr, epoch, epochs)
            step.rate.fill_(rate)
            # an epoch's random numbers depend on (seed, epoch) alone, so no generator has to be saved
            generator = torch.Generator().manual_seed((settings.seed << 32) + epoch + 1)
            plan = objective.plan(batches, epoch, generator)
            steps, (first, seconds), began = steps_of[epoch], progress.enter_epoch(), time.perf_counter()
            model.train()
            if not first:
                objective.begin(model, step.forward, step.optimizer, epoch, generator)
            for i in range(first, steps):
                if may_draw:
                    torch.manual_seed(((settings.seed << 32) + epoch + 1) * 1_000_003 + i & (1 << 63) - 1)
                step([part[i] for part in plan])
                bar.update()
                signum = agree_on_signal(received, device, i)
                if signum and i + 1 < steps:
                    sums = {name: value.cpu() for name, value in step.sums.items()}
                    _check_finite(model, float(sums["loss"]), epoch)
                    progress.save_within_epoch(epoch, i + 1, sums, seconds + time.perf_counter() - began)
                    _raise_interrupted(signum, epoch)
            means = {name: value / steps for name, value in step.take_sums().items()}
            seconds += time.perf_counter() - began
            _check_finite(model, means["loss"], epoch)
            row = {"epoch": epoch + 1, "lr": rate, **means, **_evaluate_both(model, evaluate, progress.clean_twin)}
            row["seconds"] = round(seconds, 2)
            row["images_per_second"] = round(steps * batches.batch_size / max(seconds, 1e-9), 1)
            rows.append(row)
            run.write_rows(rows)
            run.log(describe_row(row, epochs))
            progress.save_epoch(epoch, row)
            signum = agree_on_signal(received, device)
            if signum and epoch + 1 < last:
                _raise_interrupted(signum, epoch)


def _evaluate_both(model, evaluate, clean_twin) -> dict:
    """The evaluation of the model and, as `clean_*`, of its clean-statistics twin where there is one."""
    figures = evaluate(model)
    if clean_twin:
        with clean_twin.cleaned():
            figures |= {f"clean_{name}": value for name, value in evaluate(model).items()}
    return figures


def _check_finite(model, loss: float, epoch: int) -> None:
    """Refuse a loss or weights that are not finite; no loss of its epoch shows what the last step did."""
    if not math.isfinite(loss) or not all(bool(t.isfinite().all()) for t in model.state_dict().values()):
        raise Refusal(
            f"the loss is not finite in epoch {epoch + 1}: pass a lower --lr, --adam or -v, or --amp bf16 instead of "
            "fp16, with another message; the last good checkpoint is intact"
        )


def describe_row(row: dict, epochs: int) -> str:
    """One line for the log; rates in per cent."""
    percent = {k: v for k, v in row.items() if k.endswith("accuracy") or k == "agreement"}
    losses = {k: v for k, v in row.items() if k.startswith("loss")}
    parts = [f"{k} {v:.4f}" for k, v in losses.items()] + [f"{k} {100 * v:.2f}" for k, v in percent.items()]
    return f"epoch {row['epoch']}/{epochs}  lr {row['lr']:g}  " + "  ".join(parts) + f"  {row['seconds']:.1f} s"


def _raise_interrupted(signum, epoch):
    name = signal.Signals(signum).name
    way = "the same command, without --overwrite, goes on from there"
    raise Interrupted(signum, f"{name}: saved in epoch {epoch + 1}; {way}")
