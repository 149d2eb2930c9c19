"""The training loop of all three scripts, one step of it, and where it stands. It has never heard of watermarks."""

import contextlib
import math
import signal
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

import models
from utils.system.machine import agree_on_signal, catch_signals, is_rank_0
from utils.system.refusals import Interrupted, Refusal
from utils.training.ranks import sum_gradients
from utils.training.speed import FP16_SCALE, RecordedStep, autocast_forward, halves_of

KEEP_EVERY = 20  # epochs between checkpoints that stay


def sgd(parameters, lr, weight_decay: float, fused: bool):
    """SGD without momentum, the paper's; `lr` is a tensor that the loop fills."""
    return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay, fused=fused)


def falling_rate(lr: float, epoch: int, epochs: int) -> float:
    """The learning rate of an epoch, counted from 0; it is divided by 10 at 1/2 and at 3/4 of the epochs."""
    return lr * 0.1 ** ((2 * epoch >= epochs) + (4 * epoch >= 3 * epochs))


def seed_of_epoch(seed: int, epoch: int) -> int:
    """The seed of all random numbers of an epoch, counted from 0, so that no generator has to be saved.

    Below 2^32, as torch's generator on the CPU ignores higher bits. The odd factor spreads the seeds: the epochs of two
    seeds below 2000 are a million numbers apart.
    """
    return (seed * 0x9E3779B1 + epoch + 1) % 2**32


class Objective:
    """What a training minimises, called as `objective(forward, x, y, picks) -> (loss, stats)`.

    forward  pixels -> float logits
    x, y     the batch: x (B, 3, S, S) in [0, 1], y (B,)
    picks    the last entry of a row of `plan`
    loss     a scalar tensor; `stats` is a dict of scalar tensors on the device, "loss" among them

    Subclasses override what follows: the rows of an epoch, work between epochs, what a continued run needs.
    """

    optimizer = staticmethod(sgd)
    rate = staticmethod(falling_rate)  # (lr, epoch, epochs) -> the learning rate of an epoch
    statistics = None  # `watermark.batchnorm.RunningStatistics` where there are trigger batches
    random_steps = False  # whether a step draws from torch's generator
    static = True  # whether every step runs the same kernels, so that one can be recorded and replayed
    halves = False  # whether it has a `clean_pass` and a `trigger_pass` that can be computed side by side
    more = 0  # epochs in addition to those that were asked for
    first_best = 0  # epochs before this one, counted from 0, give no best checkpoint

    def plan(self, batches, epoch: int, generator):
        """All rows of an epoch, (order, shift, flip, picks), a function of the generator alone; see `EpochPlan`."""
        return (*batches.plan(generator), torch.zeros(batches.steps, 0, dtype=torch.long, device=batches.device))

    def begin(self, model, optimizer, epoch: int, generator) -> None:
        """Called before the first step of an epoch, but not when an interrupted epoch is continued."""

    def state(self) -> dict:
        """What a continued run needs besides weights and optimiser: {name: tensor, number or string}."""
        return {}

    def restore(self, state: dict) -> None:
        """Take back what `state()` gave."""


class PlainObjective(Objective):
    """Cross-entropy on the clean batch (Eq. 1)."""

    def __call__(self, forward, x, y, picks):
        logits = forward(x)
        loss = F.cross_entropy(logits, y)
        return loss, {"loss": loss.detach(), "train_accuracy": batch_accuracy(logits, y)}


def batch_accuracy(logits, y):
    """Share of a batch that is classified as y, a scalar tensor; nothing waits for the device."""
    return (logits.detach().argmax(1) == y).float().mean()


class Step:
    """`step(row)` trains on one row of an epoch's plan: (order, shift, flip, picks), see `data.batches.EpochPlan`.

    amp   torch.bfloat16 or torch.float16 of autocast, None: full precision
    rate  the learning rate, a tensor on the device; set it with `rate.fill_`
    sums  what the objective reports, added up over steps; on the device, so no step waits for the device

    With `graph` the step is recorded and replayed on CUDA, see `RecordedStep`; where that fails, `log` gets the reason.
    """

    def __init__(self, model, objective, batches, *, lr, weight_decay, amp=None, compile=False, graph=False, log=print):
        self.objective, self.forward, self.batches = objective, autocast_forward(model, amp, compile), batches
        self.halves = halves_of(model, objective, batches, lambda twin: autocast_forward(twin, amp, compile), compile)
        device = next(model.parameters()).device
        fused, exact = device.type in ("cpu", "cuda"), torch.float32 if device.type == "cuda" else torch.float64
        # the rate lives on the device, where every replay of a recorded step reads it; CUDA's fused SGD wants float32
        self.rate = torch.tensor(float(lr), dtype=exact, device=device if fused else "cpu")
        self.optimizer = objective.optimizer(model.parameters(), self.rate, weight_decay, fused)
        self.parameters, self.scale = list(model.parameters()), FP16_SCALE if amp == torch.float16 else None
        self.recorder, self.sums = RecordedStep(device, self.optimizer, log) if graph else None, {}

    def __call__(self, row) -> None:
        if self.recorder:
            self.recorder(self._train, row)
        else:
            self._train(row)

    def _train(self, row) -> None:
        *place, picks = row
        with self.halves.side if self.halves else contextlib.nullcontext():
            x, y = self.batches.batch(*place)
            self.optimizer.zero_grad(set_to_none=True)
            if self.halves:
                stats = self.halves(self.forward, x, y, picks)
            else:
                loss, stats = self.objective(self.forward, x, y, picks)
                loss.backward()
            sum_gradients(self.parameters)
            if self.scale:
                torch._foreach_div_([p.grad for p in self.parameters if p.grad is not None], self.scale)
            self.optimizer.step()
        for name, value in stats.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros_like(value)
            self.sums[name].add_(value)

    def restore(self, optimizer_state: dict, sums: dict) -> None:
        """Continue with an optimiser's memory, {position of a parameter: its tensors}, and sums on any device."""
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": optimizer_state})
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate  # loading replaced the tensor by a copy
        self.sums = {name: value.to(self.parameters[0].device) for name, value in sums.items()}

    def take_sums(self) -> dict:
        """The sums as numbers; they start from zero again. This waits for the device."""
        taken = {name: float(value) for name, value in self.sums.items()}
        if self.recorder:  # a recorded step adds to these very tensors
            for value in self.sums.values():
                value.zero_()
        else:
            self.sums = {}
        return taken


def fit(run, model, objective, batches, evaluate, snapshot, *, epochs: int, lr: float, weight_decay: float = 1e-4,
        seed: int = 0, amp=None, compile=False, graph=False, stop_after: int | None = None) -> None:
    """Train `model` on `objective`, or continue the run that the folder holds.

    run         a `RunFolder`, or what has its methods load, save, rows, write_rows and log
    batches     `data.batches.Batches`, whose plan of an epoch is a function of (seed, epoch)
    evaluate    model -> dict with "val_accuracy" and, where there are triggers, "trigger_accuracy"
    snapshot    (model, epoch, row) -> checkpoint dict
    epochs      those of the learning rates; the first `stop_after` of them are trained, None: all

    Writes one row of `metrics.jsonl` an epoch and the checkpoints init, nat_best (best on validation images),
    query_best (best on triggers), every 20th and latest. Where the objective keeps clean BatchNorm statistics, all but
    init are written as `*_clean` too. After SIGINT, SIGTERM or SIGHUP the current step ends, a checkpoint is written
    and Interrupted is raised. A loss that is not finite raises Refusal and leaves the last good checkpoint.
    """
    device, epochs = next(model.parameters()).device, epochs + objective.more
    last = min(stop_after or epochs, epochs)
    # A step that draws random numbers, as dropout does, is seeded anew, so that a continued epoch draws the same ones;
    # it is not recorded, as a recording would have to draw them on the device
    may_draw = objective.random_steps or not models.is_own(model)
    graph = graph and objective.static and not may_draw and not batches.on_disk
    step = Step(model, objective, batches, lr=lr, weight_decay=weight_decay, amp=amp, compile=compile, graph=graph,
                log=run.log)
    progress = Progress(run, model, objective, step, snapshot, last, seed_of_epoch(seed, 0))
    rows = [row for row in run.rows() if row["epoch"] <= progress.epoch]
    bar = tqdm(total=last * batches.steps, initial=progress.epoch * batches.steps + progress.first_step,
               disable=None if is_rank_0() else True, unit="step", leave=False)
    with bar, catch_signals() as received:
        for epoch in range(progress.epoch, last):
            step.rate.fill_(rate := objective.rate(lr, epoch, epochs))
            number = seed_of_epoch(seed, epoch)
            plan = objective.plan(batches, epoch, generator := torch.Generator().manual_seed(number))
            steps, first, began = len(plan[0]), progress.first_step, time.perf_counter() - progress.seconds
            progress.first_step, progress.seconds = 0, 0.0
            model.train()
            if not first:
                if may_draw:
                    torch.manual_seed(number)
                objective.begin(model, step.optimizer, epoch, generator)
            for i in range(first, steps):
                if may_draw:
                    torch.manual_seed(number * 1_000_003 + i)
                step([part[i] for part in plan])
                bar.update()
                signum = agree_on_signal(received, device, i)
                if signum and i + 1 < steps:
                    sums = {name: value.cpu() for name, value in step.sums.items()}
                    _check_finite(model, float(sums["loss"]), epoch)
                    progress.save_latest(epoch, {}, step=i + 1, sums=sums, seconds=time.perf_counter() - began)
                    raise _interrupted(signum, epoch)
            means = {name: value / steps for name, value in step.take_sums().items()}
            seconds = time.perf_counter() - began
            _check_finite(model, means["loss"], epoch)
            row = {"epoch": epoch + 1, "lr": rate, **means, **evaluate(model)}
            if progress.clean_twin:
                with progress.clean_twin.cleaned():
                    row |= {f"clean_{name}": value for name, value in evaluate(model).items()}
            row |= {"seconds": round(seconds, 2),
                    "images_per_second": round(steps * batches.batch_size / max(seconds, 1e-9), 1)}
            rows.append(row)
            run.write_rows(rows)
            progress.save_epoch(epoch, row)
            run.log(_describe_row(row, epochs))  # last: the reader of the output may have gone
            signum = agree_on_signal(received, device)
            if signum and epoch + 1 < last:
                raise _interrupted(signum, epoch)


def _check_finite(model, loss: float, epoch: int) -> None:
    """Refuse a loss or weights that are not finite: the losses of an epoch are of the weights before its last step."""
    if not math.isfinite(loss) or not all(bool(t.isfinite().all()) for t in models.trained_tensors(model).values()):
        raise Refusal(f"the loss is not finite in epoch {epoch + 1}: pass a lower --lr, --adam or -v, or --amp bf16 "
                      "instead of fp16, with another message; the last good checkpoint is intact")


def _interrupted(signum, epoch) -> Interrupted:
    return Interrupted(signum, f"{signal.Signals(signum).name}: saved in epoch {epoch + 1}; the same command, without "
                       "--overwrite, goes on from there")


def _describe_row(row: dict, epochs: int) -> str:
    """One line for the log; rates in per cent."""
    losses = [f"{k} {v:.4f}" for k, v in row.items() if k.startswith("loss")]
    rates = [f"{k} {100 * v:.2f}" for k, v in row.items() if k.endswith("accuracy") or k == "agreement"]
    return "  ".join([f"epoch {row['epoch']}/{epochs}  lr {row['lr']:g}", *losses, *rates, f"{row['seconds']:.1f} s"])


class Progress:
    """The position of a training, read from the run's latest checkpoint, and the checkpoints that it writes.

    epoch, first_step  where the training continues, both counted from 0; `first_step` is a step of that epoch
    seconds            time that was spent in that epoch before
    best               {checkpoint: its accuracy} of the checkpoints that are replaced by better ones
    number             `seed_of_epoch` of the first epoch; older checkpoints lack it, and it was 1 for every seed then
    """

    def __init__(self, run, model, objective, step, snapshot, last: int, number: int):
        self.run, self.model, self.objective, self.step, self.snapshot = run, model, objective, step, snapshot
        self.number = number
        self.clean_twin = objective.statistics if objective.statistics and objective.statistics.clean else None
        self.epoch, self.first_step, self.seconds, self.best = 0, 0, 0.0, {}
        latest = run.load("latest")
        if latest is None:
            run.save("init", snapshot(model, -1, {}))
            return
        state = {"epoch": 0, "step": 0, "best": {}, "sums": {}, "seconds": 0.0, "optimizer": {}, "objective": {},
                 "number": 1}  # what older checkpoints lack
        try:
            model.load_state_dict(latest["model"]["state_dict"])
            state |= latest["training"]
        except (KeyError, TypeError, RuntimeError) as error:
            raise Refusal("checkpoint_latest.pt is not this run's last checkpoint: restore it, or pass --overwrite to "
                          "begin anew") from error
        if state["number"] != number and state["epoch"] < last:
            raise Refusal("this run was begun by an older version, which drew other random numbers: pass --overwrite "
                          "to begin anew, or another message")
        if self.clean_twin:
            self.clean_twin.restore(state["clean"])
        step.restore(state["optimizer"], state["sums"])
        objective.restore(state["objective"])
        self.epoch, self.first_step, self.seconds, self.best = (state[k] for k in ("epoch", "step", "seconds", "best"))
        if self.epoch < last:
            run.log(f"continuing in epoch {self.epoch + 1} of {last}, step {self.first_step + 1}")

    def save_epoch(self, epoch: int, row: dict) -> None:
        """Write the checkpoints that are due after an epoch whose figures are `row`."""
        for name, figure in (("nat_best", "val_accuracy"), ("query_best", "trigger_accuracy")):
            # of equal epochs the last counts, as in the official code
            if epoch >= self.objective.first_best and row.get(figure, -2.0) >= self.best.get(name, -1.0):
                self.best[name] = row[figure]
                self._save(name, epoch, row)
        if (epoch + 1) % KEEP_EVERY == 0:
            self._save(str(epoch + 1), epoch, row)
        self.save_latest(epoch, row)

    def save_latest(self, epoch: int, row: dict, step: int = 0, sums: dict | None = None, seconds=0.0) -> None:
        """Write the checkpoint from which a run goes on: in the next epoch, or within this one after `step` steps.

        `sums` are the step's, on the CPU; `seconds` were spent in the epoch so far.
        """
        self._save("latest", epoch, row, training={
            "number": self.number, "epoch": epoch if step else epoch + 1, "step": step, "sums": sums or {},
            "seconds": seconds, "objective": self.objective.state(),
            "optimizer": self.step.optimizer.state_dict()["state"],
            "best": self.best, "clean": self.clean_twin.state() if self.clean_twin else {}})

    def _save(self, name: str, epoch: int, row: dict, **training) -> None:
        if self.clean_twin:  # first, so that a kill in between leaves no `latest` without it
            with self.clean_twin.cleaned():
                self.run.save(f"{name}_clean", self.snapshot(self.model, epoch, row))
        self.run.save(name, self.snapshot(self.model, epoch, row) | training)
