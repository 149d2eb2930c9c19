"""TODO (utils.fit)"""

import math
import signal
import time

import torch
from tqdm import tqdm

from utils.system.processes import is_chief
from utils.system.refusals import Interrupted, Refusal
from utils.system.signals import agree_on_signal, catch_signals
from utils.training.settings import TrainingSettings
from utils.training.step import Step

KEEP_EVERY = 20  # epochs between checkpoints that stay


def fit(run, model, objective, batches, evaluate, snapshot, settings: TrainingSettings):
    """Train `model` on `objective`, or go on where the run folder stands.

    objective   an `Objective`, which also names the optimiser and its learning rates
    batches     `data.batches.Batches`, whose plan of an epoch is a function of (seed, epoch)
    evaluate    model -> dict with "val_accuracy" and, where there are triggers, "trigger_accuracy"
    snapshot    (model, epoch, row) -> checkpoint dict

    Writes one row of `metrics.jsonl` an epoch and the checkpoints init, nat_best, query_best, <every 20th>, latest;
    where the objective keeps clean running statistics, each but init also as `*_clean`. SIGINT and SIGTERM end after
    the current step, or the objective's `begin`, with a checkpoint (Interrupted); a loss that is not finite stops the
    run (Refusal) and leaves the last good checkpoint.
    """
    device, epochs = next(model.parameters()).device, settings.epochs
    step = Step(model, objective, batches, lr=settings.lr, weight_decay=settings.weight_decay, amp=settings.amp,
                compile=settings.compile, graph=settings.graph and objective.static, log=run.log)
    statistics = objective.statistics
    twin = statistics if statistics is not None and statistics.clean else None

    state = {"epoch": 0, "step": 0, "best": {}, "sums": {}, "seconds": 0.0, "optimizer": {}, "objective": {}}
    latest = run.load("latest")
    if latest is None:
        run.save("init", snapshot(model, -1, {}))
    else:
        try:
            model.load_state_dict(latest["model"]["state_dict"])
            state |= latest["training"]
        except (KeyError, TypeError, RuntimeError) as error:
            raise Refusal("checkpoint_latest.pt is not this run's last checkpoint: restore it, or pass --overwrite to "
                          "begin anew") from error
        if twin:
            twin.restore(state["clean"])
        step.restore(state["optimizer"])
        objective.restore(state["objective"])
        if state["epoch"] < epochs:
            run.log(f"continuing in epoch {state['epoch'] + 1} of {epochs}, step {state['step'] + 1}")
    rows = run.rows()[: state["epoch"]]
    best = state["best"]
    step.sums = {k: v.to(device) for k, v in state["sums"].items()}

    def save(name, epoch, row, **training):
        # the clean twin first: a kill in between must not leave a finished `latest` without it
        if twin and not (name == "latest" and epoch + 1 < epochs):
            with twin.cleaned():
                run.save(f"{name}_clean", snapshot(model, epoch, row))
        run.save(name, snapshot(model, epoch, row) | training)

    def save_latest(epoch, row, position):
        memory = {"optimizer": step.state(), "objective": objective.state()}
        save("latest", epoch, row, training=position | memory | {"best": best, "clean": twin.state() if twin else {}})

    bar = tqdm(
        total=sum(objective.steps(batches, epoch) for epoch in range(epochs)),
        initial=sum(objective.steps(batches, epoch) for epoch in range(state["epoch"])) + state["step"],
        disable=None if is_chief() else True,
        unit="step",
        leave=False,
    )
    with bar, catch_signals() as received:
        for epoch in range(state["epoch"], epochs):
            rate = objective.rate(settings.lr, epoch, epochs)
            step.rate.fill_(rate)
            # the epoch's random numbers depend on (seed, epoch) alone: going on needs no saved generator
            generator = torch.Generator().manual_seed((settings.seed << 32) + epoch + 1)
            plan = objective.plan(batches, epoch, generator)
            steps = objective.steps(batches, epoch)
            first, seconds, began = state["step"], state["seconds"], time.perf_counter()
            state["step"], state["seconds"] = 0, 0.0
            model.train()
            if not first:
                objective.begin(model, step.forward, step.optimizer, epoch, generator)
            for done in range(first, steps):
                step([part[done] for part in plan])
                bar.update()
                signum = agree_on_signal(received, device, done)
                if signum and done + 1 < steps:
                    kept = {name: value.cpu() for name, value in step.sums.items()}
                    _check_finite(model, float(kept["loss"]), epoch)
                    spent = seconds + time.perf_counter() - began
                    save_latest(epoch, {}, {"epoch": epoch, "step": done + 1, "sums": kept, "seconds": spent})
                    _raise_interrupted(signum, epoch)
            means = {name: value / steps for name, value in step.take_sums().items()}
            seconds += time.perf_counter() - began
            _check_finite(model, means["loss"], epoch)
            row = {"epoch": epoch + 1, "lr": rate, **means, **evaluate(model)}
            if twin:
                with twin.cleaned():
                    row |= {f"clean_{name}": value for name, value in evaluate(model).items()}
            row |= {
                "seconds": round(seconds, 2),
                "images_per_second": round(steps * batches.batch_size / max(seconds, 1e-9), 1),
            }
            rows.append(row)
            run.write_rows(rows)
            run.log(describe_row(row, epochs))
            for name, figure in (("nat_best", "val_accuracy"), ("query_best", "trigger_accuracy")):
                if not objective.eligible(epoch) or figure not in row:
                    continue
                if row[figure] >= best.get(name, -1.0):  # a later epoch wins a tie, as officially
                    best[name] = row[figure]
                    save(name, epoch, row)
            if (epoch + 1) % KEEP_EVERY == 0:
                save(str(epoch + 1), epoch, row)
            save_latest(epoch, row, {"epoch": epoch + 1, "step": 0, "sums": {}, "seconds": 0.0})
            signum = agree_on_signal(received, device)
            if signum and epoch + 1 < epochs:
                _raise_interrupted(signum, epoch)


def _check_finite(model, loss: float, epoch: int) -> None:
    """Refuse a loss that is not finite, and weights that are not: the last step's show in no loss of its epoch."""
    if not math.isfinite(loss) or not all(bool(t.isfinite().all()) for t in model.state_dict().values()):
        raise Refusal(
            f"the loss is not finite in epoch {epoch + 1}: pass a lower --lr or -v with another message; "
            "the last good checkpoint is intact"
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
